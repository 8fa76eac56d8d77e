// SPDX-License-Identifier: Apache-2.0

// Package clients runs programs that know nothing of Assay against it: nothing of theirs is changed, and each has a
// version of its own (gospiffe/go.mod and go-2.2.mod, node/package-lock.json, Debian's packages). Their SVIDs live half a
// minute and are replaced under traffic, the agent is killed in the middle of it and more happens, and no request may fail.
//
// SPIFFE_HELPER and GHOSTUNNEL name those programs, and NODE_SPIFFE the module of the npm package `spiffe`, which are built
// outside of this repository. Without the first, a program of go-spiffe's feeds the files; without the others,
// those clients are not there.
package clients

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

const (
	traffic  = time.Minute      // how long
	secondAt = 10 * time.Second // when all clients get a second identity
	killAt   = 20 * time.Second // when the agent is killed
	awayFor  = 2 * time.Second  // how long nothing is in its place
	firstAt  = 35 * time.Second // when the second identity ends
	serverAt = 40 * time.Second // when the server starts again
	requests = 60               // at least, of each flow: one a second, on the busiest machine
	serials  = 3                // at least, of each side: two rotations
)

func TestRotationUnderTraffic(t *testing.T) {
	c := gather(t)
	c.disturb(t)
	for _, p := range c.proxies {
		p.alive(t)
	}
	for _, p := range c.callers {
		flows := p.report(t)
		if want := len(c.flows[p.name]); len(flows) < want {
			t.Errorf("%s made %d flows, want %d", p.name, len(flows), want)
		}
		for with, f := range flows {
			judge(t, p.name+" → "+with, f)
		}
	}
	for _, p := range c.servers {
		saw(t, p.name, p.report(t), c.clients[p.name])
	}
}

// disturb lets traffic flow, and amid it all clients get a second identity, which must not become their first; the agent
// crashes and comes back; the second identity ends; and the server starts again.
func (h *house) disturb(t *testing.T) {
	t.Helper()
	begin := time.Now()
	until := func(at time.Duration) { time.Sleep(time.Until(begin.Add(at))) }
	until(secondAt)
	h.create(t, "second", "--id", "second", "--selector", "exec:file:regular", "--hint", "second")
	until(killAt)
	fatal(t, h.KillAgent())
	killed := time.Now()
	time.Sleep(awayFor)
	fatal(t, h.StartAgent(t.Context()))
	t.Logf("the agent was away for %s", time.Since(killed).Round(100*time.Millisecond))
	until(firstAt)
	h.assay(t, "entry", "delete", "second")
	until(serverAt)
	fatal(t, h.StopServer())
	fatal(t, h.StartServer(t.Context()))
	until(traffic)
}

// judge says what is wrong with a flow.
func judge(t *testing.T, name string, f flow) {
	t.Helper()
	t.Logf("%-34s %4d requests, %d failed, %2d certificates or tokens, %d retries of the Workload API", name, f.Requests, len(f.Failures), len(f.Serials), f.Retries)
	if len(f.Failures) > 0 {
		t.Errorf("%s: %d of %d requests failed, the first with: %s", name, len(f.Failures), f.Requests, f.Failures[0])
	}
	if f.Requests < requests {
		t.Errorf("%s: only %d requests", name, f.Requests)
	}
	if strings.HasSuffix(name, "by token") && f.Identities != 2 {
		t.Errorf("%s: it had %d identities at most, want 2", name, f.Identities)
	}
	want := serials
	switch {
	case strings.HasSuffix(name, "nats kept"):
		want = 1 // one connection, one handshake
	case strings.HasSuffix(name, "entrance"):
		want = 0 // plain HTTP; the server sees the entrance's certificates
	}
	if len(f.Serials) < want {
		t.Errorf("%s: %d certificates or tokens were seen, want %d: it did not rotate", name, len(f.Serials), want)
	}
}

// saw says whether a server saw its clients rotate, each with its first identity only.
func saw(t *testing.T, server string, flows map[string]flow, clients []string) {
	t.Helper()
	for _, client := range clients {
		if n := len(flows[client].Serials); n < serials {
			t.Errorf("%s saw %d certificates or tokens of %q, want %d", server, n, client, serials)
		}
	}
	for _, second := range []string{id("second"), tokensOf("second")} {
		if len(flows[second].Serials) > 0 {
			t.Errorf("%s saw %s: the order of identities changed", server, second)
		}
	}
}
