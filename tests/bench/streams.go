// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/cmd/dev"
	"github.com/assay-id/assay/tests/soak/fleet"
)

// streams measures an agent with n open streams of FetchX509SVID, each on a connection of its own, against a bare gRPC server
// that sent the same bytes; how long a rotation takes to reach them all; and how soon a stream ends whose caller executes
// another program.
func streams(ctx context.Context, n int) (err error) {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return err
	}
	if most := int(files.Max-1000) / 2; n > most { // a socket and a pidfd each
		fmt.Printf("%d streams instead of %d: this shell may open %d files (ulimit -Hn)\n", most, n, files.Max)
		n = most
	}
	limits := fmt.Sprintf("limits {\n connections = %d\n connections_per_caller = %[1]d\n streams = %[1]d\n streams_per_caller = %[1]d\n calls_per_second = %[1]d\n}\n", 4*n)
	env, err := dev.Start(ctx, dev.Options{Agent: os.Getenv("BENCH_AGENT") + limits})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, env.Close()) }()
	id, err := register(ctx, env)
	if err != nil {
		return err
	}
	socket := strings.TrimPrefix(env.WorkloadSocket, "unix://")
	resp, err := firstAnswer(ctx, socket)
	if err != nil {
		return err
	}
	if err := closed(socket); err != nil {
		return err
	}
	agent, err := serverOf(env.AgentSocket)
	if err != nil {
		return err
	}
	ours, err := openMany(ctx, agent, socket, n)
	if err != nil {
		return err
	}
	fmt.Printf("agent: %s\n", ours)
	for range 3 {
		if err := rotate(ctx, env, agent, ours, id); err != nil {
			return err
		}
	}
	if err := ours.close(); err != nil {
		return err
	}
	bare, stop, err := startBare(env.Dir, resp)
	if err != nil {
		return err
	}
	defer stop()
	limit, err := openMany(ctx, bare, filepath.Join(env.Dir, "bare.sock"), n)
	if err != nil {
		return err
	}
	defer limit.close()
	fmt.Printf("bare gRPC: %s; the agent's are %.1f kB more each\n", limit, ours.each-limit.each)
	return nil
}

// firstAnswer waits until the agent knows the entry.
func firstAnswer(ctx context.Context, socket string) (resp *pb.X509SVIDResponse, err error) {
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if resp, _, err = cold(ctx, socket); err == nil || time.Now().After(deadline) {
			return resp, err
		}
	}
}

func startBare(dir string, resp *pb.X509SVIDResponse) (fleet.Process, func(), error) {
	data, err := proto.Marshal(resp)
	if err != nil {
		return 0, nil, err
	}
	file, socket := filepath.Join(dir, "bytes"), filepath.Join(dir, "bare.sock")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return 0, nil, err
	}
	pid, stop, err := startProcess("bare", socket, file)
	if err != nil {
		return 0, nil, err
	}
	return fleet.Process(pid), stop, waitFor(socket)
}

// serverOf is the process that listens at a path.
func serverOf(path string) (fleet.Process, error) {
	c, err := net.Dial("unix", path)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	raw, err := c.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	if errControl := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); errControl != nil || err != nil {
		return 0, errors.Join(errControl, err)
	}
	return fleet.Process(cred.Pid), nil
}

// many are open streams.
type many struct {
	conns   []*grpc.ClientConn
	told    chan time.Time // of every message after the first
	running atomic.Int64
	cancel  context.CancelFunc
	each    float64 // kB of the server
	took    time.Duration
	settled time.Duration
}

func (m *many) String() string {
	return fmt.Sprintf("%d streams open after %s, %.1f kB of RSS each after %s; load %s", len(m.conns), m.took.Round(time.Millisecond), m.each, m.settled, load())
}

func openMany(ctx context.Context, server fleet.Process, socket string, n int) (*many, error) {
	before, err := server.Memory("VmRSS")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"))
	m := &many{conns: make([]*grpc.ClientConn, n), told: make(chan time.Time, n), cancel: cancel, settled: min(settling(), 20*time.Second)}
	began := time.Now()
	var group errgroup.Group
	group.SetLimit(atATime)
	for i := range m.conns {
		group.Go(func() error {
			conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithReadBufferSize(1<<10))
			if err != nil {
				return err
			}
			m.conns[i] = conn
			st, err := pb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &pb.X509SVIDRequest{}, grpc.WaitForReady(true))
			if err != nil {
				return err
			}
			if _, err := st.Recv(); err != nil {
				return err
			}
			m.running.Add(1)
			go func() {
				defer m.running.Add(-1)
				for {
					if _, err := st.Recv(); err != nil {
						return
					}
					m.told <- time.Now()
				}
			}()
			return nil
		})
	}
	if err := group.Wait(); err != nil {
		cancel()
		return nil, fmt.Errorf("open a stream: %w", err)
	}
	m.took = time.Since(began)
	time.Sleep(m.settled)
	after, err := server.Memory("VmRSS")
	m.each = float64(after-before) / float64(n) / 1000
	return m, err
}

func (m *many) close() (err error) {
	m.cancel()
	for _, c := range m.conns {
		err = errors.Join(err, c.Close())
	}
	return err
}

// rotate changes the entry, whose one SVID all streams get anew.
func rotate(ctx context.Context, env *dev.Env, agent fleet.Process, m *many, entry string) error {
	conn, err := dev.Dial(env.ServerSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	before, _ := agent.CPU()
	began := time.Now()
	if _, err := entryv1.NewEntryClient(conn).BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{
		Entries: []*types.Entry{{Id: entry, DnsNames: []string{fmt.Sprintf("n%d.example.org", began.UnixNano())}}}, InputMask: &types.EntryMask{DnsNames: true}}); err != nil {
		return err
	}
	var all sample
	for range m.running.Load() {
		select {
		case at := <-m.told:
			all = append(all, at.Sub(began))
		case <-time.After(time.Minute):
			return fmt.Errorf("%d of %d streams were told", len(all), len(m.conns))
		}
	}
	after, _ := agent.CPU()
	fmt.Printf("the SVID of %d streams changes (the operator's call begins; load %s)\n", len(all), load())
	all.print("each has the new one")
	fmt.Printf("  agent's CPU for each %s\n", ((after - before) / time.Duration(len(all))).Round(100*time.Nanosecond))
	return nil
}

const closings = 300

// closed measures from the execve of a caller until the end of its stream is on its socket. The program that is executed is this
// one, whose start counts: it is measured in turn, by itself.
func closed(socket string) error {
	var all, start sample
	for range closings {
		for socket, into := range map[string]*sample{socket: &all, "": &start} {
			out, err := exec.Command("/proc/self/exe", "closer", socket).Output()
			if err != nil {
				return fmt.Errorf("a caller that executes another program: %w", err)
			}
			ns, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
			if err != nil {
				return err
			}
			*into = append(*into, time.Duration(ns))
		}
	}
	fmt.Printf("a caller executes another program, %d times; load %s\n", closings, load())
	all.print("that runs, and its stream has ended")
	start.print("that runs, without any stream")
	return nil
}

// closer opens a stream and executes this program again, which inherits the connection. Without a socket it inherits one that has
// something to read.
func closer(ctx context.Context, socket string) error {
	if socket == "" {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
		if err != nil {
			return err
		}
		if _, err := unix.Write(fds[1], []byte("x")); err != nil {
			return err
		}
		return become(fds[0])
	}
	var fd int
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, "unix", socket)
		if err != nil {
			return nil, err
		}
		raw, err := c.(*net.UnixConn).SyscallConn()
		if err != nil {
			return nil, err
		}
		return c, raw.Control(func(n uintptr) {
			fd = int(n)
			_, _ = unix.FcntlInt(n, unix.F_SETFD, 0)
		})
	}
	conn, err := grpc.NewClient("passthrough:agent", grpc.WithContextDialer(dial), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	st, err := pb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), &pb.X509SVIDRequest{})
	if err != nil {
		return err
	}
	if _, err := st.Recv(); err != nil {
		return err
	}
	time.Sleep(30 * time.Millisecond) // what HTTP/2 still has to say is said
	return become(fd)
}

func become(fd int) error {
	return syscall.Exec("/proc/self/exe", []string{"bench", "closing", strconv.Itoa(fd), strconv.FormatInt(time.Now().UnixNano(), 10)}, os.Environ())
}

// closing waits for the stream's end: that is the next thing that comes. It only looks, since to read is not for this program.
func closing(fd, since string) error {
	n, err := strconv.Atoi(fd)
	began, errSince := strconv.ParseInt(since, 10, 64)
	if err := errors.Join(err, errSince); err != nil {
		return err
	}
	came, err := unix.Poll([]unix.PollFd{{Fd: int32(n), Events: unix.POLLIN}}, 10_000)
	if err != nil || came != 1 {
		return fmt.Errorf("nothing came within ten seconds: %w", err)
	}
	fmt.Println(time.Now().UnixNano() - began)
	return nil
}
