// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"encoding/binary"
	"strings"
	"unicode/utf16"
)

// Quote is what an event log is held against. All of it must come from a verified quote, except
// CommandLine.
type Quote struct {
	// PCRs are values of the SHA-256 bank by index. PCRs 0 to 7 are required; a PCR above that
	// which is missing gives no facts. PCR 10 is IMA's, and 16 and above prove nothing: ignored.
	PCRs map[int]Digest
	// BootAggregate is the digest with which the replayed IMA log begins (ima.State.BootAggregate),
	// zero if there is none. It decides on Boot.Sealed.
	BootAggregate Digest
	// CommandLine is the machine's claim of its kernel command line (/proc/cmdline without the line
	// feed), which the log of an EFI stub does not contain. It is believed if it hashes to
	// what was measured.
	CommandLine string
}

// Boot is what a log and a quote prove of a machine's last boot. A field that is not proved is zero.
// Every field tells its proof; "sealed" means that it is given only with Sealed.
type Boot struct {
	// Locality is the one that TPM2_Startup came from: 0, 3, or 4 after an H-CRTM.
	// Proof: the start value with which PCR 0 replays (PFP 10.4.5.3).
	Locality uint8
	// Sealed: the PCRs 0 to 9 did not move since the kernel started, if that kernel is honest.
	// Proof: Quote.BootAggregate = SHA-256(PCR 0 ‖ … ‖ PCR 9).
	Sealed bool
	// SecureBoot is the variable SecureBoot: images were verified by the firmware.
	// Proof: PCR 7, the variable's data before the separator (PFP 3.3.4.8).
	SecureBoot SecureBoot
	// SetupMode: the platform had no key (PK), so that anybody could enrol keys (UEFI 2.10, 32.3).
	// Proof: as PK, which is empty.
	SetupMode bool
	// PK, KEK, DB and DBX are the variables with the platform's keys.
	// Proof: PCR 7, the variables' data before the separator.
	PK, KEK, DB, DBX Variable
	// Notices are other things that the firmware measured into PCR 7 before the separator, such as
	// "UEFI Debug Mode" or "DMA Protection Disabled" (PFP 3.3.4.8). Proof: the text is the event's data.
	Notices []string
	// Authorities vouched for the images that were run, in order; all of them, once each.
	// Proof: PCR 7, data of the events after the separator; sealed.
	Authorities []Authority
	// ShimInsecure: the user switched off shim's verification (MokSBState). Proof: as Authorities, not sealed.
	ShimInsecure bool
	// SBAT is the revocation level that shim enforced (SbatLevel). Proof: as Authorities; sealed.
	SBAT string
	// Applications are the images that were started, in order: drivers of the boot device aside, shim,
	// boot loader, UKI, kernel. Each is the Authenticode SHA-256, which is not that of the file.
	// Proof: PCR 4, all digests but those of the firmware's actions; sealed. A firmware may measure
	// other events there (PFP 3.3.4.5); they show as one more application.
	Applications []Digest
	// ExitedBootServices: the kernel took over, and the firmware said no more. Proof: the digests at the end of PCR 5.
	ExitedBootServices bool
	// Profile is how the kernel was loaded. Proof: the structure of PCRs 8 and 9; sealed.
	Profile Profile
	// KernelImage is the last of Applications: the kernel, or an image that has it inside. Authenticode SHA-256.
	// Proof: PCR 4, and that the kernel exited the boot services; sealed.
	KernelImage Digest
	// Kernel is the SHA-256 of the kernel's file. Proof: PCR 9, with ProfileGRUB only; sealed.
	Kernel Digest
	// Initrd is the SHA-256 of the initial RAM disk as the kernel got it, all files in one.
	// Proof: PCR 9; from GRUB, only if it is one file. Sealed.
	Initrd Digest
	// CommandLine is the kernel's as in /proc/cmdline.
	// Proof: GRUB: PCR 8, text that hashes to its digest; else PCR 9, the claimed text in UTF-16 does. Sealed.
	CommandLine string
	// Sections are those of a unified kernel image, in order. Proof: PCR 11, which has no seal: on a machine
	// that was not booted from a UKI, root can write any. A UKI in Applications covers its sections.
	Sections []Section
	// Phases are the words that systemd-pcrphase extended into PCR 11 after the log's end.
	// Proof: the PCR replays with them. Root can extend them: they say that a phase is over, not that it began.
	Phases []string
	// MOK are the digests of shim's lists of machine owner keys: MokList, MokListX, then others.
	// Proof: PCR 14, which has no seal: root can add to the end, and all of it where no shim ran.
	MOK []Digest
	// Commands are what GRUB executed, and Files the digests of what it read, in order. All of them or none.
	// Proof: PCR 8, texts that hash to their digests; PCR 9. Sealed.
	Commands []string
	Files    []Digest

	// Later are PCRs from 8 to 15, without 10, that were extended after the log's end, or by what
	// does not log: no facts come from them. Absent says for people why facts are missing. Both are
	// diagnosis: a forged log may show anything here.
	Later  []int
	Absent []string
}

// SecureBoot is the state of the variable SecureBoot.
type SecureBoot string

// The states; the zero value is "not known".
const (
	SecureBootEnabled  SecureBoot = "enabled"
	SecureBootDisabled SecureBoot = "disabled"
)

// Profile is a way to load a kernel.
type Profile string

// The profiles; the zero value is "not recognised".
const (
	// ProfileStub: the kernel's own EFI stub measured, started by firmware, systemd-boot or the stub of a
	// unified kernel image. Sections tell the last one from the others.
	ProfileStub Profile = "efi-stub"
	// ProfileGRUB: GRUB measured commands and files. It is recognised only with Secure Boot, which
	// keeps GRUB from loading modules: one could measure what it likes.
	ProfileGRUB Profile = "grub"
)

// Section is a measured section of a unified kernel image.
type Section struct {
	Name   string // with its dot
	SHA256 Digest
}

// Arguments are the kernel's arguments, split as the kernel does: quotes keep spaces together,
// and what follows "--" is for init. An argument's presence does not say that no later one overrides it.
func (b *Boot) Arguments() []string {
	var args []string
	var arg strings.Builder
	quoted := false
	for _, c := range b.CommandLine + " " {
		switch {
		case c == '"':
			quoted = !quoted
		case !quoted && strings.ContainsRune(" \t\n\v\f\r", c):
			if arg.String() == "--" {
				return args
			}
			if arg.Len() > 0 {
				args = append(args, arg.String())
			}
			arg.Reset()
		default:
			arg.WriteRune(c)
		}
	}
	return args // an argument whose quote stays open is left out
}

// loadOptions is how EFI hands a command line to a kernel: UTF-16 with a NUL.
func loadOptions(text string) []byte {
	var b []byte
	for _, unit := range append(utf16.Encode([]rune(text)), 0) {
		b = binary.LittleEndian.AppendUint16(b, unit)
	}
	return b
}
