// SPDX-License-Identifier: Apache-2.0

package pkcs11

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// errEnded is what requests fail with whose program ended.
var errEnded = errors.New("assay-pkcs11 ended")

const stopGrace = 5 * time.Second

// child is one run of assay-pkcs11.
type child struct {
	conn     *net.UnixConn
	process  *os.Process
	log      *slog.Logger
	pinState string
	room     chan struct{} // a place for each session of the token
	useful   atomic.Bool   // it has answered more than OpOpen
	over     chan struct{} // closed when the process is gone

	write sync.Mutex

	mu      sync.Mutex
	last    uint64
	pending map[uint64]*pending
	reason  error    // why it was killed or ended
	lost    error    // why the conversation ended, if it did first
	said    []string // its first lines since it answered
}

// pending is a request under way.
type pending struct {
	answer   chan Response
	deadline *time.Timer
}

func startChild(program string, log *slog.Logger) (*child, error) {
	pair, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("make a socket to assay-pkcs11: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "assay-pkcs11"), os.NewFile(uintptr(pair[1]), "assay-server")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, fmt.Errorf("make a socket to assay-pkcs11: %w", err)
	}
	c := &child{conn: conn.(*net.UnixConn), log: log, room: make(chan struct{}, 1), over: make(chan struct{}), pending: map[uint64]*pending{}}
	cmd := exec.Command(program)
	cmd.ExtraFiles = []*os.File{theirs}                // its descriptor 3
	cmd.Env = append(os.Environ(), "GOTRACEBACK=none") // a crash of the module is not ours to trace
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Stderr, cmd.WaitDelay = c, time.Second
	started := make(chan error)
	go func() {
		// The kernel's parent-death signal belongs to the thread that forks.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		c.process = cmd.Process
		started <- err
		if err == nil {
			c.ended(cmd.Wait())
		}
	}()
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("assay-pkcs11 can not be started: build it (make build-pkcs11) and put it beside assay-server, or set helper_path: %w", err), conn.Close())
	}
	go c.read()
	return c, nil
}

// opened makes room for as many requests as the token has sessions.
func (c *child) opened(sessions int) { c.room = make(chan struct{}, min(sessions, 64)) }

// ask waits for the answer. The request goes on to its deadline if ctx ends before.
func (c *child) ask(ctx context.Context, q Request, limit time.Duration) (Response, error) {
	queue := time.NewTimer(limit)
	defer queue.Stop()
	select {
	case c.room <- struct{}{}:
	case <-queue.C:
		return Response{}, fmt.Errorf("the HSM is busy: no place for another request within %s", limit)
	case <-c.over:
		return Response{}, c.why()
	case <-ctx.Done():
		return Response{}, ctx.Err()
	}
	p := c.expect(&q, limit)
	c.write.Lock()
	err := writeFrame(c.conn, q)
	c.write.Unlock()
	if err != nil {
		c.lose(err)
	}
	select {
	case a := <-p.answer:
		if a.Error != nil {
			return Response{}, a.Error
		}
		return a, nil
	case <-c.over:
		return Response{}, c.why()
	case <-ctx.Done():
		return Response{}, ctx.Err()
	}
}

// expect files a request under a new ID.
func (c *child) expect(q *Request, limit time.Duration) *pending {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.last++
	q.ID = c.last
	p := &pending{answer: make(chan Response, 1)}
	op := q.Op
	p.deadline = time.AfterFunc(limit, func() {
		c.kill(fmt.Errorf("%w: the HSM's module had not answered %q within %s; see whether the HSM can be reached", errEnded, op, limit))
	})
	c.pending[q.ID] = p
	return p
}

// read hands out the answers until the connection ends.
func (c *child) read() {
	for {
		var a Response
		if err := readFrame(c.conn, &a); err != nil {
			c.lose(err)
			return
		}
		c.mu.Lock()
		p := c.pending[a.ID]
		delete(c.pending, a.ID)
		c.said = nil
		c.mu.Unlock()
		if p == nil {
			c.lose(fmt.Errorf("%w: it answers what nobody asked", errFrame))
			return
		}
		p.deadline.Stop()
		if a.ID > 1 {
			c.useful.Store(true)
		}
		<-c.room
		p.answer <- a
	}
}

// kill ends it at once; the first reason counts.
func (c *child) kill(why error) {
	c.mu.Lock()
	if c.reason == nil {
		c.reason = why
	}
	c.mu.Unlock()
	_ = c.process.Kill() // it may be gone
}

// lose ends it because it can not be spoken with; why is rather in how it ends.
func (c *child) lose(err error) {
	c.mu.Lock()
	if c.lost == nil {
		c.lost = err
	}
	c.mu.Unlock()
	_ = c.process.Kill()
}

// stop lets it log out of the token first.
func (c *child) stop() {
	c.mu.Lock()
	if c.reason == nil {
		c.reason = errClosed
	}
	c.mu.Unlock()
	_ = c.conn.CloseWrite()
	select {
	case <-c.over:
	case <-time.After(stopGrace):
		_ = c.process.Kill()
		<-c.over
	}
}

// ended says why, to those who wait and to the log.
func (c *child) ended(err error) {
	c.mu.Lock()
	if c.reason == nil {
		c.reason = fmt.Errorf("%w (%v)", errEnded, err)
		switch {
		case errors.Is(c.lost, errFrame):
			c.reason = fmt.Errorf("%w: %w", errEnded, c.lost)
		case len(c.said) > 0:
			c.reason = fmt.Errorf("%w: %s", c.reason, strings.Join(c.said, "; "))
		}
	}
	why := c.reason
	for _, p := range c.pending {
		p.deadline.Stop()
	}
	c.mu.Unlock()
	_ = c.conn.Close()
	if errors.Is(why, errEnded) {
		c.log.Error("assay-pkcs11 ended; the next request starts it again", "reason", why)
	}
	close(c.over)
}

func (c *child) alive() bool {
	select {
	case <-c.over:
		return false
	default:
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.reason == nil && c.lost == nil
	}
}

// why it ended; it waits for that.
func (c *child) why() error {
	<-c.over
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reason
}

// Write takes what the program and its module print.
func (c *child) Write(b []byte) (int, error) {
	for line := range bytes.Lines(b) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		text := string(line[:min(len(line), 500)])
		c.mu.Lock()
		if len(c.said) < 3 {
			c.said = append(c.said, text)
		}
		c.mu.Unlock()
		c.log.Warn(text, "process", "assay-pkcs11")
	}
	return len(b), nil
}
