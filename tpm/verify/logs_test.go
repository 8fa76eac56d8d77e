// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// bootedNode is a machine with logs, that attests with the endorsement key of that kind.
func bootedNode(t *testing.T, like, ek string) (*swtpmtest.Machine, *node) {
	t.Helper()
	m := swtpmtest.New(t).Boot(like)
	n := newNode(t, m.TPM)
	n.ok(n.device.Close())
	logs := device.Logs(m.Logs)
	var err error
	n.device, err = device.Open(t.Context(), device.Config{Path: m.Path, EK: ek, Logs: &logs})
	n.ok(err)
	t.Cleanup(func() { n.device.Close() })
	n.key, err = n.device.NewKey([32]byte{1})
	n.ok(err)
	n.hello, err = n.device.Hello(n.key)
	n.ok(err)
	return m, n
}

// whole is the proof of an agent that also sends the rest of its IMA log.
func (n *node) whole(e tpm.Evidence) Proof {
	p := proof(e, n.key.Public())
	p.More = n.device.More
	return p
}

func TestLogsGiveSelectors(t *testing.T) {
	for like, want := range map[string][]string{
		"direct": {"tpm:secureboot:disabled", "tpm:ima:boot-aggregate-ok", "tpm:initrd:e11dfad6d49bf9a85490c72f963fea1da581fa52f44f66274dc81cb6b7268209"},
		"uki":    {"tpm:ima:no-violations", "tpm:cmdline:has:ima_policy=tcb"},
		"secure": {"tpm:secureboot:enabled", "tpm:authority:48e99b991f57fc52f76149599bff0a58c47154229b9f8d603ac40d3500248507",
			"tpm:boot-app:1:a68f6d71ebddaa19751ff8d729f67d11b0df8e4c49400c3e7e90de16119e1265",
			"tpm:kernel-image:5f21ff2c0d5d899842b28a8b19901ba72cf7a7ab93c02a77fadc6ff72be85b31",
			"tpm:kernel:51349501a3d1ff83836437d2b365fd2d57f2feb8642d315e5181dec23d4c3275",
			"tpm:initrd:e1dec3a3d666f08b6b5f34180219b4b750dd7bb9569810e975cb580a00350e11"},
	} {
		t.Run(like, func(t *testing.T) {
			_, n := bootedNode(t, like, "")
			s, c := n.begin(n.hello)
			v, err := s.Finish(n.whole(n.answer(c)), now)
			n.ok(err)
			got := selectors.DeriveNode(&v.Facts).Strings()
			for _, w := range want {
				if !slices.Contains(got, w) {
					t.Errorf("no %s in %s", w, got)
				}
			}
			if strings.Contains(strings.Join(got, " "), "tpm:agent:") {
				t.Error("an agent that the IMA log does not have")
			}
			if last := v.Checks[len(v.Checks)-1].Name; last != checkBootLog {
				t.Errorf("the last check is %s", last)
			}
		})
	}
}

func TestAgentInTheIMALog(t *testing.T) {
	m, n := bootedNode(t, "direct", "")
	program, err := os.ReadFile("/proc/self/exe")
	n.ok(err)
	digest := sha256.Sum256(program)
	m.Measure(digest, "/usr/bin/assay-agent")
	s, c := n.begin(n.hello)
	e := n.answer(c)
	v, err := again(s).Finish(n.whole(e), now)
	n.ok(err)
	if v.Facts.Files.Agent != digest {
		t.Errorf("agent %s", v.Facts.Files.Agent)
	}
	e.AgentSHA256 = bytes.Repeat([]byte{1}, 32) // a claim that nothing bears out
	v, err = again(s).Finish(n.whole(e), now)
	n.ok(err)
	if !v.Facts.Files.Agent.IsZero() {
		t.Errorf("agent %s", v.Facts.Files.Agent)
	}
}

// TestLongIMALog needs several messages.
func TestLongIMALog(t *testing.T) {
	m, n := bootedNode(t, "direct", "")
	for i := range 300 {
		m.Measure([32]byte{byte(i), byte(i >> 8)}, "/"+strings.Repeat("x", 4000))
	}
	s, c := n.begin(n.hello)
	e := n.answer(c)
	if !e.IMAMore || len(e.IMA) != tpm.MaxIMAChunk {
		t.Fatalf("%d bytes, more: %v", len(e.IMA), e.IMAMore)
	}
	// The log goes on after the quote: nothing vouches for what comes then, and nothing needs to.
	m.Measure([32]byte{0xff}, "/later")
	v, err := again(s).Finish(n.whole(e), now)
	n.ok(err)
	if v.IMA.Entries < 300 || v.Files[len(v.Files)-1].Name == "/later" {
		t.Errorf("%d entries", v.IMA.Entries)
	}
	gone := errors.New("the agent hung up")
	p := n.whole(e)
	p.More = func(tpm.More) (tpm.Continuation, error) { return tpm.Continuation{}, gone }
	if _, err := again(s).Finish(p, now); err != gone {
		t.Errorf("a lost stream: %v", err)
	}
	p.More = func(m tpm.More) (tpm.Continuation, error) {
		return tpm.Continuation{IMALog: tpm.IMALog{IMA: e.IMA, IMAMore: true}}, nil
	}
	_, err = again(s).Finish(p, now)
	refused(t, err, checkIMALog, "the IMA log has more than")
}

func TestLogsOfOthersAndChangedLogs(t *testing.T) {
	_, n := bootedNode(t, "direct", "")
	other, _ := bootedNode(t, "uki", "")
	foreign := func(path string) []byte {
		b, err := os.ReadFile(path)
		n.ok(err)
		return b
	}
	s, c := n.begin(n.hello)
	good := n.answer(c)
	for what, a := range map[string]struct {
		change func(*tpm.Evidence)
		check  string
		text   string
	}{
		"another machine's boot log": {func(e *tpm.Evidence) { e.BootLog = foreign(other.Logs.Boot) }, checkBootLog, "the log was changed, or is not of this boot"},
		"another machine's IMA log":  {func(e *tpm.Evidence) { e.IMA = foreign(other.Logs.IMA) }, checkIMALog, "no part of it leads"},
		"a boot log cut short":       {func(e *tpm.Evidence) { e.BootLog = e.BootLog[:len(e.BootLog)-1] }, checkBootLog, "event "},
		"an IMA log cut short":       {func(e *tpm.Evidence) { e.IMA = e.IMA[:len(e.IMA)-1] }, checkIMALog, "entry "},
		"an IMA log that lacks one":  {func(e *tpm.Evidence) { e.IMA = e.IMA[:len(e.IMA)/2] }, checkIMALog, "IMA log"},
		"an event left out":          {func(e *tpm.Evidence) { e.BootLog = e.BootLog[:len(e.BootLog)-130] }, checkBootLog, "event log"},
		"a variable's digest changed": {func(e *tpm.Evidence) {
			empty := sha256.Sum256([]byte{0, 0, 0, 0}) // the separators'
			at := bytes.Index(e.BootLog, empty[:])
			e.BootLog[at]++
		}, checkBootLog, "is suspect: its data does not have its digest"},
	} {
		t.Run(what, func(t *testing.T) {
			e := good
			e.BootLog, e.IMA = bytes.Clone(good.BootLog), bytes.Clone(good.IMA)
			a.change(&e)
			_, err := again(s).Finish(n.whole(e), now)
			refused(t, err, a.check, a.text)
		})
	}
}

// TestEveryByteOfTheLogs changes bytes of both logs, one at a time: the node is refused, or its selectors are
// genuine ones.
func TestEveryByteOfTheLogs(t *testing.T) {
	_, n := bootedNode(t, "secure", "")
	s, c := n.begin(n.hello)
	good := n.answer(c)
	v, err := again(s).Finish(n.whole(good), now)
	n.ok(err)
	genuine := selectors.DeriveNode(&v.Facts)
	step := 7 // tpm/eventlog tries each
	if testing.Short() {
		step = 97
	}
	accepted, tried := 0, 0
	for _, log := range []*[]byte{&good.BootLog, &good.IMA} {
		for i := 0; i < len(*log); i += step {
			(*log)[i] ^= 0x41
			tried++
			if v, err := again(s).Finish(n.whole(good), now); err == nil {
				accepted++
				if set := selectors.DeriveNode(&v.Facts); !set.SubsetOf(genuine) {
					t.Errorf("byte %d gives selectors that the machine does not have: %s", i, set)
				}
			}
			(*log)[i] ^= 0x41
		}
	}
	t.Logf("%d changed logs, %d of them lead to the quote", tried, accepted)
}

func TestEveryKindOfEK(t *testing.T) {
	for _, kind := range []string{"rsa2048", "ecc384"} {
		_, n := bootedNode(t, "direct", kind)
		s, c := n.begin(n.hello)
		v, err := s.Finish(n.whole(n.answer(c)), now)
		n.ok(err)
		if v.EKCertificate == nil {
			t.Errorf("%s: nobody vouches for it", kind)
		}
	}
}
