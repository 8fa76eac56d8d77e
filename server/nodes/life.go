// SPDX-License-Identifier: Apache-2.0

package nodes

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/store"
)

// Attested records that an agent was admitted and holds the SVID with this serial (decimal) and
// end. Selectors are replaced; the SVID before ends at once. A banned agent is refused, and a
// suspended one unless an attestation lifts its suspension (Config.ReadmitByAttestation). So is one whose
// TPM has said something later since: another server may have judged the original of a copy at this moment.
func (r *Registry) Attested(ctx context.Context, a Attestation, serial string, notAfter time.Time) (*Node, error) {
	now := r.cfg.Now().UTC()
	known := r.Get(a.ID) != nil
	return r.change(ctx, a.ID, known, func(n *Node) (*Node, error) {
		if n == nil {
			n = &Node{ID: a.ID, AttestationType: a.Type, CreatedAt: now}
		}
		if err := r.admissible(n); err != nil {
			return nil, err
		}
		if n.TPM != nil && a.TPM != nil && a.TPM.Quoted.Before(&n.TPM.Quoted) {
			return nil, errOvertaken
		}
		if n.State != StateAdmitted {
			n.enter(Standing{State: StateAdmitted, Since: now, By: ByAttestation})
		}
		n.Serial, n.NotAfter = serial, notAfter.UTC()
		n.NewSerial, n.NewNotAfter = "", time.Time{}
		n.attested(a, now)
		return n, nil
	})
}

var errOvertaken = errors.New("a later quote of this TPM was judged meanwhile; attest again")

// attested notes what an attestation showed.
func (n *Node) attested(a Attestation, now time.Time) {
	n.Selectors, n.Checks, n.CanReattest, n.AttestedAt, n.TPM = a.Selectors, a.Checks, a.CanReattest, now, a.TPM
}

// Requoted records what a later quote showed of the machine, and its selectors, unless an attestation
// since then showed something newer.
func (r *Registry) Requoted(ctx context.Context, id spiffeid.ID, s *TPMState, set selectors.Set) error {
	_, err := r.change(ctx, id, false, func(n *Node) (*Node, error) {
		if n == nil {
			return nil, ErrNotFound
		}
		if n.TPM != nil && n.State == StateAdmitted && !s.Quoted.Before(&n.TPM.Quoted) {
			n.TPM, n.Selectors = s, set
		}
		return n, nil
	})
	return err
}

// Admissible returns the *DeniedError for an agent that attested and that Attested would refuse,
// as far as memory knows.
func (r *Registry) Admissible(id spiffeid.ID) error {
	if n := r.Get(id); n != nil {
		return r.admissible(n)
	}
	return nil
}

func (r *Registry) admissible(n *Node) error {
	if n.State == StateBanned || n.State == StateSuspended && !r.liftable(n) {
		return r.denial(n)
	}
	return nil
}

// Admitted returns the *DeniedError for an agent that is not admitted, as far as memory knows.
func (r *Registry) Admitted(id spiffeid.ID) error {
	n := r.Get(id)
	if n == nil {
		return &DeniedError{Agent: id, Reason: NotAttested}
	}
	if d := r.denial(n); d != nil {
		return d
	}
	return nil
}

// Renewable returns nil if the agent may renew its SVID: it has a record, is admitted and
// need not attest again.
func (r *Registry) Renewable(ctx context.Context, id spiffeid.ID) error {
	rec, err := r.current(ctx, id)
	if err != nil {
		return err
	}
	return r.renewable(id, rec.value)
}

func (r *Registry) renewable(id spiffeid.ID, n *Node) error {
	switch {
	case n == nil:
		return ErrNotFound
	case n.State != StateAdmitted:
		return r.denial(n)
	case n.CanReattest:
		return &DeniedError{Agent: id, Reason: MustReattest}
	}
	return nil
}

// Renewed records a new SVID beside the one in use. The agent's first use of it activates it.
func (r *Registry) Renewed(ctx context.Context, id spiffeid.ID, serial string, notAfter time.Time) error {
	_, err := r.change(ctx, id, true, func(n *Node) (*Node, error) {
		if err := r.renewable(id, n); err != nil {
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
		return &DeniedError{Agent: id, Reason: Expired}
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
	if awaits(rec.value, serial) {
		return r.activate(ctx, id, serial)
	}
	return r.counts(id, rec.value, serial)
}

// counts returns nil for the SVID in use of an admitted node.
func (r *Registry) counts(id spiffeid.ID, n *Node, serial string) error {
	switch {
	case n == nil:
		return &DeniedError{Agent: id, Reason: NotAttested}
	case n.State != StateAdmitted:
		return r.denial(n)
	case !inUse(n, serial):
		return &DeniedError{Agent: id, Reason: NotActive}
	}
	return nil
}

func inUse(n *Node, serial string) bool {
	return n != nil && n.State == StateAdmitted && serial != "" && n.Serial == serial
}

func awaits(n *Node, serial string) bool {
	return n != nil && n.State == StateAdmitted && serial != "" && n.NewSerial == serial
}

// activate makes the renewed SVID the one in use, unless another request of the agent just did.
func (r *Registry) activate(ctx context.Context, id spiffeid.ID, serial string) error {
	_, err := r.change(ctx, id, true, func(n *Node) (*Node, error) {
		if !awaits(n, serial) {
			return n, r.counts(id, n, serial)
		}
		n.Serial, n.NotAfter = n.NewSerial, n.NewNotAfter
		n.NewSerial, n.NewNotAfter = "", time.Time{}
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
