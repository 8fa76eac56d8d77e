// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	"github.com/assay-id/assay/cmd/dev"
)

// machine is a real agent, and what it logs; this process is its workload.
type machine struct {
	*dev.Env
	t    *testing.T
	logs logs
}

type logs struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *logs) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func startMachine(t *testing.T, o dev.Options) *machine {
	t.Helper()
	m := &machine{t: t}
	o.Bin, o.Log = filepath.Dir(m.program("assay-agent")), &m.logs
	var err error
	if m.Env, err = dev.Start(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("clean up: %v", err)
		}
		if t.Failed() {
			text := m.logs.String()
			t.Logf("logs, their end:\n%s", text[max(0, len(text)-6000):])
		}
	})
	return m
}

func (m *machine) program(name string) string {
	bin := os.Getenv("ASSAY_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	return filepath.Join(bin, name)
}

// at starts the agent alone, whose server is at the address.
func at(t *testing.T, l *liar, address string) *machine {
	t.Helper()
	return startMachine(t, dev.Options{ElsewhereAddress: address, ElsewhereBundle: l.pem(), Agent: "join_token {\n  token = \"x\"\n}"})
}

// workload is a new connection to the agent, of this process.
func (m *machine) workload(t *testing.T) pb.SpiffeWorkloadAPIClient {
	t.Helper()
	conn, err := grpc.NewClient(m.WorkloadSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return pb.NewSpiffeWorkloadAPIClient(conn)
}

// call bounds a call of the Workload API.
func call(t *testing.T, d time.Duration) context.Context {
	return withHeader(bounded(t, d))
}

func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

// assay runs the CLI.
func (m *machine) assay(args ...string) {
	m.t.Helper()
	cmd := exec.Command(m.program("assay"), args...)
	cmd.Env = append(os.Environ(), "ASSAY_SERVER_SOCKET="+m.ServerSocket)
	if out, err := cmd.CombinedOutput(); err != nil {
		m.t.Fatalf("assay %v: %v: %s", args, err, out)
	}
}

// as has the command run as a user who is nobody else.
func as(cmd *exec.Cmd, uid uint32) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Credential: &syscall.Credential{Uid: uid, Gid: uid}}
}

// first is the first message of a stream.
func first[M any](stream grpc.ServerStreamingClient[M], err error) (*M, error) {
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

// proxy stands between agent and server.
type proxy struct {
	addr string
	// stuck: nothing passes. pace: so long for each 64 bytes, in nanoseconds.
	stuck atomic.Bool
	pace  atomic.Int64
}

func startProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{addr: l.Addr().String()}
	var conns sync.WaitGroup
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(func() { cancel(); l.Close(); conns.Wait() })
	conns.Go(func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			end := func() { in.Close(); out.Close() }
			context.AfterFunc(ctx, end)
			conns.Go(func() { defer end(); p.pass(ctx, in, out) })
			conns.Go(func() { defer end(); p.pass(ctx, out, in) })
		}
	})
	return p
}

func (p *proxy) pass(ctx context.Context, from, to net.Conn) {
	buf := make([]byte, 32<<10)
	for ctx.Err() == nil {
		piece := buf
		if p.pace.Load() > 0 {
			piece = buf[:64]
		}
		n, err := from.Read(piece)
		if err != nil {
			return
		}
		time.Sleep(time.Duration(p.pace.Load()))
		for p.stuck.Load() && ctx.Err() == nil {
			time.Sleep(5 * time.Millisecond)
		}
		if _, err := to.Write(piece[:n]); err != nil {
			return
		}
	}
}

// TestSlowServer: while the server is slow, or does not answer at all, workloads get what is there at once, and what is not there
// within bounds or a clear refusal; when it is well again so is everything.
func TestSlowServer(t *testing.T) {
	l := startLiar(t)
	p := startProxy(t, l.addr)
	m := at(t, l, p.addr)
	l.identity("slow")
	w := m.workload(t)
	var had *pb.X509SVIDResponse
	eventually(t, "an SVID", func() (ok bool) {
		var err error
		had, err = first(w.FetchX509SVID(call(t, 20*time.Second), &pb.X509SVIDRequest{}))
		return err == nil
	})
	check := func(what string, missWorks bool) {
		t.Helper()
		began := time.Now()
		got, err := first(w.FetchX509SVID(call(t, 20*time.Second), &pb.X509SVIDRequest{}))
		if err != nil || string(got.Svids[0].X509Svid) != string(had.Svids[0].X509Svid) {
			t.Errorf("%s: what is there: %v, %v", what, got, err)
		}
		hit := time.Since(began)
		began = time.Now()
		_, err = w.FetchJWTSVID(call(t, 40*time.Second), &pb.JWTSVIDRequest{Audience: []string{what}})
		miss := time.Since(began)
		if (err == nil) != missWorks || miss > 20*time.Second || hit > 5*time.Second {
			t.Errorf("%s: what is there took %v, what is not %v: %v", what, hit, miss, err)
		}
		t.Logf("%s: what is there took %v, what is not %v: %v", what, hit.Round(time.Millisecond), miss.Round(time.Millisecond), err)
	}
	check("a server that is well", true)
	p.pace.Store(int64(10 * time.Millisecond))
	check("a slow server", true)
	p.stuck.Store(true)
	check("a server that does not answer", false)
	p.stuck.Store(false)
	p.pace.Store(0)
	eventually(t, "it to be well again", func() bool {
		_, err := w.FetchJWTSVID(call(t, 20*time.Second), &pb.JWTSVIDRequest{Audience: []string{fmt.Sprint("again", time.Now().UnixNano())}})
		return err == nil
	})
	check("a server that is well again", true)
}
