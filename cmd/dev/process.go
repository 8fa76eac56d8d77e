// SPDX-License-Identifier: Apache-2.0

package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// process is a program that runs until it is stopped.
type process struct {
	name string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how, after done
	tail *tail
}

// start writes the configuration and runs the program with it.
func (e *Env) start(name, conf string) (*process, error) {
	path := e.path(name + ".hcl")
	if err := os.WriteFile(path, []byte(conf), 0o600); err != nil {
		return nil, fmt.Errorf("configuration of %s: %w", name, err)
	}
	p := &process{name: name, done: make(chan struct{}), tail: &tail{}}
	p.cmd = exec.Command(filepath.Join(e.opts.Bin, name), "run", "--config", path)
	p.cmd.Stdout = io.MultiWriter(e.log, p.tail)
	p.cmd.Stderr = p.cmd.Stdout
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w; make build makes it", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// wait returns once ready does without error, or the process has ended.
func (p *process) wait(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("%s did not start: %w", p.name, p.failure())
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w; it says: %s", p.name, err, p.tail)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// failure says how the process ended.
func (p *process) failure() error {
	<-p.done
	return fmt.Errorf("%w; it said: %s", errOr(p.err, errors.New("it ended")), p.tail)
}

func errOr(err, fallback error) error {
	if err == nil {
		return fallback
	}
	return err
}

func (p *process) stop() error {
	if p == nil {
		return nil
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(20 * time.Second):
		return errors.Join(fmt.Errorf("%s did not stop in time and was killed; it said: %s", p.name, p.tail), p.kill())
	}
	return nil
}

func (p *process) kill() error {
	err := p.cmd.Process.Kill()
	<-p.done
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// tail keeps the last lines that were written.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lines = append(t.lines, strings.Split(strings.TrimRight(string(p), "\n"), "\n")...)
	t.lines = t.lines[max(0, len(t.lines)-3):]
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.lines, " | ")
}

// syncWriter lets several processes share a writer; nil writes nowhere.
type syncWriter struct {
	mu sync.Mutex
	w  io.Writer
}

func (s *syncWriter) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.w == nil {
		return len(p), nil
	}
	return s.w.Write(p)
}
