// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/eventlog"
	"github.com/assay-id/assay/tpm/ima"
	"github.com/assay-id/assay/tpm/policy"
	"github.com/assay-id/assay/tpm/verify"
)

// round asks until the IMA log is there as a whole, and judges the last answer.
func (c *Continuous) round(ctx context.Context, id spiffeid.ID, w *watched, r *requoting) error {
	w.mu.Lock()
	state := *w.state
	w.mu.Unlock()
	room := held{memory: c.Memory}
	defer room.release()
	var log []byte
	for {
		q := tpm.Question{Version: tpm.Version, Nonce: make([]byte, tpm.NonceSize), PCRs: slices.Sorted(maps.Keys(state.Quoted.PCRs)),
			IMAOffset: state.IMA.Offset + int64(len(log))}
		if _, err := io.ReadFull(c.Rand, q.Nonce); err != nil {
			return fmt.Errorf("making a nonce: %w", err)
		}
		a, err := exchange[tpm.Question, tpm.Answer](ctx, q, r.ask)
		if err != nil {
			return err
		}
		quoted, err := r.ak.Requote(q, a, r.spki, r.binding)
		if err != nil {
			return err
		}
		if log = append(log, a.IMA...); a.IMAMore && len(log) <= ima.MaxChunk-tpm.MaxIMAChunk {
			if err := room.grow(ctx, int64(len(log)+tpm.MaxIMAChunk)); err != nil {
				return err
			}
			continue
		}
		return c.judge(ctx, id, w, r, quoted, a.History, log)
	}
}

// judge holds a quote against what is known of the machine, and takes note of it.
func (c *Continuous) judge(ctx context.Context, id spiffeid.ID, w *watched, r *requoting, quoted verify.Quoted, history tpm.History, log []byte) error {
	w.mu.Lock()
	if w.live != r {
		w.mu.Unlock()
		return errSuperseded
	}
	next, err := advance(w.state, quoted, history, log)
	if err == nil {
		err = c.judgeFiles(next)
	}
	if err != nil {
		w.fresh = time.Time{}
		w.mu.Unlock()
		if d, ok := errors.AsType[*deviation](err); ok {
			return c.suspend(ctx, id, d.by, d.reason)
		}
		return err
	}
	if w.state.History == (tpm.History{}) {
		c.compareFormer(id, history, next.Former)
	}
	now := c.Now()
	next.QuotedAt = now.UTC()
	keep := now.Sub(w.kept) >= keepEvery
	if keep {
		w.kept = now
	}
	w.files.advance(w.state.IMA, next.IMA, next.files)
	w.state, w.fresh = &next.TPMState, now
	w.recent = append(w.recent, nodes.Anchor{At: next.QuotedAt, Clock: quoted.Clock, History: history})
	w.recent = slices.Clone(w.recent[max(0, len(w.recent)-maxAnchors):])
	w.mu.Unlock()
	return c.keep(ctx, id, &next.TPMState, keep)
}

// keep writes the state down if it is time to, or if the node's selectors changed.
func (c *Continuous) keep(ctx context.Context, id spiffeid.ID, s *nodes.TPMState, due bool) error {
	set := selectors.DeriveNode(&s.Facts)
	if n := c.Nodes.Get(id); !due && n != nil && n.Selectors.Equal(set) {
		return nil
	}
	if err := c.Nodes.Requoted(ctx, id, s, set); err != nil {
		c.Logger.Warn("what a node's TPM said could not be written down; trying again", "agent", id, "error", err)
	}
	return nil
}

// deviation is why a machine is suspended.
type deviation struct{ by, reason string }

func (d *deviation) Error() string { return d.reason }

func drifted(format string, args ...any) error {
	return &deviation{nodes.ByDrift, fmt.Sprintf(format, args...)}
}

func wentBack(quoted, last *verify.Quoted) string {
	return fmt.Sprintf("the TPM's counters went back, from reset %d, restart %d, clock %d ms to reset %d, restart %d, clock %d ms: a copy of the TPM is in use, or the TPM was cleared",
		last.ResetCount, last.RestartCount, last.Clock, quoted.ResetCount, quoted.RestartCount, quoted.Clock)
}

// advanced is a state with the files that were measured since the one before.
type advanced struct {
	nodes.TPMState
	files []ima.Entry
}

// imaPCR is where Linux extends IMA's measurements, phasePCR where systemd-pcrphase extends its own.
const (
	imaPCR   = 10
	phasePCR = 11
)

// advance returns the state after another quote of the same boot. The error is a *deviation if the
// machine is not what it was, errReboot if it was booted meanwhile.
func advance(s *nodes.TPMState, quoted verify.Quoted, history tpm.History, log []byte) (*advanced, error) {
	next := &advanced{TPMState: *s}
	switch {
	case quoted.Before(&s.Quoted):
		return nil, &deviation{nodes.ByClone, wentBack(&quoted, &s.Quoted)}
	case !quoted.SameBoot(&s.Quoted):
		return nil, errReboot
	case quoted.Firmware != s.Quoted.Firmware:
		return nil, drifted("the TPM's firmware changed from %016x to %016x without a boot", s.Quoted.Firmware, quoted.Firmware)
	case s.History != tpm.History{} && (history.Count < s.History.Count || history.Count == s.History.Count && history.Head != s.History.Head):
		return nil, drifted("the agent's history of deliveries was rewritten: it has %d records, and had %d", history.Count, s.History.Count)
	}
	for _, n := range slices.Sorted(maps.Keys(s.Quoted.PCRs)) {
		was, is := s.Quoted.PCRs[n], quoted.PCRs[n]
		if n == imaPCR || was == is {
			continue
		}
		if _, ok := eventlog.Phases(eventlog.Digest(was), eventlog.Digest(is)); n == phasePCR && ok {
			continue
		}
		return nil, drifted("PCR %d moved from %s to %s without a boot: something was measured that belongs to a boot", n, was, is)
	}
	next.Quoted, next.Facts.PCRs, next.History = quoted, quoted.PCRs, history
	if s.IMA.Entries == 0 {
		return next, nil // the machine has no IMA log
	}
	state, files, err := s.IMA.Advance(log, ima.Digest(quoted.PCRs[imaPCR]))
	if err != nil {
		return nil, drifted("%v", err)
	}
	next.IMA, next.files = state, files
	next.Facts.Files.NoViolations = s.Facts.Files.NoViolations && state.Violations == 0
	return next, nil
}

// judgeFiles holds new files against the rules of the machine's group.
func (c *Continuous) judgeFiles(s *advanced) error {
	g, err := c.Rules.group(s.Facts.EKHash)
	if err != nil {
		return drifted("%v", err)
	}
	if g == nil {
		s.Facts.Files.AllowLists = nil
		return nil
	}
	if f := findings(g.JudgeFiles(&policy.Machine{Facts: s.Facts, IMA: s.IMA, Files: s.files})); len(f) > 0 {
		return drifted("%s", f)
	}
	allowed := g.Allowed(s.files)
	s.Facts.Files.AllowLists = slices.DeleteFunc(slices.Clone(s.Facts.Files.AllowLists), func(name string) bool { return !slices.Contains(allowed, name) })
	return nil
}
