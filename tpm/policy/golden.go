// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/eventlog"
	"github.com/assay-id/assay/tpm/ima"
)

// Golden is what a machine that an operator trusts looked like (`assay tpm learn`).
type Golden struct {
	// Version of this format.
	Version int `json:"version"`
	// Name and LearnedAt are for people.
	Name      string    `json:"name,omitempty"`
	LearnedAt time.Time `json:"learned_at"`
	// PCRs are values of the SHA-256 bank.
	PCRs map[int]selectors.Digest `json:"pcrs"`
	// BootLog is the firmware's event log, if there was one: it tells which event differs.
	BootLog []byte `json:"boot_log,omitempty"`
	// CommandLine is the kernel's, as in /proc/cmdline.
	CommandLine string `json:"command_line,omitempty"`

	log *eventlog.Log // of BootLog
}

// goldenVersion is the version that is written and read.
const goldenVersion = 1

// maxGolden bounds a golden file, in bytes.
const maxGolden = 4 << 20

// Snapshot is what a machine tells of itself, without a verifier: fit for learning on a machine
// that is trusted, and for nothing else.
type Snapshot struct {
	PCRs        map[int]selectors.Digest
	BootLog     []byte
	CommandLine string
	// IMALog may be longer than what PCR 10 speaks of.
	IMALog []byte
}

// Learn makes a golden machine of a snapshot, and the list of the files that it measured, nil
// without an IMA log. It fails if the logs do not lead to the PCRs.
func Learn(s Snapshot, name string, now time.Time) (*Golden, *ima.AllowList, error) {
	g := &Golden{Version: goldenVersion, Name: name, LearnedAt: now.UTC(), PCRs: s.PCRs, BootLog: s.BootLog, CommandLine: s.CommandLine}
	var state ima.State
	var files *ima.AllowList
	if len(s.IMALog) > 0 {
		next, entries, err := state.Advance(s.IMALog, ima.Digest(s.PCRs[10]))
		if err != nil {
			return nil, nil, err
		}
		state = next
		if files, err = ima.Learn(entries); err != nil {
			return nil, nil, err
		}
	}
	if err := g.check(); err != nil {
		return nil, nil, fmt.Errorf("learning a golden machine: %w", err)
	}
	if g.log != nil {
		quote := eventlog.Quote{PCRs: map[int]eventlog.Digest{}, BootAggregate: eventlog.Digest(state.BootAggregate), CommandLine: s.CommandLine}
		for n, d := range s.PCRs {
			quote.PCRs[n] = eventlog.Digest(d)
		}
		if _, err := g.log.Replay(quote); err != nil {
			return nil, nil, fmt.Errorf("learning a golden machine: %w", err)
		}
	}
	return g, files, nil
}

// ParseGolden reads what Golden marshals to.
func ParseGolden(data []byte) (*Golden, error) {
	if len(data) > maxGolden {
		return nil, fmt.Errorf("golden machine: %d bytes are over the limit of %d", len(data), maxGolden)
	}
	g := &Golden{}
	if err := json.Unmarshal(data, g); err != nil {
		return nil, fmt.Errorf("golden machine: %w; write the file with `assay tpm learn`", err)
	}
	if err := g.check(); err != nil {
		return nil, fmt.Errorf("golden machine: %w; write the file with `assay tpm learn`", err)
	}
	return g, nil
}

func (g *Golden) check() (err error) {
	if g.Version != goldenVersion {
		return fmt.Errorf("its version is %d, and this program knows %d", g.Version, goldenVersion)
	}
	if len(g.PCRs) == 0 {
		return errors.New("it has no PCRs")
	}
	for n := range g.PCRs {
		if n < 0 || n >= tpm.PCRCount {
			return fmt.Errorf("there is no PCR %d", n)
		}
	}
	if len(g.BootLog) > 0 {
		g.log, err = eventlog.Parse(g.BootLog)
	}
	return err
}

// boot returns what the golden machine's log tells, nil without a log. Its PCRs stand for what IMA would say
// of the time before user space: the machine is trusted.
func (g *Golden) boot() (*eventlog.Boot, error) {
	if g.log == nil {
		return nil, nil
	}
	quote := eventlog.Quote{PCRs: map[int]eventlog.Digest{}, CommandLine: g.CommandLine}
	for n, d := range g.PCRs {
		quote.PCRs[n] = eventlog.Digest(d)
	}
	quote.BootAggregate, _ = eventlog.BootAggregate(quote.PCRs)
	return g.log.Replay(quote)
}

// loggedLater are PCRs into which more is extended after the log's end: there it is the logs that are
// compared, which both lead to the PCRs.
var loggedLater = []int{5, 11}

// judgeGolden compares the required PCRs with the golden machine's.
func (g *Group) judgeGolden(m *Machine) []Finding {
	required := g.RequirePCRs
	if len(required) == 0 {
		required = DefaultPCRs
	}
	differences := map[int][]eventlog.Difference{}
	if g.Golden.log != nil && m.BootLog != nil {
		for _, d := range eventlog.Diff(g.Golden.log, m.BootLog) {
			differences[d.PCR] = append(differences[d.PCR], d)
		}
	}
	var all []Finding
	for _, n := range required {
		want, have := g.Golden.PCRs[n], m.Facts.PCRs[n]
		_, learned := g.Golden.PCRs[n]
		_, quoted := m.Facts.PCRs[n]
		if learned && quoted && (want == have || slices.Contains(loggedLater, n) && m.replays(n) && g.Golden.log != nil && len(differences[n]) == 0) {
			continue
		}
		rule := fmt.Sprintf("golden PCR %d", n)
		if len(differences[n]) == 0 {
			all = append(all, Finding{Rule: rule, Expected: known(learned, want), Found: known(quoted, have)})
		}
		for _, d := range differences[n][:min(len(differences[n]), maxFindings)] {
			if d.What == "kernel command line" && d.ExpectedText == "" && m.Facts.Boot.CommandLine != "" {
				d.ExpectedText, d.FoundText = g.Golden.CommandLine, m.Facts.Boot.CommandLine // an EFI stub measures it in UTF-16
			}
			all = append(all, Finding{rule, known(learned, want), known(quoted, have), d.String()})
		}
	}
	return all
}

// replays reports whether the machine's log leads to its PCR.
func (m *Machine) replays(pcr int) bool {
	return m.Boot != nil && !slices.Contains(m.Boot.Later, pcr)
}

func known(ok bool, d selectors.Digest) string {
	if !ok {
		return unproven
	}
	return d.String()
}
