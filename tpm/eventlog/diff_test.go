// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"crypto/sha256"
	"slices"
	"strings"
	"testing"
)

func diffs(t *testing.T, expected, found []Event) string {
	t.Helper()
	var all []string
	for _, d := range Diff(&Log{expected}, &Log{found}) {
		all = append(all, d.String())
	}
	return strings.Join(all, "\n")
}

// TestDiff changes one thing of each boot, as a machine would that booted it.
func TestDiff(t *testing.T) {
	all := machines(t)
	direct, uki, secure := events(t, all[0]), events(t, all[1]), events(t, all[2])
	other := sha256.Sum256([]byte("other"))
	change := func(log []Event, number int, d Digest, data string) []Event {
		changed := slices.Clone(log)
		changed[number-1].Digest = d
		if data != "" {
			changed[number-1].Data = []byte(data)
		}
		return changed
	}
	for _, c := range []struct {
		expected, found []Event
		want            string
	}{
		{secure, change(secure, 40, sha256.Sum256([]byte("/vmlinuz init=/bin/sh")), "kernel_cmdline: /vmlinuz init=/bin/sh\x00"),
			`PCR 8 event 40 (EV_IPL): kernel command line differs: expected "/vmlinuz ` + plainCommandLine + `", found "/vmlinuz init=/bin/sh"`},
		{direct, change(direct, 21, other, ""),
			"PCR 9 event 21 (EV_EVENT_TAG): kernel command line differs: expected sha256:ea59292446db05b3a0d1b117a01adbf94c045abe46ec61e28b93053d2dfbfc25, found sha256:" + Digest(other).String()},
		{direct, change(direct, 22, other, ""),
			"PCR 9 event 22 (EV_EVENT_TAG): initrd differs: expected sha256:e11dfad6d49bf9a85490c72f963fea1da581fa52f44f66274dc81cb6b7268209, found sha256:" + Digest(other).String()},
		{secure, change(secure, 42, other, ""),
			`PCR 9 event 42 (EV_IPL): file labelled "/initrd.img" differs: expected sha256:e1dec3a3d666f08b6b5f34180219b4b750dd7bb9569810e975cb580a00350e11, found sha256:` + Digest(other).String()},
		{uki, change(uki, 29, other, ""),
			"PCR 11 event 29 (EV_IPL): section .cmdline differs: expected sha256:8479569b8c8881aafe6999efb1efa0816d24e10ca51bf9e15771dd23b7eb4284, found sha256:" + Digest(other).String()},
		{secure, slices.Delete(slices.Clone(secure), 38, 39),
			"PCR 4 event 39 (EV_EFI_BOOT_SERVICES_APPLICATION): boot application is missing: expected sha256:5f21ff2c0d5d899842b28a8b19901ba72cf7a7ab93c02a77fadc6ff72be85b31"},
		{secure, slices.Insert(slices.Clone(secure), 45, Event{Number: 46, PCR: 7, Digest: other, Data: []byte("\x1b[2J")}),
			`PCR 7 event 46 (EV_PREBOOT_CERT): event labelled "\x1b[2J" is not expected: found sha256:` + Digest(other).String()},
		{uki, uki, ""},
	} {
		if got := diffs(t, c.expected, c.found); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
	if got := diffs(t, direct, secure); !strings.Contains(got, `PCR 7 event 4 (EV_EFI_VARIABLE_DRIVER_CONFIG): variable "SecureBoot" differs`) {
		t.Errorf("Secure Boot on: %s", got)
	}
}

// FuzzLog: whatever is sent, nothing ends the process, what is accepted is canonical, and no
// fact of a genuine boot is forged.
func FuzzLog(f *testing.F) {
	all := machines(f)
	for i, m := range all {
		f.Add(uint8(i), encode(events(f, m)))
	}
	f.Add(uint8(0), all[0].log)
	f.Add(uint8(0), encode([]Event{measured(7, "\x00\x00\x00\x00"), {PCR: 0xffffffff, Type: NoAction}, measured(8, "linux /a")}))
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		m := all[int(which)%len(all)]
		try(t, m, m.boot(t), data, "fuzzed")
		l, err := Parse(data)
		if err != nil {
			return
		}
		again, err := Parse(encode(l.Events))
		if err != nil || len(again.Events) != len(l.Events) {
			t.Fatalf("a log that was read can not be written: %v", err)
		}
		// Held against the PCRs that it leads to, every event takes part.
		q := Quote{PCRs: map[int]Digest{}, CommandLine: m.quote.CommandLine}
		for n, c := range l.chains() {
			q.PCRs[n] = c.replay(Digest{})
		}
		q.BootAggregate, _ = BootAggregate(q.PCRs)
		b, err := l.Replay(q)
		if err != nil || !b.Sealed || len(b.Later) > 0 {
			t.Fatalf("a log does not lead where it leads: %+v %v", b, err)
		}
		_ = b.Arguments()
		_, _ = b.DBX.Signatures()
		_ = b.DB.Covers(b.DBX)
		for _, d := range Diff(&Log{events(t, m)}, l) {
			if s := d.String(); strings.ContainsFunc(s, func(r rune) bool { return r < ' ' }) {
				t.Fatalf("control characters: %q", s)
			}
		}
	})
}

// BenchmarkReplay parses and replays the Secure Boot log.
func BenchmarkReplay(b *testing.B) {
	m := machines(b)[2]
	b.SetBytes(int64(len(m.log)))
	for b.Loop() {
		m.boot(b)
	}
}
