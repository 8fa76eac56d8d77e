// SPDX-License-Identifier: Apache-2.0

// Package fleet is what the soak test and the benchmark of crowds stand on: assay-server processes
// and clients that attest and speak as agents do, without kernels, TPMs or workloads.
package fleet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/cmd/dev"
)

// TrustDomain of all fleets.
const TrustDomain = "example.org"

// startTimeout bounds a server's start.
const startTimeout = time.Minute

// Server is an assay-server of its own process. Its files are in one folder, its log is in "log" there.
type Server struct {
	Dir, Address string
	// Admin is a connection to the operators' socket, from the first start on.
	Admin *grpc.ClientConn

	bin string
	cmd *exec.Cmd
}

// NewServer makes the folder and the configuration: what every server has, and more lines of HCL.
// bin is the folder of the programs.
func NewServer(bin, dir, more string) (*Server, error) {
	l, err := listen()
	if err != nil {
		return nil, err
	}
	s := &Server{Dir: dir, Address: l.Addr().String(), bin: bin}
	conf := fmt.Sprintf("trust_domain = %q\ndata_dir = %q\nsocket_path = %q\nbind_address = \"127.0.0.1\"\nbind_port = %d\njoin_token {}\nratelimit {\n  attestation = -1\n  signing = -1\n}\n%s\n",
		TrustDomain, filepath.Join(dir, "data"), s.socket(), l.Addr().(*net.TCPAddr).Port, more)
	err = errors.Join(l.Close(), os.MkdirAll(dir, 0o700), os.WriteFile(s.config(), []byte(conf), 0o600))
	if err != nil {
		return nil, err
	}
	s.Admin, err = dev.Dial(s.socket())
	return s, err
}

// listen takes a free port below those that the kernel gives to clients: one that calls a server which is
// gone from the server's own port would reach itself, and hold the port.
func listen() (l net.Listener, err error) {
	for range 100 {
		if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(10000))); err == nil {
			return l, nil
		}
	}
	return nil, err
}

func (s *Server) config() string { return filepath.Join(s.Dir, "server.hcl") }
func (s *Server) socket() string { return filepath.Join(s.Dir, "admin.sock") }

// Store is the address of the server's own store, for other servers.
func (s *Server) Store() string {
	return "unix://" + filepath.Join(s.Dir, "data", "store", "run", "client.sock")
}

// Start runs the server and returns when it answers.
func (s *Server) Start(ctx context.Context) error {
	log, err := os.OpenFile(filepath.Join(s.Dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	s.cmd = exec.Command(filepath.Join(s.bin, "assay-server"), "run", "--config", s.config())
	s.cmd.Stdout, s.cmd.Stderr = log, log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("start assay-server: %w; make build makes it", err)
	}
	s.Admin.ResetConnectBackoff()
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(20 * time.Millisecond) {
		_, err := bundlev1.NewBundleClient(s.Admin).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil || time.Now().After(deadline):
			return errors.Join(fmt.Errorf("assay-server does not answer: %w; its log is %s/log", err, s.Dir), s.Kill())
		}
		s.Admin.ResetConnectBackoff()
	}
}

// Kill ends the server with SIGKILL, and so its store, if it has one.
func (s *Server) Kill() error { return s.end(syscall.SIGKILL) }

// Stop ends the server as an operator does.
func (s *Server) Stop() error { return s.end(syscall.SIGTERM) }

func (s *Server) end(sig syscall.Signal) error {
	if s.cmd == nil {
		return nil
	}
	err := s.cmd.Process.Signal(sig)
	_ = s.cmd.Wait() // how it ended is no news
	s.cmd = nil
	if errors.Is(err, os.ErrProcessDone) {
		return nil
	}
	return err
}

// Process is the server's while it runs.
func (s *Server) Process() Process { return Process(s.cmd.Process.Pid) }

// Process is looked at by its id.
type Process int

// Memory reads a line of /proc/PID/status, for example "VmRSS", in bytes.
func (p Process) Memory(line string) (int64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p))
	if err != nil {
		return 0, err
	}
	for l := range strings.Lines(string(status)) {
		if name, value, _ := strings.Cut(l, ":"); name == line {
			kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 64)
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("no line %s in the process's status", line)
}

// CPU is how long the process has run so far, by the scheduler's account.
func (p Process) CPU() (time.Duration, error) {
	// The first field of schedstat of each thread is nanoseconds on a CPU.
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", p))
	var sum time.Duration
	for _, t := range tasks {
		text, err := os.ReadFile(t)
		if err != nil {
			continue // the thread has ended
		}
		ns, _ := strconv.ParseInt(strings.Fields(string(text))[0], 10, 64)
		sum += time.Duration(ns)
	}
	return sum, err
}
