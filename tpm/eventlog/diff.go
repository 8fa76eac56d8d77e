// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Difference is one event in which two logs differ.
type Difference struct {
	PCR int
	// Event is the event's number in the log that was found, or in the expected one if it is missing.
	Event int
	// Type is the event's type, a label.
	Type EventType
	// What names the event for people, from its data where that hashes to the digest, else from labels.
	What string
	// Expected and Found are the digests; one of them is zero if the event is missing in that log.
	Expected, Found Digest
	// ExpectedText and FoundText are what was measured, if it is text that hashes to the digest.
	ExpectedText, FoundText string
}

// String is one sentence.
func (d Difference) String() string {
	s := fmt.Sprintf("PCR %d event %d (%v): %s ", d.PCR, d.Event, d.Type, d.What)
	switch {
	case d.Found.IsZero():
		return s + "is missing: expected " + shown(d.Expected, d.ExpectedText)
	case d.Expected.IsZero():
		return s + "is not expected: found " + shown(d.Found, d.FoundText)
	}
	return s + "differs: expected " + shown(d.Expected, d.ExpectedText) + ", found " + shown(d.Found, d.FoundText)
}

func shown(d Digest, text string) string {
	if text == "" {
		return "sha256:" + d.String()
	}
	return fmt.Sprintf("%.400q", text)
}

// Diff tells how found differs from expected, in PCRs 0 to 15 without IMA's, PCR by PCR in the order of their
// events. It is for people who want to know why a machine was refused; whether it is refused
// is for Replay and facts. Both logs should have been replayed: else their digests are claims too.
func Diff(expected, found *Log) []Difference {
	var all []Difference
	want, have := expected.chains(), found.chains()
	for pcr := range want {
		if pcr != 10 {
			all = append(all, diffChain(pcr, want[pcr], have[pcr])...)
		}
	}
	return all
}

// diffChain leaves out what the chains have in common at their beginnings and ends, and compares
// the rest event by event.
func diffChain(pcr int, want, have chain) []Difference {
	first := 0
	for first < min(len(want), len(have)) && want[first].Digest == have[first].Digest {
		first++
	}
	wantEnd, haveEnd := len(want), len(have)
	for min(wantEnd, haveEnd) > first && want[wantEnd-1].Digest == have[haveEnd-1].Digest {
		wantEnd--
		haveEnd--
	}
	var all []Difference
	for i := first; i < max(wantEnd, haveEnd); i++ {
		d := Difference{PCR: pcr}
		if i < wantEnd {
			d.Event, d.Type, d.What = want[i].Number, want[i].Type, want.describe(pcr, i)
			d.Expected, d.ExpectedText = want[i].Digest, measuredText(want[i])
		}
		if i < haveEnd {
			d.Event, d.Type, d.What = have[i].Number, have[i].Type, have.describe(pcr, i)
			d.Found, d.FoundText = have[i].Digest, measuredText(have[i])
		}
		if d.Expected != d.Found {
			all = append(all, d)
		}
	}
	return all
}

// measuredText is the text that an event measured, if it did.
func measuredText(e Event) string {
	text, ok := commandText(e)
	if v, is := parseVariable(e.Data); is && e.Verified {
		text, ok = string(v.data), v.is(guidShim, "SbatLevel")
	}
	if !ok || strings.ContainsFunc(strings.TrimRight(text, "\n"), func(r rune) bool { return r < ' ' && r != '\n' }) {
		return ""
	}
	return text
}

// describe names an event for people, as well as can be.
func (c chain) describe(pcr, i int) string {
	e := c[i]
	if v, ok := parseVariable(e.Data); ok && e.Verified {
		return fmt.Sprintf("variable %.60q", v.name)
	}
	if separators[e.Digest] {
		return "separator"
	}
	label := strings.TrimRight(strings.ToValidUTF8(string(e.Data), ""), "\x00")
	switch pcr {
	case 0:
		return "firmware"
	case 1:
		return "firmware's configuration"
	case 2, 3:
		return "option ROM or driver"
	case 4:
		if actions[e.Digest] {
			return "firmware's action"
		}
		return "boot application"
	case 5:
		if e.Verified {
			return "firmware's action or partition table"
		}
		return "partition table"
	case 8:
		if strings.HasPrefix(label, "kernel_cmdline: ") {
			return "kernel command line"
		}
		return "boot loader's command"
	case 9:
		return stubLabel(e, label)
	case 11:
		if name, ok := sectionNames[e.Digest]; ok {
			return "name of section " + name
		}
		if i > 0 {
			if name, ok := sectionNames[c[i-1].Digest]; ok {
				return "section " + name
			}
		}
	}
	if utf8.ValidString(label) && label != "" {
		return fmt.Sprintf("event labelled %.60q", label)
	}
	return "event"
}

// stubLabel names an event of PCR 9: one of the kernel's EFI stub is tagged (tag u32, size u32, text).
func stubLabel(e Event, label string) string {
	switch {
	case bytes.Contains(e.Data, []byte("LOADED_IMAGE::LoadOptions")):
		return "kernel command line"
	case bytes.Contains(e.Data, []byte("Linux initrd")):
		return "initrd"
	}
	return fmt.Sprintf("file labelled %.120q", label)
}
