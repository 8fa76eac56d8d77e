// SPDX-License-Identifier: Apache-2.0

// Command demo tells Assay's story on one machine: a node proves itself by its TPM, two
// workloads get identities by what the kernel knows of them, four impostors get none, a
// change reaches an open stream, and nothing is left behind. `make demo` builds and runs it.
package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/assay-id/assay/cmd/dev"
)

func main() {
	if len(os.Args) > 1 {
		os.Exit(impostor(os.Args[1:]))
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

// story is the demo under way.
type story struct {
	env  *dev.Env
	bin  string // folder of the programs
	dir  string // folder of the workloads' programs
	logs *logs
	step int

	payments string // entry id
}

func run(ctx context.Context) (err error) {
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	s := &story{bin: filepath.Dir(exe), logs: &logs{}}
	began := time.Now()
	s.say("A server with its own store, a software TPM, and an agent with a kernel sensor start")
	env, err := dev.Start(ctx, dev.Options{Bin: s.bin, Log: s.logs, TPM: os.Getenv("ASSAY_TPM"), EKCA: os.Getenv("ASSAY_EK_CA")})
	if err != nil {
		return err
	}
	s.env = env
	defer func() { err = errors.Join(err, s.end(began, err)) }()
	for _, chapter := range []func(context.Context) error{s.node, s.workloads, s.impostors, s.change} {
		if err := chapter(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (s *story) end(began time.Time, failed error) error {
	s.say("Everything stops")
	left, err := s.cleanUp()
	if err != nil {
		return err
	}
	if failed != nil {
		fmt.Fprintln(os.Stderr, "--- logs of the server and the agent ---")
		_, err := fmt.Fprint(os.Stderr, s.logs)
		return err
	}
	s.tell("left behind: %s", left)
	fmt.Printf("\nThe story took %.1f s. `bin/assay dev` keeps such a machine running for you.\n", time.Since(began).Seconds())
	return nil
}

// cleanUp closes the environment and looks for what should be gone.
func (s *story) cleanUp() (left string, err error) {
	if err := s.env.Close(); err != nil {
		return "", err
	}
	var found []string
	if _, err := os.Stat(s.env.Dir); err == nil {
		found = append(found, "folder "+s.env.Dir)
	}
	if mounts, _ := os.ReadFile("/proc/mounts"); bytes.Contains(mounts, []byte(s.env.Dir)) {
		found = append(found, "a mount")
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if line, _ := os.ReadFile(p); bytes.Contains(line, []byte(s.env.Dir)) {
			found = append(found, "process "+filepath.Base(filepath.Dir(p)))
		}
	}
	if len(found) > 0 {
		return "", fmt.Errorf("left behind: %s", strings.Join(found, ", "))
	}
	return "no process, no socket, no mount, no kernel program, no file", nil
}

func (s *story) say(format string, args ...any) {
	s.step++
	fmt.Printf("\n%d. %s.\n", s.step, fmt.Sprintf(format, args...))
}

func (s *story) tell(format string, args ...any) { fmt.Printf("   "+format+"\n", args...) }

// quote prints what a program said, indented.
func (s *story) quote(out []byte) {
	for line := range strings.Lines(strings.TrimSpace(string(out))) {
		s.tell("  | %s", strings.TrimRight(line, "\n"))
	}
}

// program returns a command of a workload that knows where the Workload API is.
func (s *story) program(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+s.env.WorkloadSocket)
	return cmd
}

// logs keeps what the server and the agent log.
type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}
