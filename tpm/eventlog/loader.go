// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"
)

// readLoader draws the facts that the boot loader or the kernel's EFI stub measured.
//
//	          PCR 8                     PCR 9                            PCR 11
//	direct    –                         load options, initrd             –
//	UKI       –                         load options, initrd             name, content of each section
//	GRUB      commands, command line    files read [load options, initrd]  –
func (b *Boot) readLoader(proved [16]chain, claim string) {
	if !b.Sealed {
		return
	}
	commands, files, sections := proved[8], proved[9], proved[11]
	var err error
	switch {
	case commands == nil || files == nil:
		err = errors.New("PCRs 8 and 9 do not replay")
	case len(commands) > 0:
		err = b.readGRUB(commands, files)
	default:
		err = b.readStub(files, claim)
		b.readUKI(sections)
	}
	if err != nil {
		b.absent("profile, kernel, initrd and command line: %v", err)
	}
}

// readStub reads what the kernel's EFI stub measures (drivers/firmware/efi/libstub, Linux ≥ 5.18):
// its load options, then the initrd that it was given. Only a text that hashes to the first
// tells them apart.
func (b *Boot) readStub(files chain, claim string) error {
	if claim == "" || len(files) == 0 || len(files) > 2 || files[0].Digest != sha256.Sum256(loadOptions(claim)) {
		return errors.New("the command line that the machine claims is not what the kernel's EFI stub measured into PCR 9")
	}
	b.CommandLine = claim
	if len(files) == 2 {
		b.Initrd = files[1].Digest
	}
	b.Profile = ProfileStub
	return nil
}

// CommandLineEvent finds the event that measured a command line as Boot.CommandLine has it.
func (l *Log) CommandLineEvent(text string) (Event, bool) {
	stub, grub := Digest(sha256.Sum256(loadOptions(text))), Digest(sha256.Sum256([]byte(strings.TrimPrefix(text, "BOOT_IMAGE="))))
	for _, e := range l.Events {
		if e.PCR == 9 && e.Digest == stub || e.PCR == 8 && e.Digest == grub {
			return e, true
		}
	}
	return Event{}, false
}

// sectionNames are the sections that systemd-stub measures (UAPI.5, Unified Kernel Image), by the
// SHA-256 of name and NUL.
var sectionNames = func() map[Digest]string {
	names := map[Digest]string{}
	for _, name := range [...]string{".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".dtbauto", ".hwids",
		".uname", ".sbat", ".pcrpkey", ".profile", ".efifw"} {
		names[sha256.Sum256([]byte(name+"\x00"))] = name
	}
	return names
}()

// readUKI reads pairs of a section's name and its content, nothing else but phases after them.
func (b *Boot) readUKI(c chain) {
	if len(c) == len(b.Phases) || b.Profile != ProfileStub {
		return
	}
	var sections []Section
	for pair := range slices.Chunk(c[:len(c)-len(b.Phases)], 2) {
		name, known := sectionNames[pair[0].Digest]
		if !known || len(pair) < 2 || slices.ContainsFunc(sections, func(s Section) bool { return s.Name == name }) {
			b.absent("sections of a unified kernel image: PCR 11 is not a sequence of them")
			return
		}
		sections = append(sections, Section{name, pair[1].Digest})
	}
	b.Sections = sections
}

// readGRUB reads what GRUB's verifiers measured (grub-core/commands/tpm.c).
func (b *Boot) readGRUB(commands, files chain) error {
	var lines []string
	for _, e := range commands {
		line, ok := commandText(e)
		if !ok {
			return errors.New("PCR 8 has an event whose text does not hash to its digest")
		}
		lines = append(lines, line)
	}
	b.Commands, b.Files = lines, files.digests()
	if b.SecureBoot != SecureBootEnabled || b.ShimInsecure {
		return errors.New("GRUB measured them, but without Secure Boot it may load modules that measure what they like")
	}
	commandLine, initrds, err := parseGRUB(lines)
	if err != nil {
		return err
	}
	kernel, initrd, ok := grubFiles(b.Files, commandLine, initrds)
	if !ok {
		return errors.New("PCR 9 does not have the files that GRUB's commands name")
	}
	b.CommandLine, b.Kernel, b.Initrd, b.Profile = commandLine, kernel, initrd, ProfileGRUB
	return nil
}

// commandText returns the text that an event of PCR 8 measured. GRUB puts a label before it and a
// NUL after it, neither of which is measured: what hashes to the digest tells.
func commandText(e Event) (string, bool) {
	text := bytes.TrimSuffix(e.Data, []byte{0})
	for _, label := range [...]string{"", "grub_cmd: ", "kernel_cmdline: ", "module_cmdline: "} {
		if rest, ok := bytes.CutPrefix(text, []byte(label)); ok && sha256.Sum256(rest) == e.Digest {
			return string(rest), utf8.Valid(rest)
		}
	}
	return "", false
}

// parseGRUB finds the kernel's command line: the one command linux, then the same text without
// the command's name, which only the kernel's loader measures. Nothing may follow that reads files or
// loads something else, except for one initrd.
func parseGRUB(lines []string) (commandLine string, initrds int, err error) {
	unsure := errors.New("GRUB's commands in PCR 8 do not say which kernel it started")
	at := -1
	for i, line := range lines {
		if name, _, _ := strings.Cut(line, " "); name == "linux" || name == "linuxefi" {
			if at >= 0 {
				return "", 0, unsure
			}
			at = i
		}
	}
	if at < 0 || at+1 == len(lines) {
		return "", 0, unsure
	}
	_, commandLine, _ = strings.Cut(lines[at], " ")
	if commandLine == "" || lines[at+1] != commandLine {
		return "", 0, unsure
	}
	for _, line := range lines[at+2:] {
		name, arguments, _ := strings.Cut(line, " ")
		switch name {
		case "echo", "boot":
		case "initrd", "initrdefi":
			if initrds > 0 || strings.Contains(arguments, ":") {
				return "", 0, unsure
			}
			initrds = len(strings.Fields(arguments))
		default:
			return "", 0, unsure
		}
	}
	return "BOOT_IMAGE=" + commandLine, initrds, nil
}

// grubFiles finds kernel and initrd at the end of the files that GRUB read. GRUB ≥ 2.12 starts the
// kernel by its EFI stub, which then measures the load options and the initrd as one.
func grubFiles(files []Digest, commandLine string, initrds int) (kernel, initrd Digest, ok bool) {
	options := Digest(sha256.Sum256(loadOptions(commandLine)))
	if i := slices.Index(files, options); i >= 0 {
		stub := files[i+1:]
		if files = files[:i]; len(stub) > 1 || (len(stub) == 1) != (initrds > 0) {
			return Digest{}, Digest{}, false
		}
		if len(stub) == 1 {
			initrd = stub[0]
		}
	}
	if len(files) <= initrds {
		return Digest{}, Digest{}, false
	}
	if initrd.IsZero() && initrds == 1 {
		initrd = files[len(files)-1]
	}
	return files[len(files)-1-initrds], initrd, true
}
