// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/store"
	"github.com/assay-id/assay/server/storetest"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/ima"
	"github.com/assay-id/assay/tpm/policy"
	"github.com/assay-id/assay/tpm/swtpmtest"
	"github.com/assay-id/assay/tpm/verify"
)

// watch is a server that watches machines, with a real store, real TPMs and a short interval.
type watch struct {
	t        *testing.T
	registry *nodes.Registry
	attestor *TPM
	later    func() time.Time
}

// interval is how often machines are asked here; the default is 60 s.
const interval = 100 * time.Millisecond

func newWatch(t *testing.T, p *swtpmtest.TPM, rules *Rules) *watch {
	t.Helper()
	return newWatchOver(t, storetest.Open(t), p, rules)
}

// newWatchOver is one of the servers over a store.
func newWatchOver(t *testing.T, s *store.Store, p *swtpmtest.TPM, rules *Rules) *watch {
	t.Helper()
	w := &watch{t: t, later: func() time.Time { return time.Now().Add(time.Minute) }} // swtpm's certificates begin now
	var err error
	w.registry, err = nodes.Open(t.Context(), nodes.Config{Store: s, Logger: quiet(t), Now: w.later})
	must(t, err)
	t.Cleanup(w.registry.Close)
	c := &Continuous{Nodes: w.registry, Rules: rules, Interval: interval, Now: w.later, Rand: rand.Reader, Logger: quiet(t)}
	w.attestor = &TPM{TrustDomain: td, Policy: &verify.Policy{EKRoots: p.CA}, Rules: rules, Continuous: c, Now: w.later, Rand: rand.Reader}
	return w
}

// honest is an agent that does what tpm/device does.
type honest struct {
	w       *watch
	device  *device.Device
	key     *device.Key
	id      spiffeid.ID
	history tpm.History
	quoted  bool
}

func (w *watch) agent(p *swtpmtest.TPM, logs swtpmtest.Logs) *honest {
	w.t.Helper()
	files := device.Logs(logs)
	d, err := device.Open(w.t.Context(), device.Config{Path: p.Path, Logs: &files})
	must(w.t, err)
	w.t.Cleanup(func() { d.Close() })
	a := &honest{w: w, device: d}
	a.key, err = d.NewKey([32]byte{1})
	must(w.t, err)
	return a
}

func (a *honest) attest(ctx context.Context) error {
	hello, err := a.device.Hello(a.key)
	must(a.w.t, err)
	payload, err := tpm.Encode(hello)
	must(a.w.t, err)
	a.quoted = false
	got, err := a.w.attestor.Attest(ctx, payload, a.key.Public(), binding, a.answer)
	if err != nil {
		return err
	}
	a.id = got.ID
	_, err = a.w.registry.Attested(ctx, got, "1", a.w.later().Add(time.Hour))
	return err
}

func (a *honest) answer(_ context.Context, data []byte) ([]byte, error) {
	if a.quoted {
		m, err := tpm.Decode[tpm.More](data)
		must(a.w.t, err)
		c, err := a.device.More(m)
		must(a.w.t, err)
		return tpm.Encode(c)
	}
	a.quoted = true
	c, err := tpm.Decode[tpm.Challenge](data)
	must(a.w.t, err)
	e, err := a.device.Answer(a.key, c, binding)
	must(a.w.t, err)
	return tpm.Encode(e)
}

// stream answers questions until the server has enough, or ctx ends.
func (a *honest) stream(ctx context.Context) error {
	spki, err := x509.MarshalPKIXPublicKey(a.key.Public())
	must(a.w.t, err)
	return a.w.attestor.Continuous.Run(ctx, a.id, spki, binding, func(ctx context.Context, data []byte) ([]byte, error) {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		q, err := tpm.Decode[tpm.Question](data)
		if err != nil {
			return nil, err
		}
		answer, err := a.device.Requote(a.key, q, binding, a.history)
		if err != nil {
			return nil, err
		}
		return tpm.Encode(answer)
	})
}

// watched runs the agent's stream until the test says so or the server ends it.
func (a *honest) watched() (end <-chan error, stop func()) {
	ctx, cancel := context.WithCancel(a.w.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.stream(ctx) }()
	a.w.t.Cleanup(cancel)
	eventually(a.w.t, func() bool { return a.w.attestor.Continuous.Fresh(a.id) || len(done) > 0 })
	return done, cancel
}

// suspended waits until the node is, and returns how long that took.
func (a *honest) suspended(end <-chan error, by, reason string) time.Duration {
	a.w.t.Helper()
	began := time.Now()
	select {
	case err := <-end:
		denied(a.w.t, err, nodes.Suspended)
	case <-time.After(10 * time.Second):
		a.w.t.Fatal("nothing happened within 10 s")
	}
	took := time.Since(began)
	n := a.w.registry.Get(a.id)
	if n.State != nodes.StateSuspended || n.By != by || !strings.Contains(n.Standing.Reason, reason) {
		a.w.t.Fatalf("%+v, want by %s: %s", n.Standing, by, reason)
	}
	if a.w.attestor.Continuous.Fresh(a.id) {
		a.w.t.Error("a suspended node counts as fresh")
	}
	return took
}

// booted is a machine with logs, attested and watched.
func booted(t *testing.T, like string, group func(*swtpmtest.Machine) *policy.Group) (*swtpmtest.Machine, *honest) {
	t.Helper()
	m := swtpmtest.New(t).Boot(like)
	rules := &Rules{Groups: map[string]*policy.Group{}}
	if group != nil {
		rules.Groups["default"] = group(m)
	}
	w := newWatch(t, m.TPM, rules)
	a := w.agent(m.TPM, m.Logs)
	must(t, a.attest(t.Context()))
	return m, a
}

// onlyWhatRan is the group of machines that run only what this one did.
func onlyWhatRan(m *swtpmtest.Machine) *policy.Group {
	return &policy.Group{Name: "default", IMA: []policy.List{{Name: "golden", Files: m.Learned()}}, NoViolations: true}
}

func TestSelectorsFromLogs(t *testing.T) {
	_, a := booted(t, "secure", onlyWhatRan)
	n := a.w.registry.Get(a.id)
	got := n.Selectors.Strings()
	for _, want := range []string{"tpm:secureboot:enabled", "tpm:ima:boot-aggregate-ok", "tpm:ima:no-violations", "tpm:ima:allowlist:golden",
		"tpm:kernel:51349501a3d1ff83836437d2b365fd2d57f2feb8642d315e5181dec23d4c3275", "tpm:cmdline:has:ima_policy=tcb"} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s in %s", want, n.Selectors)
		}
	}
	if n.TPM == nil || n.TPM.Group != "default" || n.TPM.IMA.Entries == 0 || len(n.TPM.BootLog) == 0 {
		t.Errorf("%+v", n.TPM)
	}
}

func TestUnknownFileSuspends(t *testing.T) {
	m, a := booted(t, "uki", onlyWhatRan)
	end, _ := a.watched()
	asked := len(a.w.attestor.Continuous.anchors(a.id))
	eventually(t, func() bool { return len(a.w.attestor.Continuous.anchors(a.id)) > asked+3 }) // it may stay while nothing happens
	m.Measure([32]byte{0xba, 0xd0}, "/tmp/implant")
	took := a.suspended(end, nodes.ByDrift, `"/tmp/implant"`)
	t.Logf("a program that is in no list ran: suspended after %s, asked every %s", took.Round(time.Millisecond), interval)
}

func TestFilesWithoutRulesAreNoted(t *testing.T) {
	m, a := booted(t, "direct", nil)
	_, _ = a.watched()
	if !slices.Contains(a.w.registry.Get(a.id).Selectors.Strings(), "tpm:ima:no-violations") {
		t.Fatal("a violation at the start")
	}
	for n := range 20 {
		m.Measure([32]byte{byte(n)}, "/bin/x")
	}
	m.Violate()
	eventually(t, func() bool {
		return !slices.Contains(a.w.registry.Get(a.id).Selectors.Strings(), "tpm:ima:no-violations")
	})
	if n := a.w.registry.Get(a.id); n.State != nodes.StateAdmitted || n.TPM.IMA.Violations != 1 {
		t.Errorf("%+v", n)
	}
}

func TestDriftSuspends(t *testing.T) {
	for what, c := range map[string]struct {
		tamper func(*swtpmtest.Machine, *honest)
		reason string
	}{
		"a boot PCR":      {func(m *swtpmtest.Machine, _ *honest) { m.Extend(4, [32]byte{1}) }, "PCR 4 moved"},
		"PCR 11":          {func(m *swtpmtest.Machine, _ *honest) { m.Extend(11, [32]byte{1}) }, "PCR 11 moved"},
		"PCR 10 no log":   {func(m *swtpmtest.Machine, _ *honest) { m.Extend(10, [32]byte{1}) }, "no part of it leads"},
		"a violation":     {func(m *swtpmtest.Machine, _ *honest) { m.Violate() }, "violations"},
		"history shorter": {func(_ *swtpmtest.Machine, a *honest) { a.history = tpm.History{Count: 3} }, "rewritten"},
	} {
		t.Run(what, func(t *testing.T) {
			m, a := booted(t, "uki", onlyWhatRan)
			a.history = tpm.History{Count: 5, Head: [32]byte{5}}
			end, _ := a.watched()
			if anchors := a.w.attestor.Continuous.anchors(a.id); len(anchors) == 0 || anchors[0].History != a.history {
				t.Errorf("anchors %+v", anchors)
			}
			c.tamper(m, a)
			t.Log(a.suspended(end, nodes.ByDrift, c.reason))
			// Nothing but an operator ends it, and then only an attestation in full.
			if err := a.attest(t.Context()); err == nil {
				t.Error("a suspended node was admitted")
			}
		})
	}
}

func TestPhasesOfTheBootAreNoDrift(t *testing.T) {
	m, a := booted(t, "uki", nil)
	end, stop := a.watched()
	before := a.w.registry.Get(a.id).Selectors
	m.Extend(11, sha256.Sum256([]byte("sysinit")))
	m.Extend(11, sha256.Sum256([]byte("ready")))
	eventually(t, func() bool { return !a.w.registry.Get(a.id).Selectors.Equal(before) }) // tpm:pcr:sha256:11
	stop()
	must(t, <-end)
	if n := a.w.registry.Get(a.id); n.State != nodes.StateAdmitted {
		t.Errorf("%+v", n.Standing)
	}
}

func TestRebootAttestsAgain(t *testing.T) {
	p := swtpmtest.New(t)
	w := newWatch(t, p, nil)
	a := w.agent(p, swtpmtest.Logs{})
	must(t, a.attest(t.Context()))
	end, _ := a.watched()
	p.Off()
	p.On()
	err := <-end
	if err == nil || w.registry.Get(a.id).State != nodes.StateAdmitted {
		t.Fatalf("%v, %+v", err, w.registry.Get(a.id).Standing)
	}
	// Either the TPM was away when it was asked, or it answered after the boot.
	if !errors.Is(err, errReboot) {
		t.Log(err)
		if err := a.stream(t.Context()); !errors.Is(err, errReboot) {
			t.Fatalf("after the boot: %v", err)
		}
	}
	if w.attestor.Continuous.Fresh(a.id) {
		t.Error("fresh after a reboot, without an attestation")
	}
	must(t, a.attest(t.Context()))
	_, stop := a.watched()
	stop()
}

// TestRenewal: an agent that attests anew has ended its stream, and is no clone.
func TestRenewal(t *testing.T) {
	p := swtpmtest.New(t)
	w := newWatch(t, p, nil)
	a := w.agent(p, swtpmtest.Logs{})
	for range 3 {
		must(t, a.attest(t.Context()))
		end, stop := a.watched()
		stop()
		must(t, <-end)
	}
}

func TestRulesAtAttestation(t *testing.T) {
	m := swtpmtest.New(t).Boot("direct")
	rules := &Rules{Groups: map[string]*policy.Group{"default": {Name: "default", SecureBoot: true, Arguments: []string{"quiet"}}}}
	w := newWatch(t, m.TPM, rules)
	a := w.agent(m.TPM, m.Logs)
	err := a.attest(t.Context())
	var e *nodes.AttestError
	if !errors.As(err, &e) || e.Fault != nodes.FaultRefused {
		t.Fatal(err)
	}
	for _, want := range []string{"secure_boot: expected enabled, found disabled", `arguments: expected "quiet"`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is not in %q", want, err)
		}
	}
	delete(rules.Groups, "default")
	must(t, a.attest(t.Context()))
	// The rules change: a dry run tells, the next attestation suspends.
	strict := &policy.Group{Name: "default", SecureBoot: true}
	got, _, err := w.attestor.Continuous.Check(w.registry.Get(a.id), "", []*policy.Group{strict})
	if err != nil || len(got) != 1 || got[0].Rule != "secure_boot" {
		t.Errorf("check: %v, %v", got, err)
	}
	rules.Groups["default"] = strict
	if err := a.attest(t.Context()); !errors.As(err, &e) || e.Fault != nodes.FaultRefused {
		t.Fatal(err)
	}
	if n := w.registry.Get(a.id); n.State != nodes.StateSuspended || n.By != nodes.ByPolicy || !strings.Contains(n.Standing.Reason, "secure_boot") {
		t.Errorf("%+v", n.Standing)
	}
}

// TestCheckFiles: the dry run judges by lists what the machine measured, before it attested and since.
func TestCheckFiles(t *testing.T) {
	m, a := booted(t, "uki", nil)
	_, _ = a.watched()
	c := a.w.attestor.Continuous
	group := onlyWhatRan(m)
	check := func(c *Continuous) ([]policy.Finding, bool) {
		t.Helper()
		broken, known, err := c.Check(a.w.registry.Get(a.id), "", []*policy.Group{group})
		must(t, err)
		return broken, known
	}
	if broken, known := check(c); !known || len(broken) != 0 {
		t.Errorf("what it measured: %v, %v", broken, known)
	}
	m.Measure([32]byte{0xba, 0xd0}, "/tmp/implant")
	eventually(t, func() bool { broken, _ := check(c); return len(broken) == 1 })
	if broken, known := check(c); !known || !strings.Contains(broken[0].Found, `"/tmp/implant"`) || !strings.HasPrefix(broken[0].Event, "IMA entry 5:") {
		t.Errorf("%v, %v", broken, known)
	}
	if a.w.registry.Get(a.id).State != nodes.StateAdmitted {
		t.Error("a dry run changes something")
	}
	// Another server saw none of it, and says so; it judges the rest.
	group.SecureBoot = true
	other := &Continuous{Nodes: a.w.registry, Now: a.w.later, Logger: quiet(t)}
	if broken, known := check(other); known || len(broken) != 1 || broken[0].Rule != "secure_boot" {
		t.Errorf("another server: %v, %v", broken, known)
	}
	group.IMA = nil
	if _, known := check(other); !known {
		t.Error("without lists there is nothing that is not known")
	}
}

func TestFilesAreBounded(t *testing.T) {
	many := make([]ima.Entry, maxFiles)
	full, one := ima.State{Entries: maxFiles}, ima.State{Entries: maxFiles + 1}
	var f files
	f.advance(ima.State{}, full, many)
	if got, known := f.entries(full); !known || len(got) != maxFiles || got[maxFiles-1].Number != maxFiles-1 {
		t.Errorf("%d files, %v", len(got), known)
	}
	f.advance(full, one, many[:1])
	if _, known := f.entries(one); known || f.all != nil {
		t.Error("one more is kept")
	}
	f.advance(one, ima.State{Entries: maxFiles + 2}, many[:1])
	if f.all != nil {
		t.Error("a part is kept")
	}
}

type devices map[selectors.Digest]*nodes.Device

func (d devices) Get(ek selectors.Digest) *nodes.Device { return d[ek] }

func TestGroupsByInventory(t *testing.T) {
	ek := selectors.Digest{1}
	web := &policy.Group{Name: "web"}
	rules := &Rules{Groups: map[string]*policy.Group{"web": web}, Devices: devices{ek: {Group: "web"}}}
	if g, err := rules.group(ek); g != web || err != nil {
		t.Errorf("%v, %v", g, err)
	}
	if g, err := rules.group(selectors.Digest{2}); g != nil || err != nil {
		t.Errorf("a TPM in no group: %v, %v", g, err)
	}
	rules.Devices = devices{ek: {Group: "db"}}
	if _, err := rules.group(ek); err == nil || !strings.Contains(err.Error(), `node_group "db"`) {
		t.Errorf("a group that is not declared: %v", err)
	}
}

// TestPending: with the door open, a TPM that nobody vouches for waits; its logs are not taken.
func TestPendingTPM(t *testing.T) {
	m := swtpmtest.Foreign(t).Boot("direct")
	w := newWatch(t, m.TPM, nil)
	w.attestor.Policy = &verify.Policy{Pending: true}
	a := w.agent(m.TPM, m.Logs)
	hello, err := a.device.Hello(a.key)
	must(t, err)
	payload, err := tpm.Encode(hello)
	must(t, err)
	got, err := w.attestor.Attest(t.Context(), payload, a.key.Public(), binding, a.answer)
	must(t, err)
	if got.Pending == "" || got.TPM.IMA.Entries != 0 {
		t.Errorf("%+v", got)
	}
	denied(t, w.registry.Hold(t.Context(), got), nodes.Pending)
}
