// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/eventlog"
	"github.com/assay-id/assay/tpm/ima"
	"github.com/assay-id/assay/tpm/verify"
)

// everyPCR is what the boots in testdata measured; 10 is IMA's.
var everyPCR = []int{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 14}

const plain = "console=ttyS0 panic=-1 rootfstype=ramfs ima_policy=tcb ima_hash=sha256"

// commandLines are /proc/cmdline of the genuine boots in ../eventlog/testdata and ../ima/testdata.
var commandLines = map[string]string{"direct": plain + "  initrd=initrd", "uki": plain, "secure": "BOOT_IMAGE=/vmlinuz " + plain}

func read(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{".."}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// snapshot is a genuine boot.
func snapshot(t testing.TB, name string) Snapshot {
	t.Helper()
	s := Snapshot{PCRs: map[int]selectors.Digest{}, CommandLine: commandLines[name],
		BootLog: read(t, "eventlog", "testdata", name, "binary_bios_measurements"), IMALog: read(t, "ima", "testdata", name, "binary_runtime_measurements")}
	for line := range strings.Lines(string(read(t, "ima", "testdata", name, "pcrs.txt"))) {
		index, value, _ := strings.Cut(line, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(index)); err == nil {
			b, err := hex.DecodeString(strings.ToLower(strings.TrimPrefix(strings.TrimSpace(value), "0x")))
			if err != nil {
				t.Fatal(err)
			}
			s.PCRs[n] = selectors.Digest(b)
		}
	}
	return s
}

// machine is what a verifier makes of a snapshot.
func machine(t testing.TB, s Snapshot) *Machine {
	t.Helper()
	m := &Machine{Facts: selectors.NodeFacts{PCRs: s.PCRs, Firmware: 0x2019102300163636, Manufacturer: "id:00001014"}}
	var err error
	if m.IMA, m.Files, err = (ima.State{}).Advance(s.IMALog, ima.Digest(s.PCRs[10])); err != nil {
		t.Fatal(err)
	}
	quote := eventlog.Quote{PCRs: map[int]eventlog.Digest{}, CommandLine: s.CommandLine}
	for n, d := range s.PCRs {
		quote.PCRs[n] = eventlog.Digest(d)
	}
	quote.BootAggregate, _ = eventlog.BootAggregate(quote.PCRs)
	if m.BootLog, err = eventlog.Parse(s.BootLog); err != nil {
		t.Fatal(err)
	}
	if m.Boot, err = m.BootLog.Replay(quote); err != nil {
		t.Fatal(err)
	}
	m.Facts.Boot = verify.BootFacts(m.Boot)
	return m
}

// rebooted is the same machine after it measured another digest in the place of one: the log leads
// to the new PCR.
func rebooted(t testing.TB, s Snapshot, pcr int, old, new eventlog.Digest) Snapshot {
	t.Helper()
	if !bytes.Contains(s.BootLog, old[:]) {
		t.Fatalf("nothing has the digest %s", old)
	}
	s.BootLog = bytes.Replace(bytes.Clone(s.BootLog), old[:], new[:], 1)
	log, err := eventlog.Parse(s.BootLog)
	if err != nil {
		t.Fatal(err)
	}
	var value eventlog.Digest
	for _, e := range log.Events {
		if int(e.PCR) == pcr && e.Type != eventlog.NoAction {
			value = eventlog.Extend(value, e.Digest)
		}
	}
	pcrs := map[int]selectors.Digest{}
	for n, d := range s.PCRs {
		pcrs[n] = d
	}
	pcrs[pcr] = selectors.Digest(value)
	s.PCRs = pcrs
	return s
}

func loadOptions(text string) eventlog.Digest {
	var b []byte
	for _, c := range text + "\x00" {
		b = append(b, byte(c), 0)
	}
	return sha256.Sum256(b)
}

func learn(t testing.TB, name string) (*Golden, *ima.AllowList) {
	t.Helper()
	g, files, err := Learn(snapshot(t, name), name, time.Unix(1, 0))
	if err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(g)
	if err != nil {
		t.Fatal(err)
	}
	again, err := ParseGolden(data)
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(g, again) {
		t.Errorf("%s: written and read again, the golden machine is another", name)
	}
	return again, files
}

func TestGoldenMachineIsLikeItself(t *testing.T) {
	for name := range commandLines {
		golden, files := learn(t, name)
		g := &Group{Golden: golden, RequirePCRs: everyPCR, IMA: []List{{"golden", files}}, NoViolations: true}
		m := machine(t, snapshot(t, name))
		if got := g.Judge(m); len(got) > 0 {
			t.Errorf("%s: %v", name, got)
		}
		if got := g.Allowed(m.Files); !reflect.DeepEqual(got, []string{"golden"}) {
			t.Errorf("%s: allowed by %v", name, got)
		}
	}
}

// TestOneByteIsNamed changes a byte of what was booted: the machine is refused and the event named.
func TestOneByteIsNamed(t *testing.T) {
	s := snapshot(t, "direct")
	boot := machine(t, s).Boot
	initrd := boot.Initrd
	initrd[0]++
	claim := s
	claim.CommandLine = strings.Replace(s.CommandLine, "ttyS0", "ttyS1", 1)
	kernel := boot.KernelImage
	kernel[0]++
	golden, _ := learn(t, "direct")
	g := &Group{Golden: golden, RequirePCRs: everyPCR}
	for what, c := range map[string]struct {
		machine Snapshot
		pcr     string
		event   string
	}{
		"command line": {rebooted(t, claim, 9, loadOptions(s.CommandLine), loadOptions(claim.CommandLine)), "golden PCR 9", "kernel command line"},
		"initrd":       {rebooted(t, s, 9, boot.Initrd, initrd), "golden PCR 9", "initrd"},
		"kernel":       {rebooted(t, s, 4, boot.KernelImage, kernel), "golden PCR 4", "boot application"},
	} {
		got := g.Judge(machine(t, c.machine))
		if len(got) != 1 || got[0].Rule != c.pcr || !strings.Contains(got[0].Event, c.event+" differs: expected") {
			t.Errorf("%s: %v", what, got)
		}
		t.Log(got)
	}
}

func TestOtherMachine(t *testing.T) {
	golden, _ := learn(t, "secure")
	got := (&Group{Golden: golden}).Judge(machine(t, snapshot(t, "direct")))
	rules := map[string]bool{}
	for _, f := range got {
		rules[f.Rule] = true
	}
	if !rules["golden PCR 4"] || !rules["golden PCR 7"] {
		t.Errorf("%v", got)
	}
	// Without logs only the values differ.
	golden.log = nil
	for _, f := range (&Group{Golden: golden}).Judge(machine(t, snapshot(t, "direct"))) {
		if f.Event != "" || f.Expected == f.Found {
			t.Errorf("%v", f)
		}
	}
	if got := (&Group{Golden: golden, RequirePCRs: []int{9}}).Judge(&Machine{}); len(got) != 1 || got[0].Found != unproven {
		t.Errorf("a machine of which nothing is proven: %v", got)
	}
}

func TestRules(t *testing.T) {
	m := machine(t, snapshot(t, "secure"))
	b, other := m.Facts.Boot, selectors.Digest{1}
	signatures, err := m.Boot.DBX.Signatures()
	if err != nil || len(signatures) == 0 {
		t.Fatalf("%d revocations, %v", len(signatures), err)
	}
	revoked := selectors.Digest(signatures[len(signatures)-1].Data)
	for _, c := range []struct {
		rule         string
		kept, broken Group
	}{
		{"secure_boot", Group{SecureBoot: true}, Group{}},
		{"dbx", Group{DBXOf: []eventlog.Variable{m.Boot.DBX}}, Group{DBXOf: []eventlog.Variable{m.Boot.DB}}},
		{"dbx", Group{DBX: []selectors.Digest{revoked}}, Group{DBX: []selectors.Digest{revoked, other}}},
		{"authorities", Group{Authorities: append(b.Authorities, other)}, Group{Authorities: b.Authorities[:1]}},
		{"firmware_min", Group{FirmwareMin: m.Facts.Firmware}, Group{FirmwareMin: m.Facts.Firmware + 1}},
		{"manufacturers", Group{Manufacturers: []string{"id:49465800", "id:00001014"}}, Group{Manufacturers: []string{"id:49465800"}}},
		{"kernels", Group{Kernels: []selectors.Digest{other, b.Kernel}}, Group{Kernels: []selectors.Digest{other}}},
		{"kernels", Group{Kernels: []selectors.Digest{b.KernelImage}}, Group{Kernels: []selectors.Digest{b.Initrd}}},
		{"initrds", Group{Initrds: []selectors.Digest{b.Initrd}}, Group{Initrds: []selectors.Digest{b.Kernel}}},
		{"applications", Group{Applications: b.Applications}, Group{Applications: b.Applications[1:]}},
		{"command_lines", Group{CommandLines: []string{b.CommandLine}}, Group{CommandLines: []string{b.CommandLine + " "}}},
		{"arguments", Group{Arguments: []string{"ima_policy=tcb"}}, Group{Arguments: []string{"ima_policy"}}},
		{"lockdown", Group{Lockdown: "integrity", Kernels: []selectors.Digest{b.Kernel}}, Group{Lockdown: "integrity"}},
	} {
		if got := c.kept.Judge(m); len(got) > 0 {
			t.Errorf("%s: %v", c.rule, got)
		}
		got := c.broken.Judge(m)
		if c.rule != "secure_boot" && (len(got) == 0 || got[0].Rule != c.rule || got[0].Expected == "" || got[0].Found == "") {
			t.Errorf("%s is broken, and found was %v", c.rule, got)
		}
		// Of a machine without logs nothing is known, and no rule is kept.
		if got := c.kept.Judge(&Machine{}); len(got) == 0 {
			t.Errorf("%s is kept by a machine of which nothing is proven", c.rule)
		}
	}
	if got := (&Group{SecureBoot: true}).Judge(machine(t, snapshot(t, "direct"))); len(got) != 1 || got[0].Rule != "secure_boot" {
		t.Errorf("without Secure Boot: %v", got)
	}
	if got := (&Group{}).Judge(&Machine{}); len(got) > 0 {
		t.Errorf("no rules: %v", got)
	}
	for way, event := range map[string]string{"direct": "PCR 9 event", "uki": "PCR 9 event", "secure": "PCR 8 event"} {
		if got := (&Group{CommandLines: []string{"other"}}).Judge(machine(t, snapshot(t, way))); len(got) != 1 || !strings.HasPrefix(got[0].Event, event) {
			t.Errorf("%s: another command line, and found was %v", way, got)
		}
	}
}

func TestFiles(t *testing.T) {
	_, files := learn(t, "uki")
	g := &Group{IMA: []List{{"none", &ima.AllowList{}}, {"golden", files}}, NoViolations: true}
	s := snapshot(t, "uki")
	m := machine(t, s)
	if got := g.Judge(m); len(got) > 0 {
		t.Errorf("%v", got)
	}
	drift := Snapshot{PCRs: snapshot(t, "uki").PCRs}
	for line := range strings.Lines(string(read(t, "ima", "testdata", "uki", "drift-pcrs.txt"))) {
		if index, value, _ := strings.Cut(line, ":"); strings.TrimSpace(index) == "10" {
			b, _ := hex.DecodeString(strings.ToLower(strings.TrimPrefix(strings.TrimSpace(value), "0x")))
			drift.PCRs[10] = selectors.Digest(b)
		}
	}
	state, entries, err := m.IMA.Advance(read(t, "ima", "testdata", "uki", "drift")[m.IMA.Offset:], ima.Digest(drift.PCRs[10]))
	if err != nil {
		t.Fatal(err)
	}
	got := g.JudgeFiles(&Machine{IMA: state, Files: entries})
	if len(got) != len(entries) || len(got) == 0 || got[0].Rule != "ima" || !strings.Contains(got[0].Event, "not in the allow-list") {
		t.Errorf("%d new entries, found %v", len(entries), got)
	}
	state.Violations = 1
	if got := g.JudgeFiles(&Machine{IMA: state}); len(got) != 1 || got[0].Rule != "no_violations" {
		t.Errorf("a violation: %v", got)
	}
	if got := g.JudgeFiles(&Machine{}); len(got) != 1 || got[0].Found != unproven {
		t.Errorf("without a log: %v", got)
	}
}

func TestLearnRefuses(t *testing.T) {
	for what, change := range map[string]func(*Snapshot){
		"no PCRs":                    func(s *Snapshot) { s.PCRs = nil },
		"another machine's boot log": func(s *Snapshot) { s.BootLog = read(t, "eventlog", "testdata", "uki", "binary_bios_measurements") },
		"a boot log that is cut":     func(s *Snapshot) { s.BootLog = s.BootLog[:len(s.BootLog)-1] },
		"an IMA log of another boot": func(s *Snapshot) { s.IMALog = read(t, "ima", "testdata", "uki", "binary_runtime_measurements") },
	} {
		s := snapshot(t, "direct")
		change(&s)
		if _, _, err := Learn(s, "x", time.Now()); err == nil {
			t.Errorf("%s was learned", what)
		}
	}
}

// FuzzGolden reads every golden machine, and judges by it.
func FuzzGolden(f *testing.F) {
	g, _ := learn(f, "direct")
	data, err := json.Marshal(g)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(data)
	f.Add([]byte(`{"version":1,"pcrs":{"0":"0000000000000000000000000000000000000000000000000000000000000000"}}`))
	m := machine(f, snapshot(f, "direct"))
	f.Fuzz(func(t *testing.T, data []byte) {
		g, err := ParseGolden(data)
		if err != nil {
			return
		}
		for _, finding := range (&Group{Golden: g, RequirePCRs: everyPCR}).Judge(m) {
			if finding.String() == "" {
				t.Fatal("an empty finding")
			}
		}
		if again, err := json.Marshal(g); err != nil {
			t.Fatal(err)
		} else if _, err := ParseGolden(again); err != nil && len(again) <= maxGolden {
			t.Fatalf("what was read can not be read again: %v", err)
		}
	})
}
