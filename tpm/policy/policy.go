// SPDX-License-Identifier: Apache-2.0

// Package policy judges what a machine booted and runs by an operator's rules, and says of each rule
// that is broken what was expected, what was found, and which event of the boot shows it.
//
// It takes proven facts only (tpm/verify, tpm/eventlog, tpm/ima). A rule about something that
// was not proven is broken: unknown is never good enough.
package policy

import (
	"bytes"
	"fmt"
	"slices"
	"strings"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/eventlog"
	"github.com/assay-id/assay/tpm/ima"
)

// Group is the rules for a group of machines. A zero field is no rule.
type Group struct {
	Name string
	// Golden is a machine like which they must be, in RequirePCRs.
	Golden *Golden
	// RequirePCRs are compared with Golden; empty means DefaultPCRs.
	RequirePCRs []int
	// SecureBoot must be enabled, with shim's checks on.
	SecureBoot bool
	// DBX are hashes of images that the machine's dbx must hold.
	DBX []selectors.Digest
	// DBXOf are dbx of other machines: what they revoke must be revoked.
	DBXOf []eventlog.Variable
	// Kernels, Initrds and Applications are digests of which the machine's must be one. A kernel counts by
	// its file (GRUB) or by its Authenticode digest; of the applications started, all must be listed.
	Kernels, Initrds, Applications []selectors.Digest
	// CommandLines are the kernel's as in /proc/cmdline, of which the machine's must be one. Arguments
	// must all be there.
	CommandLines, Arguments []string
	// Authorities are the certificates that may vouch for what is started; a machine may use fewer.
	Authorities []selectors.Digest
	// Lockdown is the least level of the kernel's lockdown, "integrity" or "confidentiality". It is proven
	// by the argument lockdown=, or, for integrity, by Secure Boot with a kernel of Kernels: list there
	// only kernels that lock themselves down then.
	Lockdown string
	// FirmwareMin is the lowest version of the TPM's firmware.
	FirmwareMin uint64
	// Manufacturers are those of TPMs, as in the selector tpm:manufacturer.
	Manufacturers []string
	// IMA are the lists of files; each file measured must be in one of them.
	IMA []List
	// NoViolations: no file may be written while it is measured.
	NoViolations bool
}

// List is an allow-list of files with the name that its selector has.
type List struct {
	Name  string
	Files *ima.AllowList
}

// DefaultPCRs are compared with a golden machine unless a group says otherwise: firmware, its drivers,
// what was started, Secure Boot. The others differ between machines that are alike: 1 has serial
// numbers, 5 the partition table's, 8 and 9 what the boot loader's configuration says.
var DefaultPCRs = []int{0, 2, 4, 7}

// Machine is what was proven of one.
type Machine struct {
	Facts selectors.NodeFacts
	// Boot and BootLog are nil without an event log that replays to the quote.
	Boot    *eventlog.Boot
	BootLog *eventlog.Log
	// Files are entries of the IMA log which nobody judged yet. IMA says how far the log was replayed;
	// the zero State means that there was none.
	Files []ima.Entry
	IMA   ima.State
}

// Finding is a broken rule.
type Finding struct {
	// Rule is its name in the configuration.
	Rule string `json:"rule"`
	// Expected and Found are for people.
	Expected string `json:"expected"`
	Found    string `json:"found"`
	// Event is the event of the boot, or of IMA's log, that shows it; may be empty.
	Event string `json:"event,omitempty"`
}

// String is one sentence.
func (f Finding) String() string {
	s := fmt.Sprintf("%s: expected %s, found %s", f.Rule, f.Expected, f.Found)
	if f.Event != "" {
		s += " (" + f.Event + ")"
	}
	return s
}

// unproven is what is found where a log says nothing.
const unproven = "nothing that is proven"

// Judge returns the rules of the group that the machine breaks, in the order of Group's fields.
func (g *Group) Judge(m *Machine) []Finding {
	var all []Finding
	if g.Golden != nil {
		all = append(all, g.judgeGolden(m)...)
	}
	all = append(all, g.judgeFirmware(m)...)
	all = append(all, g.judgeKernel(m)...)
	return append(all, g.JudgeFiles(m)...)
}

func (g *Group) judgeFirmware(m *Machine) []Finding {
	var all []Finding
	b := &m.Facts.Boot
	if g.SecureBoot && b.SecureBoot != "enabled" {
		all = append(all, Finding{Rule: "secure_boot", Expected: "enabled", Found: orUnproven(b.SecureBoot)})
	}
	for _, d := range g.DBX {
		if !revokes(m.Boot, d) {
			all = append(all, Finding{"dbx", "revocation of " + d.String(), found(b.DBX), "PCR 7, variable \"dbx\""})
		}
	}
	for _, least := range g.DBXOf {
		if m.Boot == nil || !m.Boot.DBX.Covers(least) {
			all = append(all, Finding{"dbx", "all revocations of dbx " + least.SHA256.String(), found(b.DBX), "PCR 7, variable \"dbx\""})
		}
	}
	for _, a := range b.Authorities {
		if len(g.Authorities) > 0 && !slices.Contains(g.Authorities, a) {
			all = append(all, Finding{"authorities", "one of " + digests(g.Authorities), a.String(), "PCR 7, after its separator"})
		}
	}
	if len(g.Authorities) > 0 && len(b.Authorities) == 0 {
		all = append(all, Finding{Rule: "authorities", Expected: "some of " + digests(g.Authorities), Found: unproven})
	}
	if m.Facts.Firmware < g.FirmwareMin {
		all = append(all, Finding{Rule: "firmware_min", Expected: fmt.Sprintf("%016x or later", g.FirmwareMin), Found: fmt.Sprintf("%016x", m.Facts.Firmware)})
	}
	if len(g.Manufacturers) > 0 && !slices.Contains(g.Manufacturers, m.Facts.Manufacturer) {
		all = append(all, Finding{Rule: "manufacturers", Expected: "one of " + strings.Join(g.Manufacturers, ", "), Found: orUnproven(m.Facts.Manufacturer)})
	}
	return all
}

func (g *Group) judgeKernel(m *Machine) []Finding {
	var all []Finding
	b := &m.Facts.Boot
	knownKernel := slices.Contains(g.Kernels, b.Kernel) || slices.Contains(g.Kernels, b.KernelImage)
	if len(g.Kernels) > 0 && !knownKernel {
		kernel := b.Kernel
		if kernel.IsZero() {
			kernel = b.KernelImage
		}
		all = append(all, Finding{"kernels", "one of " + digests(g.Kernels), found(kernel), m.eventOf(kernel)})
	}
	if len(g.Initrds) > 0 && !slices.Contains(g.Initrds, b.Initrd) {
		all = append(all, Finding{"initrds", "one of " + digests(g.Initrds), found(b.Initrd), m.eventOf(b.Initrd)})
	}
	for n, d := range b.Applications {
		if len(g.Applications) > 0 && !slices.Contains(g.Applications, d) {
			all = append(all, Finding{"applications", "one of " + digests(g.Applications), fmt.Sprintf("%s as number %d", d, n), m.eventOf(d)})
		}
	}
	if len(g.Applications) > 0 && len(b.Applications) == 0 {
		all = append(all, Finding{Rule: "applications", Expected: "some of " + digests(g.Applications), Found: unproven})
	}
	if len(g.CommandLines) > 0 && !slices.Contains(g.CommandLines, b.CommandLine) {
		all = append(all, Finding{Rule: "command_lines", Expected: fmt.Sprintf("one of %q", g.CommandLines), Found: orUnproven(quoted(b.CommandLine)), Event: m.commandLineEvent()})
	}
	for _, a := range g.Arguments {
		if !slices.Contains(b.Arguments, a) {
			all = append(all, Finding{Rule: "arguments", Expected: quoted(a), Found: orUnproven(quoted(b.CommandLine)), Event: m.commandLineEvent()})
		}
	}
	if g.Lockdown != "" && !lockedDown(b, g.Lockdown, knownKernel) {
		all = append(all, Finding{Rule: "lockdown", Expected: g.Lockdown + ": by the argument lockdown=, or for integrity by Secure Boot with one of kernels",
			Found: fmt.Sprintf("Secure Boot %s, command line %s", orUnproven(b.SecureBoot), orUnproven(quoted(b.CommandLine)))})
	}
	return all
}

// lockedDown: levels only rise, so an argument counts wherever it stands (security/lockdown/lockdown.c).
func lockedDown(b *selectors.BootFacts, level string, knownKernel bool) bool {
	if slices.Contains(b.Arguments, "lockdown=confidentiality") {
		return true
	}
	return level == "integrity" && (slices.Contains(b.Arguments, "lockdown=integrity") || knownKernel && b.SecureBoot == "enabled")
}

// sha256Signature is the type of a SHA-256 in a signature database (EFI_CERT_SHA256_GUID).
const sha256Signature = "c1c41626-504c-4092-aca9-41f936934328"

// revokes reports whether the machine's dbx holds the hash of an image.
func revokes(b *eventlog.Boot, d selectors.Digest) bool {
	if b == nil || !b.DBX.Known() {
		return false
	}
	signatures, err := b.DBX.Signatures()
	return err == nil && slices.ContainsFunc(signatures, func(s eventlog.Signature) bool {
		return s.Type == sha256Signature && bytes.Equal(s.Data, d[:])
	})
}

// JudgeFiles returns what the rules on files say of the machine's new entries alone.
func (g *Group) JudgeFiles(m *Machine) []Finding {
	var all []Finding
	if len(g.IMA) == 0 && !g.NoViolations {
		return nil
	}
	if m.IMA.BootAggregate.IsZero() {
		return []Finding{{Rule: "ima", Expected: "an IMA log from its boot aggregate on", Found: unproven}}
	}
	if g.NoViolations && m.IMA.Violations > 0 {
		all = append(all, Finding{Rule: "no_violations", Expected: "no file written while it is measured", Found: fmt.Sprintf("%d of %d entries are violations", m.IMA.Violations, m.IMA.Entries)})
	}
	if len(g.IMA) == 0 {
		return all
	}
	names := make([]string, len(g.IMA))
	for i, l := range g.IMA {
		names[i] = l.Name
	}
	for _, u := range g.unknown(m.Files) {
		if u.Violation {
			continue // which file it was is not known; no_violations is the rule for it
		}
		all = append(all, Finding{"ima", "a file in " + strings.Join(names, " or "), fmt.Sprintf("%s:%x, called %.200q", u.Algorithm, u.FileDigest, u.Name),
			fmt.Sprintf("IMA entry %d: %s", u.Number, u.Reason)})
		if len(all) == maxFindings {
			break
		}
	}
	return all
}

// maxFindings bounds what is said about files: people read it.
const maxFindings = 16

// unknown returns the entries that none of the lists accounts for.
func (g *Group) unknown(entries []ima.Entry) []ima.Unknown {
	var left []ima.Unknown
	for i, l := range g.IMA {
		left = ima.Judge(entries, l.Files)
		if len(left) == 0 || i == len(g.IMA)-1 {
			break
		}
		entries = entries[:0:0]
		for _, u := range left {
			entries = append(entries, u.Entry)
		}
	}
	return left
}

// Allowed returns the names of the lists that account for every one of the entries.
func (g *Group) Allowed(entries []ima.Entry) []string {
	var names []string
	for _, l := range g.IMA {
		if len(ima.Judge(entries, l.Files)) == 0 {
			names = append(names, l.Name)
		}
	}
	return names
}

// commandLineEvent names the event that measured the kernel's command line.
func (m *Machine) commandLineEvent() string {
	if m.BootLog != nil && m.Facts.Boot.CommandLine != "" {
		if e, ok := m.BootLog.CommandLineEvent(m.Facts.Boot.CommandLine); ok {
			return fmt.Sprintf("PCR %d event %d (%v), kernel command line", e.PCR, e.Number, e.Type)
		}
	}
	return "PCR 8 or 9, kernel command line"
}

// eventOf names the event that measured a digest.
func (m *Machine) eventOf(d selectors.Digest) string {
	if m.BootLog == nil || d.IsZero() {
		return ""
	}
	for _, e := range m.BootLog.Events {
		if e.Digest == eventlog.Digest(d) {
			return fmt.Sprintf("PCR %d event %d (%v)", e.PCR, e.Number, e.Type)
		}
	}
	return ""
}

func found(d selectors.Digest) string {
	if d.IsZero() {
		return unproven
	}
	return d.String()
}

func orUnproven(text string) string {
	if text == "" {
		return unproven
	}
	return text
}

func quoted(text string) string {
	if text == "" {
		return ""
	}
	return fmt.Sprintf("%q", text)
}

func digests(all []selectors.Digest) string {
	texts := make([]string, 0, 4)
	for _, d := range all[:min(len(all), 3)] {
		texts = append(texts, d.String())
	}
	if n := len(all) - 3; n > 0 {
		texts = append(texts, fmt.Sprintf("%d more", n))
	}
	return strings.Join(texts, ", ")
}
