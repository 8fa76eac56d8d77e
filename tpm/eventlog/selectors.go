// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"crypto/sha256"
	"fmt"
	"strings"
)

// Selectors are the values of the node selectors (type `tpm`) that a boot proves.
//
//	value                           evidence                                   does not prove
//	secureboot:enabled, disabled    PCR 7 before its separator; enabled only   that no signed image has a flaw: that is dbx
//	                                with shim's checks on                      and sbat
//	secureboot:setup-mode           PK is empty                                –
//	pk, kek, db, dbx:<sha256>       data of the variable                       –
//	ima:boot-aggregate-ok           boot aggregate = PCRs 0-9 as quoted        that the kernel which made it is honest: that
//	                                                                           is boot-app
//	authority:<sha256>              sealed; certificate (DER)                  that it vouched for the kernel, and not for an
//	                                                                           option ROM
//	sbat:<sha256>                   sealed; shim's SbatLevel                   –
//	boot-app:<n>:<authenticode>     sealed; n-th image started, from 0         –
//	kernel-image:<authenticode>     sealed; the last of them                   that the image is not a UKI with more inside
//	kernel:<sha256>                 sealed; file that GRUB read                more than GRUB and its configuration are worth
//	initrd:<sha256>                 sealed; file (GRUB) or what the kernel got as kernel
//	cmdline:sha256:<hex>            sealed; SHA-256 of /proc/cmdline           as kernel
//	cmdline:has:<argument>          the same                                   that no later argument overrides it
//
// Sections and MOK yield nothing: root can make them where no UKI or shim did.
func (b *Boot) Selectors() []string {
	var all []string
	emit := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if b.SecureBoot == SecureBootDisabled || (b.SecureBoot == SecureBootEnabled && !b.ShimInsecure) {
		emit("secureboot:%s", b.SecureBoot)
	}
	if b.SetupMode {
		emit("secureboot:setup-mode")
	}
	if b.Sealed {
		emit("ima:boot-aggregate-ok")
	}
	for _, a := range b.Authorities {
		emit("authority:%s", a.SHA256)
	}
	for n, a := range b.Applications {
		emit("boot-app:%d:%s", n, a)
	}
	for _, d := range [...]struct {
		name   string
		digest Digest
	}{{"pk", b.PK.SHA256}, {"kek", b.KEK.SHA256}, {"db", b.DB.SHA256}, {"dbx", b.DBX.SHA256}, {"sbat", digestOf(b.SBAT)},
		{"kernel-image", b.KernelImage}, {"kernel", b.Kernel}, {"initrd", b.Initrd}, {"cmdline:sha256", digestOf(b.CommandLine)}} {
		if !d.digest.IsZero() {
			emit("%s:%s", d.name, d.digest)
		}
	}
	for _, argument := range b.Arguments() {
		if !strings.ContainsFunc(argument, func(r rune) bool { return r < ' ' || r > '~' }) {
			emit("cmdline:has:%s", argument)
		}
	}
	return all
}

// digestOf is the digest of a text, zero if there is none.
func digestOf(text string) Digest {
	if text == "" {
		return Digest{}
	}
	return sha256.Sum256([]byte(text))
}
