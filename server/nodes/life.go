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

// ErrNotFound: no agent has that ID.
var ErrNotFound = errors.New("agent not found")

// Reason says why an agent is refused (spire.api.types.PermissionDeniedDetails.Reason).
type Reason int

// The values are those of the SPIRE API.
const (
	Expired      Reason = iota + 1 // the SVID has expired
	NotAttested                    // there is no record of the agent
	NotActive                      // the SVID is not the one in use
	Banned                         // an operator banned the agent
	MustReattest                   // this agent attests again instead of renewing
)

// DeniedError is the refusal of an agent.
type DeniedError struct {
	Agent  spiffeid.ID
	Reason Reason
}

func (e *DeniedError) Error() string {
	switch e.Reason {
	case Expired:
		return fmt.Sprintf("agent %q SVID is expired", e.Agent)
	case NotAttested:
		return fmt.Sprintf("agent %q is not attested", e.Agent)
	case NotActive:
		return fmt.Sprintf("agent %q SVID is not active: it has a newer one, or another agent attested as the same node", e.Agent)
	case Banned:
		return fmt.Sprintf("agent %q is banned; delete it to let it attest again", e.Agent)
	case MustReattest:
		return fmt.Sprintf("agent %q must attest again instead of renewing its SVID", e.Agent)
	}
	return fmt.Sprintf("agent %q is refused for the unknown reason %d", e.Agent, e.Reason)
}

// conflictTries bounds how often a write starts over because another writer was faster.
const conflictTries = 20

// change edits one record. edit gets a copy of the present node, or nil, and returns the new
// one, or nil to delete it; it is called again when another writer was faster. change returns
// the node as stored, or the deleted one, when Get shows it.
func (r *Registry) change(ctx context.Context, id spiffeid.ID, essential bool, edit func(*Node) (*Node, error)) (*Node, error) {
	for range conflictTries {
		rec, err := r.current(ctx, id)
		if err != nil {
			return nil, err
		}
		old := rec.node
		if old != nil {
			clone := *old
			old = &clone
		}
		next, err := edit(old)
		if err != nil {
			return nil, err
		}
		if next == nil && old == nil {
			return nil, nil
		}
		txn := store.Txn{Compares: []store.Compare{store.Unchanged(nodeKey(id), rec.revision)}, Essential: essential}
		if next == nil {
			txn.Deletes = []string{nodeKey(id)}
		} else {
			value, err := json.Marshal(next)
			if err != nil {
				return nil, fmt.Errorf("encoding the node %s: %w", id, err)
			}
			txn.Puts = []store.KV{{Key: nodeKey(id), Value: value}}
		}
		revision, err := r.cfg.Store.Commit(ctx, txn)
		switch {
		case errors.Is(err, store.ErrConflict):
			continue
		case err != nil:
			return nil, err
		case next == nil:
			return old, r.seen(ctx, revision)
		}
		return next, r.seen(ctx, revision)
	}
	return nil, fmt.Errorf("writing the node %s: other writers were faster %d times: %w", id, conflictTries, store.ErrConflict)
}

// Attested records that an agent was admitted and holds the SVID with this serial (decimal) and
// end. Selectors are replaced; the SVID before ends at once. A banned agent is refused.
func (r *Registry) Attested(ctx context.Context, a Attestation, serial string, notAfter time.Time) (*Node, error) {
	now := r.cfg.Now().UTC()
	known := r.Get(a.ID) != nil
	return r.change(ctx, a.ID, known, func(n *Node) (*Node, error) {
		if n == nil {
			n = &Node{ID: a.ID, AttestationType: a.Type, CreatedAt: now}
		}
		if n.Banned {
			return nil, &DeniedError{a.ID, Banned}
		}
		n.Serial, n.NotAfter = serial, notAfter.UTC()
		n.NewSerial, n.NewNotAfter = "", time.Time{}
		n.Selectors, n.CanReattest, n.AttestedAt = a.Selectors, a.CanReattest, now
		return n, nil
	})
}

// Renewable returns nil if the agent may renew its SVID: it has a record, is not banned and
// need not attest again.
func (r *Registry) Renewable(ctx context.Context, id spiffeid.ID) error {
	rec, err := r.current(ctx, id)
	if err != nil {
		return err
	}
	return renewable(id, rec.node)
}

func renewable(id spiffeid.ID, n *Node) error {
	switch {
	case n == nil:
		return ErrNotFound
	case n.Banned:
		return &DeniedError{id, Banned}
	case n.CanReattest:
		return &DeniedError{id, MustReattest}
	}
	return nil
}

// Renewed records a new SVID beside the one in use. The agent's first use of it activates it.
func (r *Registry) Renewed(ctx context.Context, id spiffeid.ID, serial string, notAfter time.Time) error {
	_, err := r.change(ctx, id, true, func(n *Node) (*Node, error) {
		if err := renewable(id, n); err != nil {
			return nil, err
		}
		n.NewSerial, n.NewNotAfter = serial, notAfter.UTC()
		return n, nil
	})
	return err
}

// Authorize returns nil if the agent that holds the SVID with this serial and end counts, else
// a *DeniedError, or a store error when that can not be told. A renewed SVID becomes the one
// in use here.
func (r *Registry) Authorize(ctx context.Context, id spiffeid.ID, serial string, notAfter time.Time) error {
	if r.cfg.Now().After(notAfter) {
		return &DeniedError{id, Expired}
	}
	n := r.Get(id)
	if inUse(n, serial) {
		return nil
	}
	// Memory may be behind: ask the store before an agent is sent away.
	rec, err := r.current(ctx, id)
	if errors.Is(err, store.ErrUnavailable) && awaits(n, serial) {
		return nil // issued by us for this agent; it is activated when the store is back
	}
	if err != nil {
		return fmt.Errorf("looking up agent %s: %w", id, err)
	}
	switch n := rec.node; {
	case n == nil:
		return &DeniedError{id, NotAttested}
	case n.Banned:
		return &DeniedError{id, Banned}
	case inUse(n, serial):
		return nil
	case awaits(n, serial):
		return r.activate(ctx, id, serial)
	}
	return &DeniedError{id, NotActive}
}

func inUse(n *Node, serial string) bool {
	return n != nil && !n.Banned && serial != "" && n.Serial == serial
}

func awaits(n *Node, serial string) bool {
	return n != nil && !n.Banned && serial != "" && n.NewSerial == serial
}

// activate makes the renewed SVID the one in use, unless another request of the agent just did.
func (r *Registry) activate(ctx context.Context, id spiffeid.ID, serial string) error {
	_, err := r.change(ctx, id, true, func(n *Node) (*Node, error) {
		switch {
		case n == nil:
			return nil, &DeniedError{id, NotAttested}
		case n.Banned:
			return nil, &DeniedError{id, Banned}
		case inUse(n, serial):
			return n, nil
		case !awaits(n, serial):
			return nil, &DeniedError{id, NotActive}
		}
		n.Serial, n.NotAfter = n.NewSerial, n.NewNotAfter
		n.NewSerial, n.NewNotAfter = "", time.Time{}
		return n, nil
	})
	return err
}

// Ban refuses the agent from now on. Its record stays until Delete.
func (r *Registry) Ban(ctx context.Context, id spiffeid.ID) error {
	_, err := r.change(ctx, id, true, func(n *Node) (*Node, error) {
		if n == nil {
			return nil, ErrNotFound
		}
		n.Serial, n.NewSerial, n.NewNotAfter, n.Banned = "", "", time.Time{}, true
		return n, nil
	})
	return err
}

// Delete forgets the agent and returns its last record. The caller deletes its alias entries
// (IsAliasEntry).
func (r *Registry) Delete(ctx context.Context, id spiffeid.ID) (*Node, error) {
	return r.change(ctx, id, true, func(n *Node) (*Node, error) {
		if n == nil {
			return nil, ErrNotFound
		}
		return nil, nil
	})
}

// SetVersion records the version that the agent says it has.
func (r *Registry) SetVersion(ctx context.Context, id spiffeid.ID, version string) error {
	if n := r.Get(id); n != nil && n.AgentVersion == version {
		return nil
	}
	_, err := r.change(ctx, id, false, func(n *Node) (*Node, error) {
		if n == nil {
			return nil, ErrNotFound
		}
		n.AgentVersion = version
		return n, nil
	})
	return err
}
