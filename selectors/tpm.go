// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"crypto/sha256"
	"fmt"
	"strconv"
	"unicode"
)

// NodeFacts is what an attestation proved of a node's TPM. A zero field yields no selector.
type NodeFacts struct {
	// EKHash is the SHA-256 of the endorsement key's DER SubjectPublicKeyInfo; it names the node.
	EKHash Digest `json:"ek_hash"`
	// EKIssuer is the SHA-256 of the DER issuer name of an EK certificate whose path was verified.
	EKIssuer Digest `json:"ek_issuer,omitzero"`
	// Manufacturer, Model and Version are TPMManufacturer, TPMModel and TPMVersion in that
	// certificate's subject alternative name (TCG EK Credential Profile 2.5, 3.1.2).
	Manufacturer string `json:"manufacturer,omitempty"`
	Model        string `json:"model,omitempty"`
	Version      string `json:"version,omitempty"`
	// Firmware is TPMS_ATTEST.firmwareVersion, signed by an attestation key of the endorsement hierarchy.
	Firmware uint64 `json:"firmware,omitempty"`
	// PCRs are quoted values of the SHA-256 bank.
	PCRs map[int]Digest `json:"pcrs,omitempty"`
	// KeyResident says that the agent's key was certified to live in this TPM only.
	KeyResident bool `json:"key_resident,omitempty"`
	// Boot is what the firmware's event log proved, Files what the IMA log did.
	Boot  BootFacts `json:"boot,omitzero"`
	Files FileFacts `json:"files,omitzero"`
}

// BootFacts are what an event log that replays to the quote proves of the last boot. Package
// tpm/eventlog says how; "sealed" facts are given only with Sealed.
type BootFacts struct {
	// Sealed: PCRs 0 to 9 did not move since the kernel started.
	Sealed bool `json:"sealed,omitempty"`
	// SecureBoot is "enabled" or "disabled". It is not "enabled" if shim's checks were switched off.
	SecureBoot string `json:"secure_boot,omitempty"`
	// SetupMode: anybody could enrol keys.
	SetupMode bool `json:"setup_mode,omitempty"`
	// PK, KEK, DB and DBX are the digests of the variables' data.
	PK  Digest `json:"pk,omitzero"`
	KEK Digest `json:"kek,omitzero"`
	DB  Digest `json:"db,omitzero"`
	DBX Digest `json:"dbx,omitzero"`
	// Authorities are the digests of the certificates (DER) that vouched for what was started; sealed.
	Authorities []Digest `json:"authorities,omitempty"`
	// SBAT is the digest of shim's revocation level; sealed.
	SBAT Digest `json:"sbat,omitzero"`
	// Applications are the Authenticode digests of the images that were started, in order; sealed.
	Applications []Digest `json:"applications,omitempty"`
	// KernelImage is the last of them; Kernel and Initrd are digests of files; sealed.
	KernelImage Digest `json:"kernel_image,omitzero"`
	Kernel      Digest `json:"kernel,omitzero"`
	Initrd      Digest `json:"initrd,omitzero"`
	// CommandLine is the kernel's as in /proc/cmdline, Arguments the same, split; sealed.
	CommandLine string   `json:"command_line,omitempty"`
	Arguments   []string `json:"arguments,omitempty"`
}

// FileFacts are what an IMA log that replays to the quoted PCR 10 proves of the files measured
// since the boot. Package tpm/ima says how.
type FileFacts struct {
	// NoViolations: none of the files was written while it was measured.
	NoViolations bool `json:"no_violations,omitempty"`
	// AllowLists are the names of the operator's lists that hold every file.
	AllowLists []string `json:"allow_lists,omitempty"`
	// Agent is the digest of the program that the agent says it is; the log has it.
	Agent Digest `json:"agent,omitzero"`
}

// bootPCRs are those whose value alone says what was booted. Left out: 8 holds boot loader
// commands and 10 the IMA log, which change with every boot; 13 and 15 are for the system's
// own use; 16 and above can be reset by software.
var bootPCRs = [...]int{0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 12, 14}

// DeriveNode emits the family `tpm`: the selectors of a node.
//
//	selector                      example                        evidence                               does not prove
//	tpm:ek:spki-sha256:<hex>      tpm:ek:spki-sha256:9f86d0…      credential activation with that EK      where the TPM is: it may be in another machine
//	tpm:ek:issuer:<hex>           tpm:ek:issuer:4355a4…           EK certificate path; SHA-256 of the     that the maker still vouches: no revocation
//	                                                             issuer's DER name                       is looked at
//	tpm:manufacturer:<id>         tpm:manufacturer:id:00001014    EK certificate, signed by the maker     as tpm:ek:issuer
//	tpm:model:<text>              tpm:model:SLB9670               the same                               the same
//	tpm:version:<id>              tpm:version:id:00070055         the same; version when it was made      the version running now: that is tpm:firmware
//	tpm:firmware:<16 hex>         tpm:firmware:2019102300163636   TPMS_ATTEST of an endorsement AK        that the firmware has no flaw
//	tpm:pcr:sha256:<n>:<hex>      tpm:pcr:sha256:7:65caf8…        quote; n in 0-7, 9, 11, 12, 14          which events led there: that is what follows
//	tpm:key:tpm-resident          tpm:key:tpm-resident            Certify of the agent's key              that only the agent uses it: root may too
//
// From the firmware's event log, replayed to the quote. "Sealed": and only while the PCRs 0 to 9 are what the
// kernel found (boot aggregate):
//
//	tpm:secureboot:enabled        also :disabled                  PCR 7 before its separator; enabled     that no signed image has a flaw: that is dbx
//	                                                             only with shim's checks on              and sbat
//	tpm:secureboot:setup-mode     tpm:secureboot:setup-mode       PK is empty                             –
//	tpm:pk, kek, db, dbx:<hex>    tpm:dbx:5c1a70…                 SHA-256 of the variable's data          –
//	tpm:ima:boot-aggregate-ok     tpm:ima:boot-aggregate-ok       boot aggregate = PCRs 0-9 as quoted     that the kernel which made it is honest: that
//	                                                                                                     is boot-app
//	tpm:authority:<hex>           tpm:authority:e8e95f…           sealed; SHA-256 of a certificate        that it vouched for the kernel, and not for
//	                                                                                                     an option ROM
//	tpm:sbat:<hex>                tpm:sbat:91b02d…                sealed; SHA-256 of shim's SbatLevel     –
//	tpm:boot-app:<n>:<hex>        tpm:boot-app:0:7c2d41…          sealed; n-th image started, from 0;     –
//	                                                             Authenticode
//	tpm:kernel-image:<hex>        tpm:kernel-image:4d71e2…        sealed; the last of them                that the image is not a UKI with more inside
//	tpm:kernel:<hex>              tpm:kernel:83a9c5…              sealed; file that GRUB read             more than GRUB and its configuration are worth
//	tpm:initrd:<hex>              tpm:initrd:0f3ab8…              sealed; file (GRUB) or what the         as tpm:kernel
//	                                                             kernel got
//	tpm:cmdline:sha256:<hex>      tpm:cmdline:sha256:66d0a1…      sealed; SHA-256 of /proc/cmdline        as tpm:kernel
//	tpm:cmdline:has:<argument>    tpm:cmdline:has:ima_policy=tcb  the same                                that no later argument overrides it
//
// From the IMA log, replayed to the quoted PCR 10:
//
//	tpm:ima:no-violations         tpm:ima:no-violations           no entry since boot is a violation      –
//	tpm:ima:allowlist:<name>      tpm:ima:allowlist:debian-12     every file measured since boot is in    that all files that matter are measured: that is
//	                                                             that list                               the IMA policy, from command line and kernel
//	tpm:agent:sha256:<hex>        tpm:agent:sha256:1b7e09…        a file with the digest that the agent   that it is what answers: another program may
//	                                                             claims was measured since boot          claim the same
//
// Sections of a UKI and machine owner keys yield nothing: root can make them where no UKI or shim did. Facts
// without an EK yield nothing.
func DeriveNode(f *NodeFacts) Set {
	if f == nil || f.EKHash.IsZero() {
		return nil
	}
	ss := make([]Selector, 0, 20)
	emit := func(value string) { ss = append(ss, Selector{Type: "tpm", Value: value}) }
	emit("ek:spki-sha256:" + f.EKHash.String())
	if !f.EKIssuer.IsZero() {
		emit("ek:issuer:" + f.EKIssuer.String())
	}
	for _, v := range [...]struct{ name, text string }{{"manufacturer", f.Manufacturer}, {"model", f.Model}, {"version", f.Version}} {
		if v.text != "" && printable(v.text) {
			emit(v.name + ":" + v.text)
		}
	}
	if f.Firmware != 0 {
		emit(fmt.Sprintf("firmware:%016x", f.Firmware))
	}
	for _, n := range bootPCRs {
		if d, ok := f.PCRs[n]; ok {
			emit("pcr:sha256:" + strconv.Itoa(n) + ":" + d.String())
		}
	}
	if f.KeyResident {
		emit("key:tpm-resident")
	}
	f.Boot.derive(emit)
	f.Files.derive(emit)
	return NewSet(ss...)
}

func (b *BootFacts) derive(emit func(string)) {
	if b.SecureBoot != "" {
		emit("secureboot:" + b.SecureBoot)
	}
	if b.SetupMode {
		emit("secureboot:setup-mode")
	}
	if b.Sealed {
		emit("ima:boot-aggregate-ok")
	}
	for _, d := range [...]struct {
		name   string
		digest Digest
	}{{"pk", b.PK}, {"kek", b.KEK}, {"db", b.DB}, {"dbx", b.DBX}, {"sbat", b.SBAT},
		{"kernel-image", b.KernelImage}, {"kernel", b.Kernel}, {"initrd", b.Initrd}} {
		if !d.digest.IsZero() {
			emit(d.name + ":" + d.digest.String())
		}
	}
	for _, d := range b.Authorities {
		emit("authority:" + d.String())
	}
	for n, d := range b.Applications {
		emit("boot-app:" + strconv.Itoa(n) + ":" + d.String())
	}
	if b.CommandLine != "" {
		emit("cmdline:sha256:" + Digest(sha256.Sum256([]byte(b.CommandLine))).String())
	}
	for _, a := range b.Arguments {
		if a != "" && printable(a) {
			emit("cmdline:has:" + a)
		}
	}
}

func (f *FileFacts) derive(emit func(string)) {
	if f.NoViolations {
		emit("ima:no-violations")
	}
	for _, name := range f.AllowLists {
		emit("ima:allowlist:" + name)
	}
	if !f.Agent.IsZero() {
		emit("agent:sha256:" + f.Agent.String())
	}
}

// printable refuses text that would look like something else in a log or on a terminal.
func printable(s string) bool {
	for _, r := range s {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return false
		}
	}
	return true
}
