// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/assay-id/assay/cmd/dev"
)

// kills is how often the agent is killed.
func kills(t *testing.T) int {
	t.Helper()
	text := os.Getenv("ASSAY_KILLS")
	if text == "" {
		return 5
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		t.Fatalf("ASSAY_KILLS: %v", err)
	}
	return n
}

// TestMain lets this program be a workload: ASSAY_CLIENT_ID is who it should be.
func TestMain(m *testing.M) {
	if want := os.Getenv("ASSAY_CLIENT_ID"); want != "" {
		if err := beClient(want); err != nil {
			fmt.Println("wrong:", err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// beClient uses the Workload API in every way that go-spiffe has, until standard input ends, and checks all that it gets against
// the identity that is its own. It prints "ok N" when everything works, for the Nth line of input.
func beClient(want string) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	id, err := spiffeid.FromString(want)
	if err != nil {
		return err
	}
	wrong := func(err error) { cancel(err) }
	x, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return fmt.Errorf("X509Source: %w", err)
	}
	defer x.Close()
	j, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return fmt.Errorf("JWTSource: %w", err)
	}
	defer j.Close()
	c := &client{id: id, x: x, j: j}
	var load sync.WaitGroup
	load.Go(func() { c.rawStreams(ctx, wrong) })
	load.Go(func() { c.tokens(ctx, wrong) })
	var line string
	for n := 1; ; n++ {
		if _, err := fmt.Scanln(&line); err != nil {
			cancel(nil)
			load.Wait()
			if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) {
				return cause
			}
			return nil
		}
		if err := c.recovers(ctx); err != nil {
			return err
		}
		fmt.Println("ok", n, c.messages.Load(), c.tokensGot.Load())
	}
}

type client struct {
	id                  spiffeid.ID
	x                   *workloadapi.X509Source
	j                   *workloadapi.JWTSource
	messages, tokensGot atomic.Int64
}

// recovers waits until every kind of client has what it needs from the agent that runs now.
func (c *client) recovers(ctx context.Context) error {
	streams, tokens := c.messages.Load(), c.tokensGot.Load()
	var what string
	for end := time.Now().Add(90 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		if err := context.Cause(ctx); err != nil {
			return err
		}
		svid, err := c.x.GetX509SVID()
		if err != nil {
			return fmt.Errorf("X509Source: %w", err)
		}
		if err := c.check(svid.Certificates, svid.ID, c.x); err != nil {
			return err
		}
		switch {
		case c.messages.Load() == streams:
			what = "a new stream"
		case c.tokensGot.Load() == tokens:
			what = "a new token"
		default:
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("90 s after the kill it still waits for %s", what)
		}
	}
}

func (c *client) check(chain []*x509.Certificate, id spiffeid.ID, bundles *workloadapi.X509Source) error {
	got, _, err := x509svid.Verify(chain, bundles)
	if err == nil && (got != c.id || id != c.id) {
		err = fmt.Errorf("served %s (%s), this is %s", got, id, c.id)
	}
	return err
}

// rawStreams opens a stream on a new connection, looks at its first message, and again.
func (c *client) rawStreams(ctx context.Context, wrong func(error)) {
	for ctx.Err() == nil {
		if err := c.rawStream(ctx); err != nil {
			wrong(err)
			return
		}
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
	}
}

// rawStream returns only what must not be; that there is no agent is no error.
func (c *client) rawStream(ctx context.Context) error {
	conn, err := grpc.NewClient(os.Getenv("SPIFFE_ENDPOINT_SOCKET"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(withHeader(ctx), 20*time.Second)
	defer cancel()
	got, err := first(pb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &pb.X509SVIDRequest{}))
	if err != nil {
		return nil
	}
	if len(got.Svids) != 1 {
		return fmt.Errorf("served %d SVIDs", len(got.Svids))
	}
	s, err := x509svid.ParseRaw(got.Svids[0].X509Svid, got.Svids[0].X509SvidKey)
	if err != nil {
		return err
	}
	c.messages.Add(1)
	return c.check(s.Certificates, s.ID, c.x)
}

// tokens fetches JWT-SVIDs and validates them, here and at the agent.
func (c *client) tokens(ctx context.Context, wrong func(error)) {
	for n := 0; ctx.Err() == nil; n++ {
		call, cancel := context.WithTimeout(ctx, 10*time.Second)
		audience := fmt.Sprint("a", n%20)
		s, err := c.j.FetchJWTSVID(call, jwtsvid.Params{Audience: audience})
		cancel()
		if err != nil {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		got, err := jwtsvid.ParseAndValidate(s.Marshal(), c.j, []string{audience})
		if err == nil && got.ID != c.id {
			err = fmt.Errorf("a token of %s, this is %s", got.ID, c.id)
		}
		if err != nil {
			wrong(err)
			return
		}
		c.tokensGot.Add(1)
		time.Sleep(time.Duration(rand.IntN(20)) * time.Millisecond)
	}
}

// other is a client in a process of its own, of a user of its own.
type other struct {
	cmd  *exec.Cmd
	in   interface{ Write([]byte) (int, error) }
	said chan string
}

func startClient(t *testing.T, m *machine, uid uint32, id string) *other {
	t.Helper()
	o := &other{cmd: exec.Command("/proc/self/exe"), said: make(chan string, 10)}
	o.cmd.Env = append(os.Environ(), "ASSAY_CLIENT_ID="+id, "SPIFFE_ENDPOINT_SOCKET="+m.WorkloadSocket)
	as(o.cmd, uid)
	in, err := o.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	o.in = in
	o.cmd.Stdout = writer(func(p []byte) (int, error) {
		for _, line := range strings.Split(strings.TrimSpace(string(p)), "\n") {
			select {
			case o.said <- line:
			default:
			}
		}
		return len(p), nil
	})
	o.cmd.Stderr = t.Output()
	if err := o.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := o.cmd.Wait(); err != nil {
			t.Errorf("%s: %v %v", id, err, drain(o.said))
		}
	})
	return o
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func drain(c chan string) (out []string) {
	for len(c) > 0 {
		out = append(out, <-c)
	}
	return out
}

// recovers asks the client to say when all works.
func (o *other) recovers(t *testing.T) string {
	t.Helper()
	if _, err := fmt.Fprintln(o.in, "go"); err != nil {
		t.Fatalf("the client is gone: %v", err)
	}
	select {
	case line := <-o.said:
		if !strings.HasPrefix(line, "ok") {
			t.Fatalf("the client says %s", line)
		}
		return line
	case <-time.After(2 * time.Minute):
		t.Fatal("a client does not recover in 2 min")
	}
	return ""
}

// TestAgentKilledUnderLoad: clients of three identities recover by themselves from every kill of the agent, at any moment, and
// never get what is another's or does not verify.
func TestAgentKilledUnderLoad(t *testing.T) {
	m := startMachine(t, dev.Options{})
	var clients []*other
	for uid := uint32(70001); uid <= 70003; uid++ {
		id := fmt.Sprintf("spiffe://example.org/user/%d", uid)
		m.assay("entry", "create", "--spiffe-id", id, "--parent", m.NodeID, "--selector", fmt.Sprintf("unix:uid:%d", uid))
		clients = append(clients, startClient(t, m, uid, id))
	}
	for _, c := range clients {
		c.recovers(t)
	}
	var took []time.Duration
	for range kills(t) {
		time.Sleep(rand.N(300 * time.Millisecond))
		if err := m.KillAgent(); err != nil {
			t.Fatal(err)
		}
		if err := m.StartAgent(t.Context()); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		for _, c := range clients {
			c.recovers(t)
		}
		took = append(took, time.Since(began))
	}
	slices.Sort(took)
	t.Logf("%d kills; after the agent is back, three clients have all that they need within %v (median), %v (worst)", len(took), took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond))
}
