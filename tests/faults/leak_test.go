// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/assay-id/assay/cmd/dev"
)

// use is what the agent has of the machine.
type use struct{ descriptors, goroutines, rss int }

// agentPID finds the agent among all processes by its configuration.
func (m *machine) agentPID() string {
	m.t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		m.t.Fatal(err)
	}
	for _, path := range found {
		if args, err := os.ReadFile(path); err == nil && bytes.HasSuffix(args, []byte("run\x00--config\x00"+m.Dir+"/assay-agent.hcl\x00")) {
			return filepath.Base(filepath.Dir(path))
		}
	}
	m.t.Fatal("no agent runs")
	return ""
}

var totalOf = regexp.MustCompile(` of (\d+) total`)

func (m *machine) use() use {
	m.t.Helper()
	proc := filepath.Join("/proc", m.agentPID())
	descriptors, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		m.t.Fatal(err)
	}
	status, err := os.ReadFile(filepath.Join(proc, "status"))
	if err != nil {
		m.t.Fatal(err)
	}
	_, after, _ := strings.Cut(string(status), "VmRSS:")
	rss, err := strconv.Atoi(strings.Fields(after)[0])
	if err != nil {
		m.t.Fatal(err)
	}
	file := filepath.Join(m.t.TempDir(), "goroutines")
	profile, err := exec.Command(m.program("assay"), "agent", "profile", "goroutine", "--agent-socket", m.AgentSocket).Output()
	if err == nil {
		err = os.WriteFile(file, profile, 0o600)
	}
	if err != nil {
		m.t.Fatalf("profile: %v", err)
	}
	text, err := exec.Command("go", "tool", "pprof", "-top", file).CombinedOutput()
	total := totalOf.FindSubmatch(text)
	if err != nil || total == nil {
		m.t.Fatalf("read the profile: %v: %s", err, text)
	}
	goroutines, _ := strconv.Atoi(string(total[1])) // digits
	return use{len(descriptors), goroutines, rss / 1024}
}

func (u use) String() string {
	return fmt.Sprintf("%d descriptors, %d goroutines, %d MiB", u.descriptors, u.goroutines, u.rss)
}

// TestNothingLeaks: thousands of streams of all kinds, some closed well and some with their connection, leave the agent with what it
// had before; the memory that it needs for many it needs once. ASSAY_STREAMS is how many; 2000 without it.
func TestNothingLeaks(t *testing.T) {
	total := 2000
	if text := os.Getenv("ASSAY_STREAMS"); text != "" {
		var err error
		if total, err = strconv.Atoi(text); err != nil {
			t.Fatal(err)
		}
	}
	m := startMachine(t, dev.Options{Agent: "limits {\n  calls_per_second = 100000\n  fetch_jwt_svid = 100000\n  fetch_x509_svid = 100000\n}"})
	m.assay("entry", "create", "--spiffe-id", "spiffe://example.org/w", "--parent", m.NodeID, "--selector", "unix:uid:0")
	eventually(t, "an SVID", func() bool {
		ctx, cancel := context.WithTimeout(withHeader(t.Context()), 20*time.Second)
		defer cancel()
		_, err := first(m.workload(t).FetchX509SVID(ctx, &pb.X509SVIDRequest{}))
		return err == nil
	})
	const atOnce = 200
	m.crowd(t, atOnce) // what is made once
	m.crowd(t, atOnce)
	var before, after use
	settle := func() (u use) {
		for range 100 { // what ends, ends by itself
			if u = m.use(); before.goroutines == 0 || u.descriptors <= before.descriptors+2 && u.goroutines <= before.goroutines+4 {
				return u
			}
			time.Sleep(200 * time.Millisecond)
		}
		return u
	}
	time.Sleep(3 * time.Second)
	before = settle()
	t.Logf("before: %v", before)
	for done := 0; done < total; done += atOnce {
		m.crowd(t, atOnce)
		if done == total/2/atOnce*atOnce {
			t.Logf("half way: %v", m.use())
		}
	}
	after = settle()
	t.Logf("after %d streams: %v", total, after)
	if after.descriptors > before.descriptors+2 || after.goroutines > before.goroutines+4 || after.rss > before.rss+20+total/1000 {
		t.Errorf("after %d streams the agent has %v; before it had %v", total, after, before)
	}
	s, err := m.AgentStatus(t.Context())
	if err != nil || s.Streams != 0 {
		t.Errorf("%d streams are open, %v", s.GetStreams(), err)
	}
}

// crowd opens so many streams at once on a fifth as many connections, hears each once, and closes everything.
func (m *machine) crowd(t *testing.T, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(withHeader(t.Context()), time.Minute)
	defer cancel()
	var all sync.WaitGroup
	errs := make(chan error, n)
	for i := range n / 5 {
		conn, err := grpc.NewClient(m.WorkloadSocket, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() // some with streams that are open
		w := pb.NewSpiffeWorkloadAPIClient(conn)
		for _, hear := range []func(context.Context) error{
			func(ctx context.Context) error {
				_, err := first(w.FetchX509SVID(ctx, &pb.X509SVIDRequest{}))
				return err
			},
			func(ctx context.Context) error {
				_, err := first(w.FetchX509Bundles(ctx, &pb.X509BundlesRequest{}))
				return err
			},
			func(ctx context.Context) error {
				_, err := first(w.FetchJWTBundles(ctx, &pb.JWTBundlesRequest{}))
				return err
			},
			func(ctx context.Context) error {
				_, err := first(w.FetchWITSVID(ctx, &pb.WITSVIDRequest{}))
				return err
			},
			func(ctx context.Context) error {
				_, err := w.FetchJWTSVID(ctx, &pb.JWTSVIDRequest{Audience: []string{fmt.Sprint(i)}})
				return err
			},
		} {
			stream, end := ctx, context.CancelFunc(func() {})
			if i%2 == 0 {
				stream, end = context.WithCancel(ctx)
			}
			all.Go(func() { defer end(); errs <- hear(stream) })
		}
	}
	all.Wait()
	for range len(errs) {
		if err := <-errs; err != nil {
			t.Errorf("one of %d streams: %v", n, err)
			return
		}
	}
}
