// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"crypto/sha256"
	"fmt"
)

// MismatchError says that a log does not lead to the quoted PCR: one of them is not of this boot.
type MismatchError struct {
	PCR              int
	Events           int // that the log has for the PCR
	Quoted, Replayed Digest
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("event log: PCR %d: the quote says %s, and the log's %d events lead to %s; the log was changed, or is not of this boot",
		e.PCR, e.Quoted, e.Events, e.Replayed)
}

// Extend returns the value of a PCR after a digest was extended into it.
func Extend(pcr, digest Digest) Digest {
	var both [2 * sha256.Size]byte
	copy(both[:sha256.Size], pcr[:])
	copy(both[sha256.Size:], digest[:])
	return sha256.Sum256(both[:])
}

// chain is the sequence of events of one PCR, all of them extended.
type chain []Event

func (c chain) digests() []Digest {
	all := make([]Digest, len(c))
	for i, e := range c {
		all[i] = e.Digest
	}
	return all
}

// replay returns the PCR's value after the chain.
func (c chain) replay(start Digest) Digest {
	for _, e := range c {
		start = Extend(start, e.Digest)
	}
	return start
}

// chains sorts the events by PCR, 0 to 15.
func (l *Log) chains() [16]chain {
	var all [16]chain
	for _, e := range l.Events {
		if e.Type != NoAction && e.PCR < 16 {
			all[e.PCR] = append(all[e.PCR], e)
		}
	}
	return all
}

// Replay holds the log against a quote and draws the facts. The error is a *MismatchError if PCRs
// 0 to 7 are not as the log says. PCRs that user space uses may have moved on; see Boot.Later.
func (l *Log) Replay(q Quote) (*Boot, error) {
	b := &Boot{}
	var proved [16]chain // nil for a PCR that does not replay; facts come from here only
	for n, c := range l.chains() {
		quoted, ok := q.PCRs[n]
		switch {
		case !ok && n < 8:
			return nil, fmt.Errorf("event log: PCR %d was not quoted; quote PCRs 0 to 9, 11, 12 and 14 for the facts of a boot", n)
		case !ok || n == 10:
			continue
		}
		tail, start, ok := lead(n, c, quoted)
		switch {
		case ok:
			proved[n] = append(append(chain{}, c...), tail...) // never nil
			if n == 0 {
				b.Locality = start
			}
			if n == 11 {
				for _, e := range tail {
					b.Phases = append(b.Phases, string(e.Data))
				}
			}
		case n < 8:
			return nil, &MismatchError{PCR: n, Events: len(c), Quoted: quoted, Replayed: c.replay(Digest{})}
		default:
			b.Later = append(b.Later, n)
		}
	}
	b.seal(q)
	b.readPCR7(proved[7])
	b.readPCR5(proved[5])
	b.readPCR4(proved[4])
	b.readLoader(proved, q.CommandLine)
	b.MOK = proved[14].digests()
	return b, nil
}

// lead finds how a chain leads to the quoted value: from which start (PCR 0 begins with the
// locality of TPM2_Startup), and with which of the permitted tails.
func lead(pcr int, c chain, quoted Digest) (tail chain, start uint8, ok bool) {
	starts := []uint8{0}
	if pcr == 0 {
		starts = []uint8{0, 3, 4}
	}
	for _, start := range starts {
		value := c.replay(Digest{sha256.Size - 1: start})
		if value == quoted {
			return nil, start, true
		}
		for _, words := range tails[pcr] {
			if value := words.replay(value); value == quoted {
				return words, start, true
			}
		}
	}
	return nil, 0, false
}

// tails are what may be missing at the end of a PCR's log. PCR 5: kernels that take over the log before the
// firmware is done lose ExitBootServices. PCR 11: systemd-pcrphase runs long after; some of its
// words, in their order.
var tails = map[int][]chain{
	5: {
		texts(ebsInvocation, ebsSuccess),
		texts(ebsInvocation, ebsFailure),
		texts(ebsInvocation, ebsFailure, ebsInvocation, ebsSuccess),
	},
	11: subsequences("enter-initrd", "leave-initrd", "sysinit", "ready", "shutdown", "final"),
}

// Phases returns the words of systemd-pcrphase with which PCR 11 moved from one value to another, if
// it did so by nothing else.
func Phases(from, to Digest) (words []string, ok bool) {
	for _, c := range tails[11] {
		if c.replay(from) != to {
			continue
		}
		for _, e := range c {
			words = append(words, string(e.Data))
		}
		return words, true
	}
	return nil, false
}

func texts(words ...string) chain {
	var c chain
	for _, w := range words {
		c = append(c, Event{Digest: sha256.Sum256([]byte(w)), Data: []byte(w), Verified: true})
	}
	return c
}

func subsequences(words ...string) []chain {
	var all []chain
	for set := 1; set < 1<<len(words); set++ {
		var some []string
		for i, w := range words {
			if set&(1<<i) != 0 {
				some = append(some, w)
			}
		}
		all = append(all, texts(some...))
	}
	return all
}

// BootAggregate is the digest with which IMA begins its log: SHA-256 over PCRs 0 to 9 as they
// are when the kernel starts (security/integrity/ima/ima_crypto.c, since Linux 5.8). It reports
// false if one of them is missing.
func BootAggregate(pcrs map[int]Digest) (Digest, bool) {
	var all []byte
	for n := range 10 {
		d, ok := pcrs[n]
		if !ok {
			return Digest{}, false
		}
		all = append(all, d[:]...)
	}
	return sha256.Sum256(all), true
}

func (b *Boot) seal(q Quote) {
	aggregate, ok := BootAggregate(q.PCRs)
	switch {
	case !ok:
		b.absent("applications, authorities, kernel, initrd and command line: PCRs 8 and 9 were not quoted")
	case q.BootAggregate.IsZero():
		b.absent("applications, authorities, kernel, initrd and command line: the IMA log gave no boot aggregate; the kernel needs CONFIG_IMA")
	case aggregate != q.BootAggregate:
		b.absent("applications, authorities, kernel, initrd and command line: the PCRs 0 to 9 moved since the kernel started (boot aggregate %s, now %s)", q.BootAggregate, aggregate)
	default:
		b.Sealed = true
	}
}

func (b *Boot) absent(format string, args ...any) {
	b.Absent = append(b.Absent, fmt.Sprintf(format, args...))
}
