// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"crypto/x509"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"github.com/assay-id/assay/agent/life"
	"github.com/assay-id/assay/agent/proof"
	nodepb "github.com/assay-id/assay/proto/node"
)

func (c *Client) becomes(t *testing.T, what string, ok func(life.Status) bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(c.State()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never %s: %+v", what, c.State())
		}
	}
}

func at(f *far) func(life.Status) bool {
	return func(s life.Status) bool { return s.State == life.Following && s.Server == f.addr }
}

// both are two servers, of which the first is called first.
func both(t *testing.T) (a, b *far) {
	a = startFar(t, false)
	b = a.twin()
	a.tune = func(c *Client) {
		c.cfg.Servers = a.set(a.addr, b.addr)
		c.cfg.Servers.Prefer(a.addr)
	}
	return a, b
}

// When a server goes away its agents go on at another one, as who they are, and workloads lose nothing.
func TestServerAway(t *testing.T) {
	a, b := both(t)
	c, s, _ := a.run(&quoter{JoinToken: proof.JoinToken{Token: "x"}}, nil)
	s.gets(t, "true [pushed]")
	c.becomes(t, "at the first", at(a))
	began := time.Now()
	a.stop()
	s.gets(t, "true [pushed]")
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("it took %s", d)
	}
	c.becomes(t, "at the second", at(b))
	if n := a.attestations() + b.attestations(); n != 1 {
		t.Errorf("attested %d times", n)
	}
}

// A server that is connected and says nothing is left, whether that shows in the feed or when it is to sign.
func TestServerHangs(t *testing.T) {
	a, b := both(t)
	var well atomic.Bool
	a.watch = func(st nodepb.Node_WatchServer) error {
		if !well.Load() {
			<-st.Context().Done()
			return nil
		}
		return a.push(st)
	}
	tune := a.tune
	a.tune = func(c *Client) { tune(c); c.tooSlow = 200 * time.Millisecond }
	c, s, _ := a.run(proof.JoinToken{Token: "x"}, nil)
	s.gets(t, "true [pushed]")
	c.becomes(t, "at the second", at(b))

	well.Store(true)
	c.answered(false)
	c.answered(true)
	c.answered(false)
	if !at(b)(c.State()) {
		t.Error("one late answer ended the session")
	}
	c.answered(false)
	s.gets(t, "true [pushed]")
	c.becomes(t, "at the first", at(a))
}

// Agents choose anew from time to time, without a new attestation.
func TestSpread(t *testing.T) {
	a, b := both(t)
	tune := a.tune
	a.tune = func(c *Client) { tune(c); c.spread = 50 * time.Millisecond }
	c, s, _ := a.run(proof.JoinToken{Token: "x"}, nil)
	go func() {
		for range s.entries { //nolint:revive // they are not of interest
		}
	}()
	c.becomes(t, "at the first", at(a))
	c.becomes(t, "at the second", at(b))
	c.becomes(t, "at the first again", at(a))
	if n := a.attestations() + b.attestations(); n != 1 {
		t.Errorf("attested %d times", n)
	}
}

func (f *far) authorities() *spiffebundle.Bundle {
	b := spiffebundle.New(td)
	b.AddX509Authority(f.ca)
	return b
}

// replaced is a server of a new authority at the address of the former one.
func (f *far) replaced() *far {
	f.stop()
	other := &far{t: f.t, log: f.log, key: newKey(f.t)}
	other.ca = other.issue(nil, other.key.Public(), &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	other.listen(f.addr, false)
	return other
}

// When the server is another one for longer than the delay, its bundle is fetched anew, and until it vouches for the
// server nothing is lost. Then workloads get everything anew.
func TestRebootstrap(t *testing.T) {
	f := startFar(t, false)
	w := &word{bundle: f.authorities()}
	f.tune = func(c *Client) {
		c.cfg.Bootstrap, c.cfg.Rebootstrap = w, Rebootstrap{Mode: Auto, Delay: 300 * time.Millisecond}
	}
	c, s, _ := f.run(proof.JoinToken{Token: "x"}, nil) // this far side lets it attest again
	s.gets(t, "true [pushed]")
	other := f.replaced()
	c.becomes(t, "told that the fetched bundle is no better", func(life.Status) bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.fetched > 1
	})
	c.becomes(t, "disconnected", func(s life.Status) bool {
		return s.State == life.Disconnected && strings.Contains(s.Reason, "re-bootstrap")
	})
	if len(s.entries) != 0 || other.attestations() != 0 {
		t.Errorf("lost %d, attested %d times", len(s.entries), other.attestations())
	}
	w.become(other.authorities())
	s.gets(t, "true []")
	s.gets(t, "true [pushed]")
	c.becomes(t, "following", at(other))
	if !c.node.bundle.HasX509Authority(other.ca) || c.node.bundle.HasX509Authority(f.ca) {
		t.Error("the bundle is not that of the new server")
	}
}

// Never is never: neither a bundle that would do nor time changes whom the agent trusts.
func TestNoRebootstrap(t *testing.T) {
	f := startFar(t, false)
	w := &word{bundle: f.authorities()}
	f.tune = func(c *Client) { c.cfg.Bootstrap, c.cfg.Rebootstrap = w, Rebootstrap{Mode: Never} }
	c, s, _ := f.run(proof.JoinToken{Token: "x"}, nil)
	s.gets(t, "true [pushed]")
	other := f.replaced()
	w.become(other.authorities())
	c.becomes(t, "told", func(s life.Status) bool {
		return strings.Contains(s.Reason, "is not one that this agent's bundle vouches for")
	})
	time.Sleep(time.Second)
	if w.fetched != 1 || other.attestations() != 0 || len(s.entries) != 0 || !c.State().State.Serving() {
		t.Errorf("fetched %d times, attested %d times, %+v", w.fetched, other.attestations(), c.State())
	}
}

// A file that can not be read is kept for whoever wants to know why, and the agent starts.
func TestBrokenStateIsPutAside(t *testing.T) {
	dir := t.TempDir()
	for _, text := range []string{"", "{", `{"attestor":"join_token","bundle":"e30="}`} {
		if err := os.WriteFile(dir+"/agent.json", []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		c := client(dir)
		c.load()
		aside, err := os.ReadFile(dir + "/agent.json.broken")
		if err != nil || string(aside) != text || c.node != nil || c.kept != nil {
			t.Errorf("%q: aside %q, %v", text, aside, err)
		}
		if _, err := os.Stat(dir + "/agent.json"); err == nil {
			t.Error("it is still there")
		}
	}
}

// The bundle outlives the node's SVID and another way of attestation, but not another word of the operator.
func TestKeptBundle(t *testing.T) {
	dir := t.TempDir()
	old := client(dir)
	old.word = "one"
	n := identity(t, proof.JoinToken{Token: "x"}, -time.Second)
	if err := old.save(n); err != nil {
		t.Fatal(err)
	}
	for text, kept := range map[string]bool{"one": true, "two": false} {
		c := client(dir)
		c.cfg.Bootstrap = &word{text: text}
		c.load()
		if c.node != nil || (c.kept != nil) != kept {
			t.Errorf("%s: node %v, kept %v", text, c.node, c.kept)
		}
	}
}
