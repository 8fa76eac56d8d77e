// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"crypto/sha256"
	"fmt"
	"unicode/utf8"
)

// Texts that the firmware measures as they stand (PFP 10.4.4).
const (
	ebsInvocation = "Exit Boot Services Invocation"
	ebsSuccess    = "Exit Boot Services Returned with Success"
	ebsFailure    = "Exit Boot Services Returned with Failure"
)

// separators are the digests of the separators between firmware and operating system (PFP
// 10.4.1): either value is regular; an error is none of them.
var separators = map[Digest]bool{
	sha256.Sum256([]byte{0, 0, 0, 0}):             true,
	sha256.Sum256([]byte{0xff, 0xff, 0xff, 0xff}): true,
}

// actions are the digests in PCR 4 that are not images.
var actions = map[Digest]bool{
	sha256.Sum256([]byte("Calling EFI Application from Boot Option")):        true,
	sha256.Sum256([]byte("Returning from EFI Application from Boot Option")): true,
}

// split parts a chain at its first separator.
func (c chain) split() (before, after chain, ok bool) {
	for i, e := range c {
		if separators[e.Digest] {
			return c[:i], c[i+1:], true
		}
	}
	return nil, nil, false
}

// readPCR7 draws the facts on Secure Boot: all, or none if one event can not be read.
func (b *Boot) readPCR7(c chain) {
	facts := Boot{Sealed: b.Sealed}
	if err := facts.secureBoot(c); err != nil {
		b.absent("Secure Boot, its keys and authorities: PCR 7 %v", err)
		return
	}
	b.SecureBoot, b.SetupMode, b.Notices = facts.SecureBoot, facts.SetupMode, facts.Notices
	b.PK, b.KEK, b.DB, b.DBX = facts.PK, facts.KEK, facts.DB, facts.DBX
	b.ShimInsecure = facts.ShimInsecure
	if b.Sealed {
		b.Authorities, b.SBAT = facts.Authorities, facts.SBAT
	}
}

func (b *Boot) secureBoot(c chain) error {
	before, after, ok := c.split()
	if !ok {
		return fmt.Errorf("has no separator")
	}
	for _, e := range c {
		if !e.Verified && !separators[e.Digest] {
			return fmt.Errorf("event %d: its data does not hash to its digest", e.Number)
		}
	}
	for _, e := range before {
		if err := b.firmwareEvent(e); err != nil {
			return fmt.Errorf("event %d: %w", e.Number, err)
		}
	}
	for _, e := range after {
		if err := b.authorityEvent(e); err != nil {
			return fmt.Errorf("event %d: %w", e.Number, err)
		}
	}
	b.SetupMode = b.PK.Known() && len(b.PK.Data) == 0
	return nil
}

// firmwareEvent reads an event from before the separator: the platform's state and keys, once
// each; then authorities of drivers, which show as db once more.
func (b *Boot) firmwareEvent(e Event) error {
	v, ok := parseVariable(e.Data)
	if !ok {
		if !utf8.Valid(e.Data) {
			return fmt.Errorf("it is neither a variable nor a text")
		}
		b.Notices = append(b.Notices, string(e.Data))
		return nil
	}
	if v.is(guidGlobal, "SecureBoot") {
		if b.SecureBoot != "" || len(v.data) != 1 || v.data[0] > 1 {
			return fmt.Errorf("SecureBoot is told twice, or neither 0 nor 1")
		}
		b.SecureBoot = [...]SecureBoot{SecureBootDisabled, SecureBootEnabled}[v.data[0]]
		return nil
	}
	for _, known := range [...]struct {
		owner guid
		name  string
		to    *Variable
	}{{guidGlobal, "PK", &b.PK}, {guidGlobal, "KEK", &b.KEK}, {guidSecurity, "db", &b.DB}, {guidSecurity, "dbx", &b.DBX}} {
		switch {
		case !v.is(known.owner, known.name):
			continue
		case !known.to.Known():
			*known.to = newVariable(v.data)
			return nil
		case known.name == "db":
			return b.addAuthority(v)
		}
		return fmt.Errorf("%s is told twice", known.name)
	}
	return nil // dbt, dbr, SetupMode and others, of which nothing is drawn
}

// authorityEvent reads an event from after the separator.
func (b *Boot) authorityEvent(e Event) error {
	v, ok := parseVariable(e.Data)
	switch {
	case !ok:
		return nil // an action, or another separator
	case v.is(guidShim, "SbatLevel"):
		if b.SBAT != "" || !utf8.Valid(v.data) {
			return fmt.Errorf("SbatLevel is told twice, or is not a text")
		}
		b.SBAT = string(v.data)
	case v.is(guidShim, "MokSBState"):
		b.ShimInsecure = true
	default:
		return b.addAuthority(v)
	}
	return nil
}

func (b *Boot) addAuthority(v namedVariable) error {
	a, ok := newAuthority(v)
	if !ok {
		return fmt.Errorf("the authority %q is too short", v.name)
	}
	b.Authorities = append(b.Authorities, a)
	return nil
}

// readPCR4 takes every digest that is not a known action for an image. Events' types could
// be used to hide one.
func (b *Boot) readPCR4(c chain) {
	if !b.Sealed {
		return
	}
	for _, e := range c {
		if !separators[e.Digest] && !actions[e.Digest] {
			b.Applications = append(b.Applications, e.Digest)
		}
	}
	if n := len(b.Applications); n > 0 && b.ExitedBootServices {
		b.KernelImage = b.Applications[n-1]
	}
}

func (b *Boot) readPCR5(c chain) {
	end := texts(ebsInvocation, ebsSuccess)
	if n := len(c) - len(end); n >= 0 {
		b.ExitedBootServices = c[n].Digest == end[0].Digest && c[n+1].Digest == end[1].Digest
	}
	if !b.ExitedBootServices {
		b.absent("exit of boot services: PCR 5 does not end with it")
	}
}
