// SPDX-License-Identifier: Apache-2.0

package ima

import (
	"bytes"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"github.com/assay-id/assay/tpm/octets"
)

// machine is one genuine boot: its IMA log and PCRs at the quote, and later.
type machine struct {
	name       string
	log, drift []byte
	pcrs       map[int]Digest
	driftPCR   Digest
}

func machines(t testing.TB) []machine {
	var all []machine
	for _, name := range []string{"direct", "uki", "secure"} {
		all = append(all, machine{name, read(t, name, "binary_runtime_measurements"), read(t, name, "drift"),
			pcrs(t, name, "pcrs.txt"), pcrs(t, name, "drift-pcrs.txt")[10]})
	}
	return all
}

func read(t testing.TB, path ...string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(append([]string{"testdata"}, path...)...))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func pcrs(t testing.TB, path ...string) map[int]Digest {
	t.Helper()
	all := map[int]Digest{}
	for line := range strings.Lines(string(read(t, path...))) {
		index, value, _ := strings.Cut(line, ":")
		if n, err := strconv.Atoi(strings.TrimSpace(index)); err == nil {
			all[n] = digest(t, strings.TrimPrefix(strings.TrimSpace(value), "0x"))
		}
	}
	return all
}

func digest(t testing.TB, text string) Digest {
	t.Helper()
	b, err := hex.DecodeString(strings.ToLower(text))
	if err != nil || len(b) != 32 {
		t.Fatalf("%q is not a SHA-256", text)
	}
	return Digest(b)
}

func (m machine) replay(t testing.TB) (State, []Entry) {
	t.Helper()
	s, entries, err := State{}.Advance(m.log, m.pcrs[10])
	if err != nil {
		t.Fatalf("%s: %v", m.name, err)
	}
	return s, entries
}

func TestGenuine(t *testing.T) {
	for _, m := range machines(t) {
		s, entries := m.replay(t)
		var all []byte
		for n := range 10 {
			d := m.pcrs[n]
			all = append(all, d[:]...)
		}
		want := State{PCR: m.pcrs[10], Entries: 5, Offset: int64(len(m.log)), BootAggregate: sha256.Sum256(all), Kernels: 1}
		if s != want {
			t.Errorf("%s: got %+v, want %+v", m.name, s, want)
		}
		var names []string
		for _, e := range entries {
			names = append(names, e.Name)
		}
		if got := strings.Join(names, " "); got != "boot_aggregate /init /bin/busybox /lib/modules/01-efivarfs.ko /bin/guestprobe" {
			t.Errorf("%s: files %s", m.name, got)
		}
		if e, ok := Find(entries, digest(t, "29be56d72a870b9b1a46789719513f214bf17f1865231a6ad781096e36995639")); !ok || e.Number != 4 {
			t.Errorf("%s: the agent is not found: %+v", m.name, e)
		}
	}
}

// TestIncrements: a state that was stored goes on where it stood, and needs the new bytes only.
func TestIncrements(t *testing.T) {
	for _, m := range machines(t) {
		s, _ := m.replay(t)
		stored, err := json.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		var again State
		if err := json.Unmarshal(stored, &again); err != nil || again != s {
			t.Fatalf("%+v came back as %+v: %v", s, again, err)
		}
		if same, entries, err := again.Advance(m.drift[again.Offset:], m.pcrs[10]); err != nil || same != s || len(entries) > 0 {
			t.Errorf("%s: an unchanged quote: %+v %v %v", m.name, same, entries, err)
		}
		next, entries, err := again.Advance(m.drift[again.Offset:], m.driftPCR)
		if err != nil || len(entries) != 1 || entries[0].Name != "/root/drift" || entries[0].Number != 5 || next.Entries != 6 || next.Offset != int64(len(m.drift)) || next.BootAggregate != s.BootAggregate {
			t.Errorf("%s: after the drift: %+v %+v %v", m.name, next, entries, err)
		}
		if old, _, err := (State{}).Advance(m.drift, m.pcrs[10]); err != nil || old != s {
			t.Errorf("%s: the old quote is not a prefix of the longer log: %+v %v", m.name, old, err)
		}
		if kept, _, err := s.Advance(nil, m.driftPCR); !errors.Is(err, ErrNotReached) || kept != s {
			t.Errorf("%s: without the new entry: %v", m.name, err)
		}
		if _, _, err := s.Advance(m.drift, m.driftPCR); !errors.Is(err, ErrNotReached) {
			t.Errorf("%s: entries twice: %v", m.name, err)
		}
		if _, _, err := (State{}).Advance(m.drift, Digest{1}); !errors.Is(err, ErrNotReached) {
			t.Errorf("%s: another machine's PCR 10: %v", m.name, err)
		}
	}
}

// try judges a changed log: it is refused, or the same entries come out of it.
func try(t testing.TB, log []byte, quoted Digest, genuine []Entry, what string, args ...any) bool {
	_, entries, err := State{}.Advance(log, quoted)
	if err == nil && !reflect.DeepEqual(entries, genuine) {
		t.Errorf(what+": forged: %+v", append(args, entries)...)
	}
	return err == nil
}

// TestEveryByte changes every byte of all six logs in every bit.
func TestEveryByte(t *testing.T) {
	logs, accepted := 0, 0
	for _, m := range machines(t) {
		for _, v := range []struct {
			log    []byte
			quoted Digest
		}{{m.log, m.pcrs[10]}, {m.drift, m.driftPCR}} {
			_, genuine, err := State{}.Advance(v.log, v.quoted)
			if err != nil {
				t.Fatal(err)
			}
			log := bytes.Clone(v.log)
			for i := range log {
				for _, flip := range []byte{1, 2, 4, 8, 16, 32, 64, 128, 255} {
					log[i] ^= flip
					if logs++; try(t, log, v.quoted, genuine, "%s: byte %d ^ %#x", m.name, i, flip) {
						accepted++
					}
					log[i] ^= flip
				}
				if try(t, log[:i], v.quoted, genuine, "%s: the first %d bytes", m.name, i) {
					t.Errorf("%s: the first %d bytes lead to the quote", m.name, i)
				}
				if i+4 <= len(log) {
					huge := bytes.Clone(log)
					binary.LittleEndian.PutUint32(huge[i:], math.MaxUint32)
					try(t, huge, v.quoted, genuine, "%s: huge number at %d", m.name, i)
				}
			}
		}
	}
	t.Logf("%d mutated logs, %d of them lead to the quote", logs, accepted)
	if accepted > 0 {
		t.Errorf("%d changed logs were accepted, although every byte but labels counts", accepted)
	}
}

// TestOrder: entries may be neither dropped, doubled nor swapped.
func TestOrder(t *testing.T) {
	for _, m := range machines(t) {
		_, genuine := m.replay(t)
		var parts [][]byte
		for r := octets.Little(m.log); len(r.Rest) > 0; {
			before := r.Rest
			if _, _, err := readEntry(&r); err != nil {
				t.Fatal(err)
			}
			parts = append(parts, before[:len(before)-len(r.Rest)])
		}
		for i := range parts {
			for j := range parts {
				changed := append([][]byte{}, parts...)
				changed[i], changed[j] = changed[j], changed[i]
				if try(t, bytes.Join(changed, nil), m.pcrs[10], genuine, "swapped") != (i == j) {
					t.Errorf("%s: entries %d and %d swapped", m.name, i, j)
				}
			}
			without := append(append([][]byte{}, parts[:i]...), parts[i+1:]...)
			twice := append(append([][]byte{}, parts[:i+1]...), parts[i:]...)
			if try(t, bytes.Join(without, nil), m.pcrs[10], genuine, "without") || (try(t, bytes.Join(twice, nil), m.pcrs[10], genuine, "twice") && i < len(parts)-1) {
				t.Errorf("%s: entry %d missing or doubled", m.name, i)
			}
		}
	}
}

// field and entry build entries as the kernel writes them.
func field(b ...[]byte) []byte {
	data := bytes.Join(b, nil)
	return append(binary.LittleEndian.AppendUint32(nil, uint32(len(data))), data...)
}

func entry(pcr uint32, template string, sum []byte, data []byte) []byte {
	b := append(binary.LittleEndian.AppendUint32(nil, pcr), sum...)
	return append(append(b, field([]byte(template))...), data...)
}

func ng(template, digest, name string, more ...[]byte) []byte {
	data := append(field([]byte(digest)), field([]byte(name+"\x00"))...)
	for _, m := range more {
		data = append(data, field(m)...)
	}
	sum := sha1.Sum(data)
	return entry(10, template, sum[:], field(data))
}

// chain is what a TPM does: PCR 10 after digests were extended.
func chain(digests ...Digest) (pcr Digest) {
	for _, d := range digests {
		pcr = sha256.Sum256(append(pcr[:], d[:]...))
	}
	return pcr
}

func dataDigest(e []byte, template string) Digest {
	return sha256.Sum256(e[4+20+4+len(template)+4:])
}

// TestTemplates: entries that the genuine logs lack. The hashes are computed here as the kernel's
// documentation has it, independent of the reader.
func TestTemplates(t *testing.T) {
	content := sha256.Sum256([]byte("file"))
	old := sha1.Sum([]byte("file"))
	oldData := append(append(old[:], "/bin/old"...), make([]byte, 256-len("/bin/old"))...)
	oldSum := sha1.Sum(oldData)
	violation := Digest(bytes.Repeat([]byte{0xff}, 32))
	for _, c := range []struct {
		name   string
		log    []byte
		extend Digest
		want   Entry
	}{
		{"ima-ng", ng("ima-ng", "sha256:\x00"+string(content[:]), "/bin/x"), Digest{}, Entry{Algorithm: "sha256", FileDigest: content[:], Name: "/bin/x"}},
		{"ima-ngv2", ng("ima-ngv2", "verity:sha256:\x00"+string(content[:]), "/bin/x"), Digest{}, Entry{Kind: "verity", Algorithm: "sha256", FileDigest: content[:], Name: "/bin/x"}},
		{"ima-buf", ng("ima-buf", "sha256:\x00"+string(content[:]), "kexec-cmdline", []byte("quiet")), Digest{}, Entry{Algorithm: "sha256", FileDigest: content[:], Name: "kexec-cmdline"}},
		{"ima", entry(10, "ima", oldSum[:], append(old[:], field([]byte("/bin/old"))...)), sha256.Sum256(oldData), Entry{Algorithm: "sha1", FileDigest: old[:], Name: "/bin/old"}},
		{"violation", entry(10, "ima-ng", make([]byte, 20), field(field([]byte("sha256:\x00"+string(make([]byte, 32)))), field([]byte("/etc/x\x00")))), violation, Entry{Violation: true}},
	} {
		extend := c.extend
		if extend.IsZero() {
			extend = dataDigest(c.log, c.name)
		}
		s, entries, err := State{}.Advance(c.log, chain(extend))
		if err != nil || len(entries) != 1 || !reflect.DeepEqual(entries[0], c.want) || s.Violations != map[bool]uint64{true: 1}[c.want.Violation] {
			t.Errorf("%s: %+v %+v %v", c.name, s, entries, err)
		}
	}
	for what, log := range map[string][]byte{
		"another PCR":        entry(11, "ima-ng", make([]byte, 20), field()),
		"unknown template":   ng("d-ng|n-ng|uid", "sha256:\x00x", "/bin/x", nil),
		"too few fields":     ng("ima-sig", "sha256:\x00x", "/bin/x"),
		"too many fields":    ng("ima-ng", "sha256:\x00x", "/bin/x", nil),
		"no digest":          ng("ima-ng", "sha256", "/bin/x"),
		"two names":          ng("ima-ng", "sha256:\x00x", "/bin/x\x00y"),
		"huge template name": entry(10, strings.Repeat("x", 300), make([]byte, 20), field()),
	} {
		if _, _, err := (State{}).Advance(log, Digest{1}); err == nil || errors.Is(err, ErrNotReached) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if _, _, err := (State{}).Advance(make([]byte, MaxChunk+1), Digest{1}); err == nil || errors.Is(err, ErrNotReached) {
		t.Errorf("a log over the limit: %v", err)
	}
}

// TestRelabelled: templates with as many fields can be told as each other, and it changes nothing. So
// a file can not pass as a buffer that nobody judges.
func TestRelabelled(t *testing.T) {
	m := machines(t)[0]
	s, genuine := m.replay(t)
	if !try(t, bytes.ReplaceAll(m.log, []byte("ima-sig"), []byte("ima-buf")), s.PCR, genuine, "ima-sig as ima-buf") {
		t.Error("the other label was refused: then it is not the entries that count")
	}
	if try(t, bytes.ReplaceAll(m.log, []byte("\x07\x00\x00\x00ima-sig"), []byte("\x06\x00\x00\x00ima-ng")), s.PCR, genuine, "ima-sig as ima-ng") {
		t.Error("a field was hidden")
	}
}

// TestKexec: after kexec another kernel's boot aggregate follows, and there is none to rely on.
func TestKexec(t *testing.T) {
	m := machines(t)[0]
	s, _ := m.replay(t)
	again := ng("ima-ng", "sha256:\x00"+string(s.BootAggregate[:]), "boot_aggregate")
	d := dataDigest(again, "ima-ng")
	next, _, err := s.Advance(again, sha256.Sum256(append(s.PCR[:], d[:]...)))
	if err != nil || !next.BootAggregate.IsZero() || next.Kernels != 2 {
		t.Errorf("%+v %v", next, err)
	}
}

func TestAllowList(t *testing.T) {
	m := machines(t)[0]
	_, golden := m.replay(t)
	list, err := Learn(golden)
	if err != nil || list.Len() != 4 {
		t.Fatalf("learned %v: %v", list, err)
	}
	list.names[Digest{1}] = "odd\nname \\ of a file"
	var text bytes.Buffer
	if err := list.Write(&text); err != nil {
		t.Fatal(err)
	}
	again, err := ParseAllowList(&text)
	if err != nil || !reflect.DeepEqual(again, list) {
		t.Fatalf("the list came back as %v: %v", again, err)
	}
	if unknown := Judge(golden, again); len(unknown) > 0 {
		t.Errorf("the golden machine itself: %v", unknown)
	}
	_, drifted, err := State{}.Advance(m.drift, m.driftPCR)
	if err != nil {
		t.Fatal(err)
	}
	unknown := Judge(drifted, again)
	if len(unknown) != 1 || unknown[0].String() != `5: sha256:7268f0f57f96b1b52f03d40bb8df1bfedc8949ed99d0066e89707d17cedd69c3 "/root/drift": not in the allow-list` {
		t.Errorf("the drift: %v", unknown)
	}
	content := sha256.Sum256([]byte("file"))
	bad := []Entry{{Number: 1, Violation: true}, {Number: 2, Algorithm: "sha1", FileDigest: content[:20]},
		{Number: 3, Kind: "verity", Algorithm: "sha256", FileDigest: golden[1].FileDigest}, {Number: 9, Algorithm: "sha256", FileDigest: content[:], Name: bootAggregate}}
	if unknown := Judge(bad, again); len(unknown) != len(bad) {
		t.Errorf("of %d bad entries these were found: %v", len(bad), unknown)
	}
	if _, err := Learn(bad); err == nil {
		t.Error("a violation was learned")
	}
	for _, text := range []string{"x", "00", strings.Repeat("0", 64) + " x", strings.Repeat("0", 64) + "  ", strings.Repeat("0", 63) + "g  x", strings.Repeat("x", 2*maxLine)} {
		if l, err := ParseAllowList(strings.NewReader(text)); err == nil && text[len(text)-1] != ' ' {
			t.Errorf("%.80q is a list of %d", text, l.Len())
		}
	}
}

// FuzzIMA: whatever the log, Advance ends, and what it accepts leads to the quote.
func FuzzIMA(f *testing.F) {
	m := machines(f)[2]
	quoted := m.pcrs[10]
	f.Add(m.log, quoted[:])
	f.Add(m.drift, m.driftPCR[:])
	f.Add(ng("ima-ng", "sha256:\x00x", "/bin/x"), quoted[:])
	f.Add(entry(10, "ima", make([]byte, 20), append(make([]byte, 20), field([]byte("/bin/old"))...)), quoted[:])
	_, genuine := m.replay(f)
	f.Fuzz(func(t *testing.T, log, pcr []byte) {
		if s, entries, err := (State{}).Advance(log, quoted); err == nil && (s.PCR != quoted || !reflect.DeepEqual(entries, genuine)) {
			t.Errorf("forged: %+v", entries)
		}
		// All entries that can be read, to the PCR that they lead to.
		var s State
		r := octets.Little(log)
		for len(r.Rest) > 0 {
			e, d, err := readEntry(&r)
			if err != nil {
				return
			}
			e.Number = s.Entries
			s.add(&e, d)
			_ = Judge([]Entry{e}, &AllowList{})
		}
		if got, entries, err := (State{}).Advance(log, s.PCR); err != nil || got.PCR != s.PCR || uint64(len(entries)) != got.Entries || got.Offset > int64(len(log)) {
			t.Errorf("a log that can be read does not replay: %+v %v", got, err)
		}
	})
}

// FuzzAllowList: a list that was read is written and read as the same.
func FuzzAllowList(f *testing.F) {
	f.Add("# list\n9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08  /bin/x\n")
	f.Add(`\9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08 *a\nb\\c`)
	f.Fuzz(func(t *testing.T, text string) {
		l, err := ParseAllowList(strings.NewReader(text))
		if err != nil {
			return
		}
		var out bytes.Buffer
		if err := l.Write(&out); err != nil {
			t.Fatal(err)
		}
		again, err := ParseAllowList(&out)
		if err != nil || again.Len() != l.Len() {
			t.Fatalf("%q was written as a list that can not be read: %v", text, err)
		}
		for d := range l.names {
			if !again.Has(d) {
				t.Fatalf("%v got lost", d)
			}
		}
	})
}

// BenchmarkAdvance replays a log of 10,000 entries.
func BenchmarkAdvance(b *testing.B) {
	var log []byte
	var pcr Digest
	for i := range 10_000 {
		content := sha256.Sum256([]byte(strconv.Itoa(i)))
		e := ng("ima-ng", "sha256:\x00"+string(content[:]), "/usr/lib/x86_64-linux-gnu/lib"+strconv.Itoa(i)+".so")
		d := dataDigest(e, "ima-ng")
		pcr = sha256.Sum256(append(pcr[:], d[:]...))
		log = append(log, e...)
	}
	b.SetBytes(int64(len(log)))
	for b.Loop() {
		if _, _, err := (State{}).Advance(log, pcr); err != nil {
			b.Fatal(err)
		}
	}
}
