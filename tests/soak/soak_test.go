// SPDX-License-Identifier: Apache-2.0

// Package soak has real servers, agents that are simulated and operators that change everything at
// once, and compares what each agent was told with what it should know. ASSAY_SOAK is for how long
// (default 20s; "30m" for the long run), ASSAY_BIN the folder of the programs.
package soak

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/assay-id/assay/tests/soak/fleet"
)

const (
	watchers = 32 // agents with a feed; half of all attest by x509pop, so that their nodes have selectors
	pollers  = 8  // agents that poll as SPIRE's do
	// settle is how long everybody may take to know everything once nothing changes any more.
	settle = 20 * time.Second
)

// world is all there is.
type world struct {
	t           *testing.T
	servers     atomic.Pointer[[]*fleet.Server]
	agents      []*agent
	cns         []string     // names of devices, which node aliases may ask for
	quiet       sync.RWMutex // held for reading by whoever changes something
	starting    sync.Mutex   // a server on another's store starts while that one is there
	entries     sync.Map     // id → whether it exists, by what was acknowledged; absent is unknown
	foreign     sync.Map     // trust domains whose bundle is set
	sequence    uint64       // of federated bundles
	authorities sync.Map     // seen signing
	said        sync.Map

	mu         sync.Mutex
	counts     map[string]int
	violations int
}

func (w *world) anyServer() *fleet.Server {
	servers := *w.servers.Load()
	return servers[rand.IntN(len(servers))]
}

func (w *world) count(what string, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.counts[what] += n
}

// violation reports what must not be.
func (w *world) violation(format string, args ...any) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := fmt.Errorf(format, args...)
	if w.violations++; w.violations <= 50 {
		w.t.Errorf("%s %v", time.Now().UTC().Format("15:04:05.000"), err)
	}
	return err
}

func TestSoak(t *testing.T) {
	length := 20 * time.Second
	if text := os.Getenv("ASSAY_SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("ASSAY_SOAK: %v", err)
		}
	}
	w := &world{t: t, counts: map[string]int{}}
	serve := w.build()
	ctx, cancel := context.WithTimeout(t.Context(), length)
	defer cancel()
	agents, stop := context.WithCancel(t.Context())
	defer stop()
	var living, work sync.WaitGroup
	for _, a := range w.agents {
		living.Go(func() { a.run(agents) })
	}
	for n := range 3 {
		work.Go(func() { (&churner{w: w, n: n}).run(ctx) })
	}
	work.Go(func() { w.operate(ctx) })
	work.Go(func() { w.rotate(ctx) })
	work.Go(func() { w.havoc(ctx, min(length/5, 30*time.Second)) })
	work.Go(func() {
		if pause(ctx, length/4) {
			serve() // the second server comes while the first one works
		}
	})
	for pause(ctx, min(length/6, 15*time.Second)) {
		w.compare()
	}
	work.Wait()
	w.compare()
	stop()
	living.Wait()
	w.report(length)
}

// build makes a server that runs, another one on the same store that serve starts, and the agents.
func (w *world) build() (serve func()) {
	t := w.t
	dir, err := os.MkdirTemp("/run", "assay-soak-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	ca, root, err := authority("devices")
	if err != nil {
		t.Fatal(err)
	}
	roots := filepath.Join(dir, "devices.pem")
	if err := os.WriteFile(roots, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	// Authorities live for 3 minutes: the next one is published after 90 s and signs after 150 s.
	more := fmt.Sprintf("ca_ttl = \"3m\"\nagent_ttl = \"30s\"\ndefault_x509_svid_ttl = \"20s\"\ndefault_jwt_svid_ttl = \"20s\"\nallow_without_evidence = [\"join_token\", \"x509pop\"]\nx509pop {\n  ca_bundle_path = %q\n}\n", roots)
	one, err := fleet.NewServer(bin(), filepath.Join(dir, "1"), more)
	if err != nil {
		t.Fatal(err)
	}
	two, err := fleet.NewServer(bin(), filepath.Join(dir, "2"), more+fmt.Sprintf("store {\n  endpoints = [%q]\n}\n", one.Store()))
	if err != nil {
		t.Fatal(err)
	}
	w.servers.Store(&[]*fleet.Server{one})
	t.Cleanup(func() { w.tearDown(dir, two, one) })
	if err := one.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	for n := range watchers + pollers {
		a := &agent{w: w, name: fmt.Sprintf("agent %d", n), polls: n >= watchers, slow: n%8 > 5}
		if n%2 == 0 {
			w.cns = append(w.cns, fmt.Sprint("device-", n))
			a.device = w.newDevice(ca, w.cns[len(w.cns)-1])
		}
		w.agents = append(w.agents, a)
	}
	return func() {
		w.quiet.RLock()
		defer w.quiet.RUnlock()
		w.starting.Lock()
		defer w.starting.Unlock()
		if err := two.Start(context.WithoutCancel(t.Context())); err != nil {
			_ = w.violation("the second server does not start: %v", err)
			return
		}
		w.servers.Store(&[]*fleet.Server{one, two})
	}
}

func bin() string {
	if dir := os.Getenv("ASSAY_BIN"); dir != "" {
		return dir
	}
	dir, _ := filepath.Abs("../../bin")
	return dir
}

func (w *world) newDevice(ca *tls.Certificate, name string) *tls.Certificate {
	d, _, err := certify(&x509.Certificate{Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature}, ca)
	if err != nil {
		w.t.Fatal(err)
	}
	return d
}

func (w *world) tearDown(dir string, servers ...*fleet.Server) {
	for _, s := range servers {
		if err := s.Stop(); err != nil {
			w.t.Error(err)
		}
		_ = s.Admin.Close()
		log, _ := os.ReadFile(filepath.Join(s.Dir, "log"))
		if n := strings.Count(string(log), "not_waited_for"); n > 0 {
			w.t.Logf("%s: %d authorities signed after the bound without everybody's acknowledgement", filepath.Base(s.Dir), n)
		}
		if w.t.Failed() {
			w.t.Logf("the end of the log of server %s:\n%s", filepath.Base(s.Dir), log[max(0, len(log)-6000):])
		}
	}
	if w.t.Failed() && os.Getenv("ASSAY_SOAK_KEEP") != "" {
		w.t.Logf("kept: %s", dir)
		return
	}
	if err := os.RemoveAll(dir); err != nil {
		w.t.Error(err)
	}
}

// compare waits until nothing is being changed and checks that everybody comes to know what he should.
// Agents go on renewing and reconnecting: each is compared until it is right once.
func (w *world) compare() {
	w.quiet.Lock()
	defer w.quiet.Unlock()
	began, left := time.Now(), slices.Clone(w.agents)
	var wrong []string
	for time.Since(began) < settle {
		if left, wrong = w.wrong(left); len(wrong) == 0 {
			w.count("quiet points", 1)
			w.count("views compared", len(w.agents))
			w.mu.Lock()
			defer w.mu.Unlock()
			w.counts["longest settling, ms"] = max(w.counts["longest settling, ms"], int(time.Since(began).Milliseconds()))
			return
		}
		time.Sleep(100 * time.Millisecond)
	}
	for _, d := range wrong {
		w.violation("%s after the last change: %s", settle, d)
	}
}

// wrong lists what is not as it should be at this moment, and which agents are not right.
func (w *world) wrong(agents []*agent) (left []*agent, all []string) {
	ctx, cancel := context.WithTimeout(w.t.Context(), settle)
	defer cancel()
	var first *truth
	for n, s := range *w.servers.Load() {
		t, err := ask(ctx, s.Admin)
		if err != nil {
			return agents, []string{fmt.Sprintf("server %d: %v", n+1, err)}
		}
		if first == nil {
			first = t
			continue
		}
		for _, d := range first.against(t) {
			all = append(all, fmt.Sprintf("server %d: %s", n+1, d))
		}
	}
	w.entries.Range(func(id, exists any) bool {
		if _, is := first.entries[id.(string)]; is != exists.(bool) {
			all = append(all, fmt.Sprintf("entry %s: it was acknowledged that it exists: %v; it is so: %v", id, exists, is))
		}
		return true
	})
	for _, a := range agents {
		differences := a.differences(ctx, first)
		for _, d := range differences {
			all = append(all, a.name+": "+d)
		}
		if len(differences) > 0 {
			left = append(left, a)
		}
	}
	return left, all
}

func (w *world) report(length time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.t.Logf("%s, %d agents (%d of them poll), %d violations", length, len(w.agents), pollers, w.violations)
	for _, what := range slices.Sorted(maps.Keys(w.counts)) {
		w.t.Logf("%8d %s", w.counts[what], what)
	}
	for _, needed := range []string{"quiet points", "entries created", "feeds resumed", "X.509-SVIDs verified", "JWT-SVIDs verified", "servers killed", "authorities activated", "polls"} {
		if w.counts[needed] == 0 {
			w.t.Errorf("nothing was shown: no %s", needed)
		}
	}
}
