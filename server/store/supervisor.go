// SPDX-License-Identifier: Apache-2.0

package store

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/assay-id/assay/server/store/member"
)

const (
	maxSocket = 107 // bytes, unix(7)

	backoffMin = 200 * time.Millisecond
	backoffMax = 5 * time.Second
	stopGrace  = 10 * time.Second
	// startTries is how often the first start may fail before Open gives up.
	startTries = 3
)

// supervisor owns the member's process: one at a time, started again when it ends.
type supervisor struct {
	dir, exe string
	spec     member.Spec
	now      func() time.Time
	log      *slog.Logger
	lock     *os.File // held as long as we own dir

	mu     sync.Mutex
	why    string // why it ended last; "" once it has answered since
	exits  int
	starts int
}

func newSupervisor(cfg Config) (*supervisor, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil || cfg.Dir == "" {
		return nil, fmt.Errorf("the store needs a folder (got %q): set data_dir", cfg.Dir)
	}
	m := &supervisor{dir: dir, exe: cfg.Executable, spec: cfg.spec(), now: cfg.Now, log: cfg.Logger}
	if n := len(m.socket()); n > maxSocket {
		return nil, fmt.Errorf("data_dir is too long for the store's Unix socket %s (%d bytes, the most is %d): choose a shorter data_dir", m.socket(), n, maxSocket)
	}
	if m.exe == "" {
		if m.exe, err = os.Executable(); err != nil {
			return nil, fmt.Errorf("find this program to start the store with: %w", err)
		}
	}
	if err := member.MakeDirs(dir); err != nil {
		return nil, err
	}
	if m.lock, err = member.LockServer(dir); err != nil {
		return nil, err
	}
	if err := m.prepare(); err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

func (m *supervisor) socket() string { return member.Socket(m.dir) }

// prepare leaves in the folder what the process needs to start.
func (m *supervisor) prepare() error {
	_, err := member.ReadAuthority(m.dir)
	switch {
	case m.spec.Clustered() && errors.Is(err, os.ErrNotExist):
		return errors.New("this server's store is in no cluster yet: run `assay-server store init` on the first server, or `assay-server store join TICKET` on every other one")
	case !m.spec.Clustered() && err == nil:
		return fmt.Errorf("the store in %s is a member of a cluster: put the block cluster { name, address } back into the configuration", m.dir)
	case m.spec.Clustered():
		if _, err := m.spec.RenewLeaf(m.dir, m.now()); err != nil {
			return err
		}
	}
	return m.spec.Write(m.dir)
}

// run starts the process again and again until the context ends.
func (m *supervisor) run(ctx context.Context) {
	// The kernel's parent-death signal belongs to the thread that forks.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wait := backoffMin
	for {
		started := time.Now()
		why := m.runOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(started) > time.Minute {
			wait = backoffMin
		}
		m.log.Error("the store stopped; starting it again", "reason", why, "wait", wait)
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		wait = min(2*wait, backoffMax)
	}
}

// runOnce runs the process to its end and returns why it ended.
func (m *supervisor) runOnce(ctx context.Context) string {
	cmd := exec.Command(m.exe, member.Command, "--dir", m.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Env = append(os.Environ(), "GOGC=400")
	life, err := cmd.StdinPipe() // its end tells the child to stop
	if err != nil {
		return m.ended(fmt.Sprintf("it can not be started: %v", err))
	}
	logs, err := cmd.StderrPipe()
	if err != nil {
		return m.ended(fmt.Sprintf("it can not be started: %v", err))
	}
	if err := cmd.Start(); err != nil {
		return m.ended(fmt.Sprintf("%s can not be started: %v", m.exe, err))
	}
	m.began()
	stop := context.AfterFunc(ctx, func() {
		_ = life.Close()
		time.AfterFunc(stopGrace, func() { _ = cmd.Process.Kill() })
	})
	defer stop()
	last := m.relay(logs)
	return m.ended(m.explain(cmd.Wait(), last))
}

// relay repeats the child's log records in ours and returns its last words.
func (m *supervisor) relay(r io.Reader) (last string) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var rec struct {
			Level slog.Level `json:"level"`
			Msg   string     `json:"msg"`
			Error string     `json:"error"`
		}
		if err := json.Unmarshal(lines.Bytes(), &rec); err != nil || rec.Msg == "" {
			rec.Level, rec.Msg = slog.LevelError, lines.Text() // a Go panic, for example
		}
		if rec.Level >= slog.LevelError {
			last = rec.Msg
			if rec.Error != "" {
				last += ": " + rec.Error
			}
		}
		attrs := []any{"process", member.Command}
		if rec.Error != "" {
			attrs = append(attrs, "error", rec.Error)
		}
		m.log.Log(context.Background(), rec.Level, rec.Msg, attrs...)
	}
	_, _ = io.Copy(io.Discard, r) // a line too long must not block the child
	return last
}

// explain says what to do about an exit.
func (m *supervisor) explain(err error, last string) string {
	var exit *exec.ExitError
	_ = errors.As(err, &exit)
	switch {
	case exit != nil && exit.ExitCode() == member.ExitRemoved:
		return fmt.Sprintf("it was removed from the store's cluster; to enter it again move %s away and run `assay-server store join TICKET`", m.dir)
	case exit != nil && exit.ExitCode() == member.ExitNoSpace:
		return fmt.Sprintf("the file system of %s has no room; free space or move data_dir; the store starts again by itself, and identities are signed from memory until then", m.dir)
	case last != "":
		return fmt.Sprintf("its process ended (%v): %s", err, last)
	}
	return fmt.Sprintf("its process ended (%v)", err)
}

func (m *supervisor) began() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.starts++
}

// answered forgets why the process before this one ended.
func (m *supervisor) answered() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.why = ""
}

func (m *supervisor) ended(why string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.why = why
	m.exits++
	return why
}

// down says why the process does not answer; "" if it does or has never ended.
func (m *supervisor) down() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.why
}

func (m *supervisor) restarts() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return max(0, m.starts-1)
}

// neverStarted returns the reason after several exits; for the time before the first answer.
func (m *supervisor) neverStarted() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.exits < startTries {
		return nil
	}
	return fmt.Errorf("%w: %s", ErrUnavailable, m.why)
}

func (m *supervisor) close() {
	if m != nil && m.lock != nil {
		_ = m.lock.Close()
	}
}
