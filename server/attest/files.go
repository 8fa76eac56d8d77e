// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"fmt"
	"unique"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm/ima"
	"github.com/assay-id/assay/tpm/policy"
)

// maxFiles bounds what is remembered of one machine: 8 bytes for each file, and the file once for
// all machines that measured it. A Debian server that runs ima_policy=tcb measures some thousand.
const maxFiles = 1 << 15

// file is an entry of an IMA log without its number.
type file struct {
	violation                     bool
	kind, algorithm, digest, name string
}

// files are all that a machine measured since its boot, in order, as far as state. They are for dry runs
// (Check), so memory is the place for them: each attestation in full brings them anew.
type files struct {
	state ima.State
	all   []unique.Handle[file]
}

// advance adds the files between two states. If some before are missing, or they are too many, nothing
// is known until the next attestation.
func (f *files) advance(from, to ima.State, entries []ima.Entry) {
	if f.state != from || uint64(len(f.all)) != from.Entries || to.Entries > maxFiles {
		*f = files{}
		return
	}
	for _, e := range entries {
		f.all = append(f.all, unique.Make(file{e.Violation, e.Kind, e.Algorithm, string(e.FileDigest), e.Name}))
	}
	f.state = to
}

// entries returns the files up to a state, and whether they are known.
func (f *files) entries(upTo ima.State) ([]ima.Entry, bool) {
	if f.state != upTo || uint64(len(f.all)) != upTo.Entries {
		return nil, false
	}
	out := make([]ima.Entry, len(f.all))
	for n, h := range f.all {
		v := h.Value()
		out[n] = ima.Entry{Number: uint64(n), Violation: v.violation, Kind: v.kind, Algorithm: v.algorithm, FileDigest: []byte(v.digest), Name: v.name}
	}
	return out, true
}

// remember keeps what a machine measured before it attested.
func (c *Continuous) remember(id spiffeid.ID, state ima.State, entries []ima.Entry) {
	if c == nil {
		return
	}
	w := c.of(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files = files{}
	w.files.advance(ima.State{}, state, entries)
}

// Check tells which rules a node breaks as it was last seen, and changes nothing: by the rules of its
// group, or of the group named. The proposed groups take the place of those that are called the same.
// Without filesKnown, lists of files were not judged: this server did not see all that the
// machine measured.
func (c *Continuous) Check(n *nodes.Node, group string, proposed []*policy.Group) (broken []policy.Finding, filesKnown bool, err error) {
	g, err := c.Rules.with(proposed).choose(n, group)
	if err != nil || g == nil {
		return nil, true, err
	}
	state, measured, filesKnown := c.lastSeen(n)
	m, err := machineOf(state)
	if err != nil {
		return nil, false, fmt.Errorf("reading the record of %s: %w", n.ID, err)
	}
	rules := *g
	if m.Files = measured; !filesKnown {
		rules.IMA = nil
	}
	return rules.Judge(m), filesKnown || len(g.IMA) == 0, nil
}

// lastSeen returns the last state that is known of a node, and the files that lead to it, if they are known.
func (c *Continuous) lastSeen(n *nodes.Node) (state *nodes.TPMState, measured []ima.Entry, known bool) {
	w := c.of(n.ID)
	w.mu.Lock()
	defer w.mu.Unlock()
	state = n.TPM
	if w.state != nil && w.of.Equal(n.AttestedAt) {
		state = w.state
	}
	measured, known = w.files.entries(state.IMA)
	return state, measured, known
}
