// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bytes"
	"compress/flate"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm/eventlog"
	"github.com/assay-id/assay/tpm/policy"
	"github.com/assay-id/assay/tpm/verify"
)

// maxKeptLog bounds a log in a record, deflated.
const maxKeptLog = 256 << 10

func newTPMState(v *verify.Verdict, now time.Time) (*nodes.TPMState, error) {
	s := &nodes.TPMState{AK: v.AK, Quoted: v.Quoted, QuotedAt: now.UTC(), Facts: v.Facts, IMA: v.IMA, CommandLine: v.CommandLine}
	var log bytes.Buffer
	w, err := flate.NewWriter(&log, flate.BestSpeed)
	if err == nil {
		_, err = w.Write(v.BootLog)
		err = errors.Join(err, w.Close())
	}
	if err != nil {
		return nil, fmt.Errorf("packing a boot log: %w", err)
	}
	if len(v.BootLog) > 0 && log.Len() <= maxKeptLog {
		s.BootLog = log.Bytes()
	}
	return s, nil
}

// machineOf is a state as policies judge it. Files that were measured are not kept.
func machineOf(s *nodes.TPMState) (*policy.Machine, error) {
	m := &policy.Machine{Facts: s.Facts, IMA: s.IMA}
	if len(s.BootLog) == 0 {
		return m, nil
	}
	data, err := io.ReadAll(io.LimitReader(flate.NewReader(bytes.NewReader(s.BootLog)), eventlog.MaxLog+1))
	if err != nil {
		return nil, fmt.Errorf("unpacking a boot log: %w", err)
	}
	if m.BootLog, err = eventlog.Parse(data); err != nil {
		return nil, err
	}
	q := eventlog.Quote{PCRs: map[int]eventlog.Digest{}, BootAggregate: eventlog.Digest(s.IMA.BootAggregate), CommandLine: s.CommandLine}
	for n, d := range s.Facts.PCRs {
		q.PCRs[n] = eventlog.Digest(d)
	}
	m.Boot, err = m.BootLog.Replay(q)
	return m, err
}

// Rules are the node groups of the configuration.
type Rules struct {
	Groups map[string]*policy.Group
	// Devices says by its inventory to which group a TPM belongs; may be nil.
	Devices interface {
		Get(ek selectors.Digest) *nodes.Device
	}
}

// defaultGroup is the group of machines that the inventory puts into none.
const defaultGroup = "default"

// group returns the rules for a TPM; nil if there are none.
func (r *Rules) group(ek selectors.Digest) (*policy.Group, error) {
	if r == nil {
		return nil, nil
	}
	if r.Devices != nil {
		if d := r.Devices.Get(ek); d != nil && d.Group != "" {
			g := r.Groups[d.Group]
			if g == nil {
				return nil, fmt.Errorf("the inventory puts the TPM %s into the group %q, which the server's configuration does not have: add node_group %q, or correct the inventory", ek, d.Group, d.Group)
			}
			return g, nil
		}
	}
	return r.Groups[defaultGroup], nil
}

// judge notes the machine's group and allow-lists in its state, and returns which rules it breaks.
func (r *Rules) judge(s *nodes.TPMState, v *verify.Verdict) (findings, error) {
	g, err := r.group(s.Facts.EKHash)
	if err != nil || g == nil {
		return nil, err
	}
	s.Group = g.Name
	m := &policy.Machine{Facts: s.Facts, Boot: v.Boot, IMA: v.IMA, Files: v.Files}
	if v.Boot != nil {
		if m.BootLog, err = eventlog.Parse(v.BootLog); err != nil {
			return nil, err
		}
	}
	if !s.IMA.BootAggregate.IsZero() {
		s.Facts.Files.AllowLists = g.Allowed(v.Files)
	}
	return g.Judge(m), nil
}

// with returns the rules with some groups in place of those that are called the same.
func (r *Rules) with(groups []*policy.Group) *Rules {
	next := &Rules{Groups: map[string]*policy.Group{}}
	if r != nil {
		next.Devices = r.Devices
		maps.Copy(next.Groups, r.Groups)
	}
	for _, g := range groups {
		next.Groups[g.Name] = g
	}
	return next
}

// choose returns the rules of the group named, or those for the node; nil if there are none.
func (r *Rules) choose(n *nodes.Node, group string) (*policy.Group, error) {
	switch {
	case n.TPM == nil:
		return nil, fmt.Errorf("%s did not attest by a TPM", n.ID)
	case group == "":
		return r.group(n.TPM.Facts.EKHash)
	case r.Groups[group] == nil:
		return nil, fmt.Errorf("the server's configuration has no node_group %q", group)
	}
	return r.Groups[group], nil
}

// findings say, one sentence each, which rules a machine breaks.
type findings []policy.Finding

func (f findings) String() string {
	lines := make([]string, len(f))
	for i := range f {
		lines[i] = f[i].String()
	}
	return strings.Join(slices.Compact(lines), "\n")
}
