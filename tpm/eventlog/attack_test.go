// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"math"
	"reflect"
	"slices"
	"testing"
)

// diagnosis are the fields of Boot that are no facts.
var diagnosis = map[string]bool{"Later": true, "Absent": true}

// checkFacts is the invariant of the package: whatever was done to a log that still replays to
// the genuine quote, each fact is the genuine one or missing.
func checkFacts(genuine, got *Boot) (field string, ok bool) {
	want, have := reflect.ValueOf(genuine).Elem(), reflect.ValueOf(got).Elem()
	for i := range have.NumField() {
		name, f := have.Type().Field(i).Name, have.Field(i)
		empty := f.IsZero() || (f.Kind() == reflect.Slice && f.Len() == 0)
		if !diagnosis[name] && !empty && !reflect.DeepEqual(f.Interface(), want.Field(i).Interface()) {
			return name, false
		}
	}
	return "", true
}

// try judges a log that somebody made from a genuine one. It reports whether it was accepted.
func try(t testing.TB, m machine, genuine *Boot, log []byte, what string, args ...any) bool {
	l, err := Parse(log)
	if err != nil {
		return false
	}
	b, err := l.Replay(m.quote)
	if err != nil {
		return false
	}
	if field, ok := checkFacts(genuine, b); !ok {
		t.Errorf("%s: "+what+": fact %s is forged: %+v", append([]any{m.name}, append(args, field, b)...)...)
	}
	return true
}

// TestEveryByte changes every byte of every log.
func TestEveryByte(t *testing.T) {
	flips := []byte{0x01, 0x80, 0xff}
	if testing.Short() {
		flips = flips[:1]
	}
	logs, accepted := 0, 0
	for _, m := range machines(t) {
		genuine := m.boot(t)
		log := bytes.Clone(m.log)
		for i := range log {
			for _, flip := range flips {
				log[i] ^= flip
				if try(t, m, genuine, log, "byte %d ^ %#x", i, flip) {
					accepted++
				}
				log[i] ^= flip
				logs++
			}
		}
	}
	t.Logf("%d mutated logs, %d of them replay to the quote", logs, accepted)
}

// TestEveryLength cuts the logs everywhere, and lets bytes follow.
func TestEveryLength(t *testing.T) {
	for _, m := range machines(t) {
		genuine := m.boot(t)
		all := events(t, m)
		for n := range m.log {
			if !try(t, m, genuine, m.log[:n], "the first %d bytes", n) {
				continue
			}
			l, err := Parse(m.log[:n])
			if err != nil {
				t.Fatal(err)
			}
			for _, missing := range all[len(l.Events):] {
				if missing.PCR < 8 && missing.Number <= len(all)-2 { // the last two are ExitBootServices
					t.Errorf("%s: the first %d bytes were accepted, although event %d is missing", m.name, n, missing.Number)
				}
			}
		}
		for n := 1; n < 40; n++ {
			if try(t, m, genuine, append(bytes.Clone(m.log), make([]byte, n)...), "%d more bytes", n) && n < 30 {
				t.Errorf("%s: %d bytes after the end were accepted", m.name, n)
			}
		}
	}
}

// encode writes a log with a SHA-256 bank only.
func encode(events []Event) []byte {
	le := binary.LittleEndian
	b := le.AppendUint32(nil, 0)
	b = le.AppendUint32(b, uint32(NoAction))
	b = append(b, make([]byte, 20)...)
	spec := append([]byte("Spec ID Event03\x00"), 0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0b, 0, 32, 0, 0)
	b = append(le.AppendUint32(b, uint32(len(spec))), spec...)
	for _, e := range events {
		b = le.AppendUint32(b, e.PCR)
		b = le.AppendUint32(b, uint32(e.Type))
		b = append(le.AppendUint32(b, 1), 0x0b, 0)
		b = append(b, e.Digest[:]...)
		b = append(le.AppendUint32(b, uint32(len(e.Data))), e.Data...)
	}
	return b
}

func events(t testing.TB, m machine) []Event {
	l, err := Parse(m.log)
	if err != nil {
		t.Fatal(err)
	}
	return l.Events
}

// TestOtherBanksDoNotMatter: the same log without the other banks gives the same facts.
func TestOtherBanksDoNotMatter(t *testing.T) {
	for _, m := range machines(t) {
		genuine := m.boot(t)
		m.log = encode(events(t, m))
		if got := m.boot(t); !reflect.DeepEqual(got, genuine) {
			t.Errorf("%s: got %+v, want %+v", m.name, got, genuine)
		}
	}
}

// TestEveryEvent drops, doubles, relabels and swaps events, and empties their data.
func TestEveryEvent(t *testing.T) {
	for _, m := range machines(t) {
		genuine, all := m.boot(t), events(t, m)
		for i, e := range all {
			if try(t, m, genuine, encode(slices.Delete(slices.Clone(all), i, i+1)), "without event %d", i+1) && e.PCR < 8 && !(e.PCR == 5 && i >= len(all)-2) {
				t.Errorf("%s: the log without event %d was accepted", m.name, i+1)
			}
			if try(t, m, genuine, encode(slices.Insert(slices.Clone(all), i, e)), "event %d twice", i+1) && e.PCR < 8 {
				t.Errorf("%s: the log with event %d twice was accepted", m.name, i+1)
			}
			for _, kind := range []EventType{0, 4, 5, 0xd, 0x7fffffff, 0x80000001, 0x80000003, 0x80000007, 0x800000e0, math.MaxUint32} {
				changed := slices.Clone(all)
				changed[i].Type = kind
				if !try(t, m, genuine, encode(changed), "event %d as %v", i+1, kind) {
					t.Errorf("%s: event %d as %v was refused, although types are labels", m.name, i+1, kind)
				}
			}
			changed := slices.Clone(all)
			changed[i].Data = nil
			try(t, m, genuine, encode(changed), "event %d without data", i+1)
			for j := range i {
				changed := slices.Clone(all)
				changed[i], changed[j] = changed[j], changed[i]
				if try(t, m, genuine, encode(changed), "events %d and %d swapped", i+1, j+1) && e.PCR < 8 && e.PCR == all[j].PCR && e.Digest != all[j].Digest {
					t.Errorf("%s: events %d and %d of one PCR were accepted the other way round", m.name, i+1, j+1)
				}
			}
		}
	}
}

// TestRelabelledText: GRUB's labels are not measured, so that they can be exchanged at will.
func TestRelabelledText(t *testing.T) {
	m := machines(t)[2]
	genuine, all := m.boot(t), events(t, m)
	for i := range all {
		if text, ok := commandText(all[i]); ok && all[i].PCR == 8 {
			all[i].Data = []byte("kernel_cmdline: " + text + "\x00")
		}
	}
	m.log = encode(all)
	if got := m.boot(t); !reflect.DeepEqual(got, genuine) {
		t.Errorf("other labels, other facts: %+v", got)
	}
}

// extendLater is what root can do on a running machine: extend PCRs and write log events for it.
func extendLater(t testing.TB, m machine, later ...Event) machine {
	all := events(t, m)
	pcrs := map[int]Digest{}
	for n, d := range m.quote.PCRs {
		pcrs[n] = d
	}
	for _, e := range later {
		pcrs[int(e.PCR)] = Extend(pcrs[int(e.PCR)], e.Digest)
		all = append(all, e)
	}
	m.log, m.quote.PCRs = encode(all), pcrs
	return m
}

// measured is an event that replays and whose data hashes to its digest.
func measured(pcr uint32, data string) Event {
	return Event{PCR: pcr, Type: 0xd, Digest: sha256.Sum256([]byte(data)), Data: []byte(data)}
}

// TestLaterExtensions: root, on a machine that booted something else, extends PCRs with what a good
// boot would have measured. No fact may come of it.
func TestLaterExtensions(t *testing.T) {
	secure := machines(t)[2]
	var authority, config Event
	for _, e := range events(t, secure) {
		if e.Type == 0x800000e0 && config.Data == nil && authority.Data == nil {
			authority = e
		}
		if v, ok := parseVariable(e.Data); ok && v.name == "SecureBoot" {
			config = e
		}
	}
	image := Event{PCR: 4, Type: 0x80000003, Digest: secure.boot(t).Applications[0]}
	for _, m := range machines(t) {
		genuine := m.boot(t)
		for _, later := range [][]Event{
			{config},
			{authority},
			{image},
			{measured(7, "\x00\x00\x00\x00"), config},
			{measured(8, "linux /good quiet"), measured(8, "/good quiet"), measured(9, "good kernel")},
			{measured(8, "initrd /good"), measured(9, "good initrd")},
			{measured(9, string(loadOptions("good"))), measured(9, "good initrd")},
			{measured(11, ".linux\x00"), measured(11, "good kernel")},
			{measured(11, ".cmdline\x00"), measured(11, "good")},
			{measured(14, "good keys")},
		} {
			forged := extendLater(t, m, later...)
			if later[0].PCR < 10 {
				forged.quote.CommandLine = "good"
			}
			l, err := Parse(forged.log)
			if err != nil {
				t.Fatal(err)
			}
			b, err := l.Replay(forged.quote)
			if err != nil {
				t.Errorf("%s: refused, although the log is complete: %v", m.name, err)
				continue
			}
			if later[0].PCR < 10 && b.Sealed {
				t.Errorf("%s: PCR %d moved and the seal holds", m.name, later[0].PCR)
			}
			field, ok := checkFacts(genuine, b)
			unsealed := map[uint32][]string{11: {"Sections"}, 14: {"MOK"}}[later[0].PCR]
			if !ok && !slices.Contains(unsealed, field) {
				t.Errorf("%s: root forged %s by extending PCR %d", m.name, field, later[0].PCR)
			}
		}
	}
}

// TestPCRsThatMovedOn: user space may extend 8 to 15 without logging. Their facts go, others stay.
func TestPCRsThatMovedOn(t *testing.T) {
	for _, m := range machines(t) {
		genuine := m.boot(t)
		for _, n := range []int{8, 9, 11, 12, 13, 14, 15} {
			moved := m
			moved.quote.PCRs = map[int]Digest{}
			for i, d := range m.quote.PCRs {
				moved.quote.PCRs[i] = d
			}
			moved.quote.PCRs[n] = Extend(m.quote.PCRs[n], Digest{1})
			b := moved.boot(t)
			if field, ok := checkFacts(genuine, b); !ok {
				t.Errorf("%s: PCR %d: fact %s changed", m.name, n, field)
			}
			if !slices.Equal(b.Later, []int{n}) || b.Sealed != (n > 9) || b.SecureBoot != genuine.SecureBoot {
				t.Errorf("%s: PCR %d moved: later %v, sealed %v, Secure Boot %q", m.name, n, b.Later, b.Sealed, b.SecureBoot)
			}
		}
		for n := range 8 {
			moved := m
			moved.quote.PCRs = map[int]Digest{n: {}}
			for i, d := range m.quote.PCRs {
				if i != n {
					moved.quote.PCRs[i] = d
				}
			}
			l, err := Parse(m.log)
			if err != nil {
				t.Fatal(err)
			}
			var mismatch *MismatchError
			if _, err := l.Replay(moved.quote); !errors.As(err, &mismatch) || mismatch.PCR != n {
				t.Errorf("%s: another PCR %d: %v", m.name, n, err)
			}
			delete(moved.quote.PCRs, n)
			if _, err := l.Replay(moved.quote); err == nil {
				t.Errorf("%s: PCR %d need not be quoted", m.name, n)
			}
		}
	}
}

// TestTails: what a log may lack.
func TestTails(t *testing.T) {
	m := machines(t)[1]
	genuine := m.boot(t)
	for _, word := range []string{"enter-initrd", "leave-initrd", "ready"} {
		pcrs := map[int]Digest{}
		for n, d := range m.quote.PCRs {
			pcrs[n] = d
		}
		pcrs[11] = Extend(pcrs[11], sha256.Sum256([]byte(word)))
		m.quote.PCRs = pcrs
	}
	b := m.boot(t)
	want(t, "phases", b.Phases, []string{"enter-initrd", "leave-initrd", "ready"})
	b.Phases = nil
	want(t, "other facts", b, genuine)

	all := events(t, m)
	m.log = encode(all[:len(all)-2]) // without ExitBootServices
	if b := m.boot(t); !b.ExitedBootServices {
		t.Error("the missing ExitBootServices was not found")
	}
}

// TestStartupLocality: the locality comes from the replay, not from the label.
func TestStartupLocality(t *testing.T) {
	m := machines(t)[0]
	l := &Log{Events: events(t, m)}
	m.quote.PCRs[0] = l.chains()[0].replay(Digest{31: 3})
	if b := m.boot(t); b.Locality != 3 || b.Sealed {
		t.Errorf("locality %d, sealed %v", b.Locality, b.Sealed)
	}
}

// TestWithoutSeal: without a boot aggregate only what the firmware said first is left.
func TestWithoutSeal(t *testing.T) {
	m := machines(t)[2]
	m.quote.BootAggregate = Digest{}
	b := m.boot(t)
	if b.SecureBoot != SecureBootEnabled || !b.DB.Known() || b.Sealed || b.Applications != nil || b.Authorities != nil ||
		b.Kernel != (Digest{}) || b.CommandLine != "" || b.SBAT != "" || len(b.Absent) == 0 {
		t.Errorf("%+v", b)
	}
}

// TestForeignClaims: a command line that was not measured is not believed.
func TestForeignClaims(t *testing.T) {
	for _, m := range machines(t)[:2] {
		for _, claim := range []string{"", "quiet", m.quote.CommandLine + " ", m.quote.CommandLine[1:]} {
			m.quote.CommandLine = claim
			if b := m.boot(t); b.CommandLine != "" || b.Initrd != (Digest{}) {
				t.Errorf("%s: claim %q is believed", m.name, claim)
			}
		}
	}
}

// TestHugeCounts: numbers in the log ask for more than there is.
func TestHugeCounts(t *testing.T) {
	m := machines(t)[0]
	for i := 0; i+4 <= len(m.log); i++ {
		log := bytes.Clone(m.log)
		binary.LittleEndian.PutUint32(log[i:], math.MaxUint32)
		try(t, m, m.boot(t), log, "huge number at %d", i)
	}
	if _, err := Parse(make([]byte, MaxLog+1)); err == nil {
		t.Error("a log over the limit was accepted")
	}
	if _, err := Parse(encode(make([]Event, MaxEvents+1))); err == nil {
		t.Error("too many events were accepted")
	}
	if _, err := Parse(encode(make([]Event, MaxEvents))); err != nil {
		t.Error(err)
	}
}
