// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/store"
)

// StateError: the node's state does not allow that change.
type StateError struct {
	Agent spiffeid.ID
	State State
	// Advice is what to do instead.
	Advice string
}

func (e *StateError) Error() string {
	return fmt.Sprintf("agent %q is %s; %s", e.Agent, e.State, e.Advice)
}

// Bounds on nodes that nobody has decided about yet: anybody may ask.
const (
	maxPending     = 1000
	pendingNoted   = time.Hour          // how often an attempt is noted in the record
	pendingForgets = 7 * 24 * time.Hour // without an attempt
)

// ErrTooManyPending: no more nodes may wait for approval.
var ErrTooManyPending = errors.New("too many nodes wait for approval: approve, ban or evict some of them (assay node list --state pending)")

// Hold records an agent that proved itself, but that an operator has to approve (a.Pending says
// why), and returns the *DeniedError for it.
func (r *Registry) Hold(ctx context.Context, a Attestation) error {
	now := r.cfg.Now().UTC()
	if n := r.Get(a.ID); n != nil && n.State == StatePending && n.Selectors.Equal(a.Selectors) && now.Sub(n.AttestedAt) < pendingNoted {
		return r.denial(n)
	} else if n == nil && len(r.nodes.all(isPending)) >= maxPending {
		return ErrTooManyPending
	}
	n, err := r.change(ctx, a.ID, false, func(n *Node) (*Node, error) {
		if n == nil {
			n = &Node{ID: a.ID, AttestationType: a.Type, CreatedAt: now}
		}
		if n.State == StateSuspended || n.State == StateBanned {
			return nil, r.denial(n)
		}
		if n.State != StatePending {
			n.enter(Standing{State: StatePending, Reason: a.Pending, Since: now, By: ByAttestation})
		}
		n.noSVID()
		n.attested(a, now)
		return n, nil
	})
	if err != nil {
		return err
	}
	return r.denial(n)
}

func isPending(n *Node) bool { return n.State == StatePending }

// PrunePending forgets the pending nodes that have given up and returns how many they were.
func (r *Registry) PrunePending(ctx context.Context) (int, error) {
	old := func(n *Node) bool {
		return n.State == StatePending && r.cfg.Now().Sub(n.AttestedAt) > pendingForgets
	}
	pruned := 0
	for _, n := range r.nodes.all(old) {
		gone := false
		_, err := r.change(ctx, n.ID, false, func(n *Node) (*Node, error) {
			if gone = n != nil && old(n); gone {
				return nil, nil
			}
			return n, nil
		})
		if err != nil {
			return pruned, fmt.Errorf("pruning pending nodes: %w", err)
		}
		if gone {
			pruned++
		}
	}
	return pruned, nil
}

// Suspend makes the agent's SVID count no longer, until Readmit. The serial stays in the record.
// A banned node stays banned, and a suspended one keeps its first reason.
func (r *Registry) Suspend(ctx context.Context, id spiffeid.ID, reason, by string) error {
	return r.stand(ctx, id, StateSuspended, reason, by, func(n *Node) error {
		switch n.State {
		case StatePending:
			return &StateError{id, n.State, "it holds nothing to suspend; ban it"}
		case StateBanned:
			return &StateError{id, n.State, "evict it to let it attest again"}
		}
		return nil
	})
}

// Readmit ends a suspension. An agent that can attest again must do so: its SVID stays without
// effect. One that can not (join token) goes on with the SVID that it has.
func (r *Registry) Readmit(ctx context.Context, id spiffeid.ID, by string) error {
	return r.stand(ctx, id, StateAdmitted, "", by, func(n *Node) error {
		switch n.State {
		case StatePending:
			return &StateError{id, n.State, "approve it"}
		case StateBanned:
			return &StateError{id, n.State, "evict it to let it attest again"}
		case StateSuspended:
			if n.CanReattest {
				n.noSVID()
				n.TPM = nil // its counters may start anew: the TPM was cleared
			}
		}
		return nil
	})
}

// Approve admits a pending node at its next attestation, by putting its EK into the inventory.
func (r *Registry) Approve(ctx context.Context, id spiffeid.ID, by string) error {
	ek, err := ekOf(id)
	if err != nil {
		return err
	}
	d := Device{EK: ek, AddedAt: r.cfg.Now().UTC(), By: by, Note: "approved"}
	value, err := json.Marshal(d)
	if err != nil {
		return fmt.Errorf("encoding the approval: %w", err)
	}
	return r.stand(ctx, id, StateAdmitted, "approved; it attests again", by, func(n *Node) error {
		if n.State != StatePending {
			return &StateError{id, n.State, "only pending nodes are approved"}
		}
		return nil
	}, store.KV{Key: d.key(), Value: value})
}

// Ban refuses the agent from now on. Its record stays until Delete.
func (r *Registry) Ban(ctx context.Context, id spiffeid.ID, reason, by string) error {
	return r.stand(ctx, id, StateBanned, reason, by, func(n *Node) error { n.noSVID(); return nil })
}

// stand gives a known node a new state, unless it has it already.
func (r *Registry) stand(ctx context.Context, id spiffeid.ID, state State, reason, by string, allow func(*Node) error, puts ...store.KV) error {
	now := r.cfg.Now().UTC()
	_, err := r.change(ctx, id, true, func(n *Node) (*Node, error) {
		if n == nil {
			return nil, ErrNotFound
		}
		if err := allow(n); err != nil {
			return nil, err
		}
		if n.State != state {
			n.enter(Standing{State: state, Reason: reason, Since: now, By: by})
		}
		return n, nil
	}, puts...)
	return err
}
