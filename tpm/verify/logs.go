// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/eventlog"
	"github.com/assay-id/assay/tpm/ima"
)

// judgeLogs replays the logs to the quote. A log that is not sent proves nothing; one that is sent
// and does not lead to the quote is a lie.
func (s *Session) judgeLogs(p Proof) error {
	if err := s.judgeIMALog(p); err != nil {
		return err
	}
	return s.judgeBootLog(p.Evidence)
}

func (s *Session) judgeIMALog(p Proof) error {
	quoted, ok := s.progress.Quoted.PCRs[imaPCR]
	// A TPM that nobody vouches for may be made of software; it gets none of our memory.
	if !ok || len(p.Evidence.IMA) == 0 || s.progress.Unvouched != "" {
		return nil
	}
	log, err := wholeLog(p)
	if err != nil {
		return err
	}
	state, entries, err := ima.State{}.Advance(log, quoted)
	if err != nil {
		return refuse(checkIMALog, "%v", err)
	}
	s.progress.IMA, s.progress.Files = state, entries
	s.progress.Facts.Files.NoViolations = state.Violations == 0 && !state.BootAggregate.IsZero()
	if claim := p.Evidence.AgentSHA256; len(claim) == sha256.Size {
		if _, ok := ima.Find(entries, selectors.Digest(claim)); ok {
			s.progress.Facts.Files.Agent = selectors.Digest(claim)
		}
	}
	s.pass(checkIMALog, "%d entries lead to the quoted PCR %d", state.Entries, imaPCR)
	return nil
}

// imaPCR is where Linux extends IMA's measurements.
const imaPCR = 10

// wholeLog collects the parts of the IMA log.
func wholeLog(p Proof) ([]byte, error) {
	log, more := p.Evidence.IMA, p.Evidence.IMAMore
	for more {
		if len(log) > ima.MaxChunk-tpm.MaxIMAChunk {
			return nil, refuse(checkIMALog, "the IMA log has more than %d bytes; measure less, or boot again", ima.MaxChunk-tpm.MaxIMAChunk)
		}
		c, err := p.More(tpm.More{Version: tpm.Version, IMAOffset: int64(len(log))})
		if err != nil {
			return nil, err
		}
		log, more = append(log, c.IMA...), c.IMAMore
	}
	return log, nil
}

func (s *Session) judgeBootLog(e tpm.Evidence) error {
	pcrs := s.progress.Quoted.PCRs
	for n := range 8 {
		if _, ok := pcrs[n]; !ok {
			return nil // the policy does not ask for what a boot log needs
		}
	}
	if len(e.BootLog) == 0 {
		return nil
	}
	log, err := eventlog.Parse(e.BootLog)
	if err != nil {
		return refuse(checkBootLog, "%v", err)
	}
	boot, err := log.Replay(eventlog.Quote{PCRs: pcrs, BootAggregate: s.progress.IMA.BootAggregate, CommandLine: e.CommandLine})
	if mismatch, ok := errors.AsType[*eventlog.MismatchError](err); ok {
		return refuse(checkBootLog, "%v%s", err, suspect(log, mismatch.PCR))
	} else if err != nil {
		return refuse(checkBootLog, "%v", err)
	}
	s.progress.Boot, s.progress.BootLog, s.progress.CommandLine = boot, e.BootLog, e.CommandLine
	s.progress.Facts.Boot = BootFacts(boot)
	s.pass(checkBootLog, "%d events lead to the quoted PCRs", len(log.Events))
	return nil
}

// measuresData are the types of events whose digest is that of their data (PFP 10.4.1): one that
// is not was changed, or the firmware is odd.
var measuresData = map[eventlog.EventType]bool{
	0x04: true, 0x05: true, 0x08: true, 0x80000001: true, 0x80000006: true, 0x80000007: true, 0x800000e0: true,
}

// suspect names the event of a PCR that looks as if it was changed, if one does.
func suspect(log *eventlog.Log, pcr int) string {
	for _, e := range log.Events {
		if int(e.PCR) == pcr && !e.Verified && measuresData[e.Type] {
			return fmt.Sprintf("; event %d (%v) is suspect: its data does not have its digest", e.Number, e.Type)
		}
	}
	return ""
}

// BootFacts takes from a boot what selectors and rules are made of.
func BootFacts(b *eventlog.Boot) selectors.BootFacts {
	f := selectors.BootFacts{
		Sealed: b.Sealed, SetupMode: b.SetupMode,
		PK: b.PK.SHA256, KEK: b.KEK.SHA256, DB: b.DB.SHA256, DBX: b.DBX.SHA256,
		KernelImage: b.KernelImage, Kernel: b.Kernel, Initrd: b.Initrd, Applications: b.Applications,
		CommandLine: b.CommandLine, Arguments: b.Arguments(),
	}
	if b.SecureBoot == eventlog.SecureBootDisabled || b.SecureBoot == eventlog.SecureBootEnabled && !b.ShimInsecure {
		f.SecureBoot = string(b.SecureBoot)
	}
	if b.SBAT != "" {
		f.SBAT = sha256.Sum256([]byte(b.SBAT))
	}
	for _, a := range b.Authorities {
		f.Authorities = append(f.Authorities, a.SHA256)
	}
	return f
}
