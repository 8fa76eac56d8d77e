// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"crypto/sha256"
	"reflect"
	"strings"
	"testing"
)

// TestParseGRUB: which sequences of commands say what was started.
func TestParseGRUB(t *testing.T) {
	for _, c := range []struct {
		lines       string // separated by |
		commandLine string // "" if it can not be told
		initrds     int
	}{
		{"set x=1|linux /vmlinuz quiet|/vmlinuz quiet|initrd /initrd.img|boot", "BOOT_IMAGE=/vmlinuz quiet", 1},
		{"echo Loading|linux /vmlinuz|/vmlinuz|echo more|initrd /ucode /initrd.img", "BOOT_IMAGE=/vmlinuz", 2},
		{"linuxefi /vmlinuz a|/vmlinuz a", "BOOT_IMAGE=/vmlinuz a", 0},
		{"linux /evil a|/evil a|linux /vmlinuz|/vmlinuz", "", 0},              // two kernels
		{"linux /vmlinuz|echo|/vmlinuz", "", 0},                               // a function that is called linux
		{"linux /vmlinuz|/evil", "", 0},                                       // not what was loaded
		{"linux /vmlinuz|/vmlinuz|chainloader /evil", "", 0},                  // loads something else
		{"linux /vmlinuz|/vmlinuz|insmod evil|initrd /initrd.img", "", 0},     // reads a file in between
		{"linux /vmlinuz|/vmlinuz|initrd /a|initrd /b", "", 0},                // the second replaces the first
		{"linux /vmlinuz|/vmlinuz|initrd newc:init:/evil /initrd.img", "", 0}, // one file becomes a part of another
		{"linux|", "", 0},
		{"linux /vmlinuz", "", 0},
		{"echo", "", 0},
	} {
		commandLine, initrds, err := parseGRUB(strings.Split(c.lines, "|"))
		if commandLine != c.commandLine || initrds != c.initrds || (err == nil) != (c.commandLine != "") {
			t.Errorf("%s: %q with %d initrds, %v", c.lines, commandLine, initrds, err)
		}
	}
}

// TestGRUBFiles: kernel and initrd are told by their places, whatever was read before.
func TestGRUBFiles(t *testing.T) {
	options := Digest(sha256.Sum256(loadOptions("BOOT_IMAGE=/vmlinuz")))
	cfg, kernel, ucode, initrd, both := Digest{1}, Digest{2}, Digest{3}, Digest{4}, Digest{5}
	for _, c := range []struct {
		files          []Digest
		initrds        int
		kernel, initrd Digest
		ok             bool
	}{
		{[]Digest{cfg, kernel, initrd}, 1, kernel, initrd, true},
		{[]Digest{cfg, kernel}, 0, kernel, Digest{}, true},
		{[]Digest{cfg, kernel, ucode, initrd}, 2, kernel, Digest{}, true},
		{[]Digest{cfg, kernel, ucode, initrd, options, both}, 2, kernel, both, true}, // GRUB ≥ 2.12
		{[]Digest{cfg, kernel, options}, 0, kernel, Digest{}, true},
		{[]Digest{cfg, kernel, initrd, options}, 1, Digest{}, Digest{}, false}, // the stub got no initrd
		{[]Digest{cfg, kernel, options, initrd}, 0, Digest{}, Digest{}, false}, // or one that GRUB did not give
		{[]Digest{cfg, kernel, options, initrd, initrd}, 1, Digest{}, Digest{}, false},
		{[]Digest{initrd}, 1, Digest{}, Digest{}, false},
		{nil, 0, Digest{}, Digest{}, false},
	} {
		kernel, initrd, ok := grubFiles(c.files, "BOOT_IMAGE=/vmlinuz", c.initrds)
		if kernel != c.kernel || initrd != c.initrd || ok != c.ok {
			t.Errorf("%v with %d initrds: %v %v %v", c.files, c.initrds, kernel, initrd, ok)
		}
	}
}

// reboot makes a log and its quote, sealed, from the events of a genuine boot, changed.
func reboot(t *testing.T, m machine, change func(*Event)) machine {
	t.Helper()
	all := events(t, m)
	for i := range all {
		before := all[i].Digest
		change(&all[i])
		if all[i].Digest == before && sha256.Sum256(all[i].Data) != before {
			continue
		}
		all[i].Digest = sha256.Sum256(all[i].Data)
	}
	m.log = encode(all)
	l := &Log{all}
	pcrs := map[int]Digest{}
	for n, c := range l.chains() {
		pcrs[n] = c.replay(Digest{})
	}
	m.quote.PCRs = pcrs
	m.quote.BootAggregate, _ = BootAggregate(pcrs)
	return m
}

// TestWeakSecureBoot: what GRUB measured counts with Secure Boot only, and with shim's checks on.
func TestWeakSecureBoot(t *testing.T) {
	m := machines(t)[2]
	same := reboot(t, m, func(*Event) {}).boot(t)
	if !reflect.DeepEqual(same, m.boot(t)) {
		t.Fatalf("the same boot: %+v", same)
	}
	off := reboot(t, m, func(e *Event) {
		if v, ok := parseVariable(e.Data); ok && v.name == "SecureBoot" {
			e.Data = append(e.Data[:len(e.Data)-1:len(e.Data)-1], 0)
			e.Digest = Digest{}
		}
	}).boot(t)
	if off.SecureBoot != SecureBootDisabled || off.Kernel != (Digest{}) || off.CommandLine != "" || off.Profile != "" || len(off.Commands) == 0 || !off.Sealed {
		t.Errorf("Secure Boot off: %+v", off)
	}
	insecure := reboot(t, m, func(e *Event) {
		if v, ok := parseVariable(e.Data); ok && v.name == "MokListRT" {
			e.Data = variable(guidShim, "MokSBState", []byte{1})
			e.Digest = Digest{}
		}
	}).boot(t)
	if !insecure.ShimInsecure || insecure.Kernel != (Digest{}) || insecure.Profile != "" || len(insecure.Authorities) != 1 {
		t.Errorf("shim's checks off: %+v", insecure)
	}
}

// variable writes a UEFI_VARIABLE_DATA.
func variable(owner guid, name string, data []byte) []byte {
	units := loadOptions(name)
	units = units[:len(units)-2]
	b := append(owner[:], byte(len(units)/2), 0, 0, 0, 0, 0, 0, 0, byte(len(data)), byte(len(data)>>8), 0, 0, 0, 0, 0, 0)
	return append(append(b, units...), data...)
}

// TestPCR7: what the firmware says, and says twice.
func TestPCR7(t *testing.T) {
	on := measured(7, string(variable(guidGlobal, "SecureBoot", []byte{1})))
	off := measured(7, string(variable(guidGlobal, "SecureBoot", []byte{0})))
	separator := measured(7, "\x00\x00\x00\x00")
	db := measured(7, string(variable(guidSecurity, "db", make([]byte, 100))))
	sbat := measured(7, string(variable(guidShim, "SbatLevel", []byte("sbat,1"))))
	for _, c := range []struct {
		name  string
		chain chain
		want  Boot
	}{
		{"regular", chain{on, db, separator, sbat}, Boot{SecureBoot: SecureBootEnabled, SBAT: "sbat,1", DB: newVariable(make([]byte, 100))}},
		{"other separator", chain{on, measured(7, "\xff\xff\xff\xff")}, Boot{SecureBoot: SecureBootEnabled}},
		{"a driver's authority", chain{on, db, db, separator}, Boot{SecureBoot: SecureBootEnabled, DB: newVariable(make([]byte, 100)),
			Authorities: []Authority{{"db", sha256.Sum256(make([]byte, 84)), make([]byte, 84)}}}},
		{"debug mode", chain{measured(7, "UEFI Debug Mode"), on, separator}, Boot{SecureBoot: SecureBootEnabled, Notices: []string{"UEFI Debug Mode"}}},
		{"said after the separator", chain{separator, on}, Boot{Authorities: nil}},
		{"said twice", chain{off, on, separator}, Boot{}},
		{"no separator", chain{on}, Boot{}},
		{"an error's separator", chain{on, measured(7, "\x01\x00\x00\x00")}, Boot{}},
		{"SBAT twice", chain{on, separator, sbat, sbat}, Boot{}},
		{"an event that can not be read", chain{on, separator, {Digest: Digest{1}}}, Boot{}},
		{"another owner's variable", chain{measured(7, string(variable(guidShim, "SecureBoot", []byte{1}))), separator}, Boot{}},
		{"neither 0 nor 1", chain{measured(7, string(variable(guidGlobal, "SecureBoot", []byte{2}))), separator}, Boot{}},
	} {
		b := Boot{Sealed: true}
		for i := range c.chain {
			c.chain[i].Verified = c.chain[i].Digest == sha256.Sum256(c.chain[i].Data)
		}
		b.readPCR7(c.chain)
		b.Absent, c.want.Sealed = nil, true
		if !reflect.DeepEqual(b, c.want) {
			t.Errorf("%s: got %+v, want %+v", c.name, b, c.want)
		}
	}
}

// TestSignatures: databases that are not what they should be.
func TestSignatures(t *testing.T) {
	m := machines(t)[2].boot(t)
	for n := range m.DB.Data {
		cut := newVariable(m.DB.Data[:n])
		if s, err := cut.Signatures(); err == nil && len(s) > 1 {
			t.Errorf("the first %d bytes of db have %d signatures", n, len(s))
		}
	}
	for i := range 28 {
		bad := newVariable(append([]byte{}, m.DBX.Data...))
		bad.Data[i] ^= 0xff
		if _, err := bad.Signatures(); err == nil && bad.Covers(m.DBX) {
			t.Errorf("byte %d of dbx's list can be anything", i)
		}
	}
}
