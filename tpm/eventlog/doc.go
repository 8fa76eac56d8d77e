// SPDX-License-Identifier: Apache-2.0

// Package eventlog turns a machine's TCG event log and its quoted PCRs into facts about what it
// booted. It reads the crypto-agile log that Linux shows as
// /sys/kernel/security/tpm0/binary_bios_measurements (TCG PC Client Platform Firmware Profile,
// PFP, 10.2), and of it the SHA-256 bank only.
//
//	log    := spec id event, event…
//	event  := PCR u32 │ type u32 │ count u32 │ count × (algorithm u16 │ digest) │ size u32 │ data
//	          └ nothing vouches for it ┘        └ SHA-256: the quoted PCR ┘         └ only if it hashes to the digest
//
// # What is believed
//
// A quoted PCR fixes the sequence of digests that were extended into it, and nothing else:
// not the events' types, not their order across PCRs, and their data only where it hashes to
// the digest. So every fact is made of three things: the digests of one PCR in order, data
// that hashes to such a digest, and digests of constants (separators, section names). Types
// and labels are shown to people and never believed.
//
// The log comes from a machine that is not trusted. Whatever is done to it, a field of Boot
// is as it would be for the genuine log, or empty, or the log is refused; facts that only
// together mean something (the authorities, the commands of GRUB) are given all or not at all.
//
// # What was added later
//
// Root can extend PCRs 0 to 15 at any time. What the firmware measured before the separator
// of its PCR is safe from that, since it comes first. All else is given only if Boot.Sealed:
// the boot aggregate, with which the kernel begins IMA's log before any user space runs, equals
// the quoted PCRs 0 to 9. A seal is worth as much as the kernel that made it, and what a boot
// loader measured is worth as much as the boot loader: pin Boot.Applications.
//
// # Why not go-eventlog
//
// github.com/google/go-eventlog (v0.0.3-0.20260416001248) was measured against this. Its framing
// is the 100 lines that stand here in log.go; with them come protobuf and go-tpm/legacy, a
// replay that accepts any quoted value for a PCR without events and believes the event's type at
// H-CRTM, and event types that end the process in a stack overflow when printed. Its list of firmware
// quirks (missing ExitBootServices events, startup locality) is known here too: see tails.
package eventlog
