// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm/verify"
)

// Continuous asks admitted machines again and again whether they still are what they were, and
// suspends those that are not:
//
//	what an answer shows                                         what happens
//	reset or restart count rose (boot, hibernation)              attest again, in full
//	counts or clock went back: the TPM was copied, or cleared    suspended by ByClone
//	another session of the same TPM answers, too                 suspended by ByClone
//	a PCR moved that nothing explains; other firmware            suspended by ByDrift
//	a measured file is not in the group's lists; a violation     suspended by ByDrift
//	the IMA log does not lead to PCR 10                          suspended by ByDrift
//	the agent's history went back                                suspended by ByDrift
//	no answer, or none that verifies                             attest again; not Fresh
//
// Sessions are compared within one server; counts and clocks between all.
type Continuous struct {
	Nodes *nodes.Registry
	// Rules are those of the attestor; nil is no rules.
	Rules *Rules
	// Interval is how often a machine is asked, give or take a tenth.
	Interval time.Duration
	// Memory for IMA logs, shared with the attestor; nil has no bounds.
	Memory *Memory
	Now    func() time.Time
	Rand   io.Reader // crypto/rand.Reader
	Logger *slog.Logger

	mu      sync.Mutex
	watched map[spiffeid.ID]*watched
}

// watched is what memory knows of a machine.
type watched struct {
	mu sync.Mutex // held while an answer is judged
	// of is when the attestation was recorded that state began with.
	of     time.Time
	state  *nodes.TPMState
	fresh  time.Time      // of the last good quote
	kept   time.Time      // when state was last written to the record
	recent []nodes.Anchor // at most maxAnchors, oldest first
	files  files
	live   *requoting // the session that asks now; nil if none
}

// maxAnchors are kept in memory for each machine: an hour's, at one in a minute.
const maxAnchors = 64

const (
	keepEvery   = 10 * time.Minute // state is written down so often
	aloneWithin = 5 * time.Second  // for an older session to answer
	missed      = 3                // intervals without a good quote
)

// requoting is one stream. Who sends to asked has a question put at once, and gets its outcome.
type requoting struct {
	ak            *verify.AK
	spki, binding []byte
	ask           func(context.Context, []byte) ([]byte, error)
	asked         chan chan error
	done          chan struct{}
}

const twoAgents = "two agents answer for one TPM at the same time: the TPM was copied, or two agents run on one machine"

// errReboot and errSuperseded make the agent attest again.
var (
	errReboot     = errors.New("the machine was booted or resumed since it attested; attest again")
	errSuperseded = errors.New("the agent opened another stream; this one has ended")
)

func (c *Continuous) of(id spiffeid.ID) *watched {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watched == nil {
		c.watched = map[spiffeid.ID]*watched{}
	}
	w := c.watched[id]
	if w == nil {
		w = &watched{}
		c.watched[id] = w
	}
	return w
}

// Fresh reports whether the machine showed lately, to this server, that it is what it was.
func (c *Continuous) Fresh(id spiffeid.ID) bool {
	w := c.of(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.fresh.IsZero() && c.Now().Sub(w.fresh) <= missed*c.Interval
}

// anchors returns the last parts of the agent's history that its TPM vouched for, oldest first.
func (c *Continuous) anchors(id spiffeid.ID) []nodes.Anchor {
	w := c.of(id)
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]nodes.Anchor(nil), w.recent...)
}

// Run asks one machine, at once and then at intervals, until ctx ends (nil) or the machine must
// go: a *nodes.DeniedError, or another error after which the agent attests again. spki is of the
// agent's key, binding of its connection; ask sends a question and waits for the answer.
func (c *Continuous) Run(ctx context.Context, id spiffeid.ID, spki, binding []byte, ask func(context.Context, []byte) ([]byte, error)) error {
	r := &requoting{spki: spki, binding: binding, ask: ask, asked: make(chan chan error), done: make(chan struct{})}
	w, err := c.begin(ctx, id, r)
	if err != nil {
		return err
	}
	defer c.end(id, w, r)
	var waiting chan error // who asked for this round
	for {
		err := c.Nodes.Admitted(id)
		if err == nil {
			err = c.round(ctx, id, w, r)
		}
		if waiting != nil {
			waiting <- err
		}
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errBusy): // its own attestation would be in the same queue
			c.Logger.Warn("a node's quote was not judged; nothing is signed for it until one is", "agent", id, "error", err)
		case err != nil:
			return err
		}
		pause := time.NewTimer(c.Interval*9/10 + time.Duration(rand.Int64N(int64(c.Interval)/5+1)))
		select {
		case <-ctx.Done():
			pause.Stop()
			return nil
		case waiting = <-r.asked:
			pause.Stop()
		case <-pause.C:
			waiting = nil
		}
	}
}

// begin takes the machine's state: that in memory, unless it attested since. An older stream must
// be dead: the agent has one at a time.
func (c *Continuous) begin(ctx context.Context, id spiffeid.ID, r *requoting) (w *watched, err error) {
	n := c.Nodes.Get(id)
	if n == nil || n.State != nodes.StateAdmitted || n.TPM == nil {
		return nil, &nodes.DeniedError{Agent: id, Reason: nodes.NotActive}
	}
	w = c.of(id)
	w.mu.Lock()
	live := w.live
	w.mu.Unlock()
	if live != nil && live.answers(ctx) {
		return nil, c.suspend(ctx, id, nodes.ByClone, twoAgents)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.state == nil || !w.of.Equal(n.AttestedAt) {
		state := *n.TPM
		w.of, w.state, w.kept, w.recent = n.AttestedAt, &state, c.Now(), nil
	}
	if r.ak, err = verify.ParseAK(w.state.AK); err != nil {
		return nil, err
	}
	w.live = r
	return w, nil
}

func (c *Continuous) end(id spiffeid.ID, w *watched, r *requoting) {
	close(r.done)
	w.mu.Lock()
	if w.live == r {
		w.live = nil
	}
	w.mu.Unlock()
	if c.Nodes.Get(id) == nil { // evicted
		c.mu.Lock()
		delete(c.watched, id)
		c.mu.Unlock()
	}
}

// notCloned fails if the TPM that attests as the node can not be the one that was seen last, or is
// not the only one that answers now; then the node is suspended.
func (c *Continuous) notCloned(ctx context.Context, id spiffeid.ID, state *nodes.TPMState) error {
	if c == nil {
		return nil
	}
	n := c.Nodes.Get(id)
	if n == nil || n.TPM == nil {
		return nil
	}
	last := n.TPM.Quoted
	w := c.of(id)
	w.mu.Lock()
	if w.state != nil && w.of.Equal(n.AttestedAt) {
		last = w.state.Quoted
	}
	live := w.live
	w.mu.Unlock()
	if state.Quoted.Before(&last) {
		return c.suspend(ctx, id, nodes.ByClone, wentBack(&state.Quoted, &last))
	}
	if live != nil && live.answers(ctx) {
		return c.suspend(ctx, id, nodes.ByClone, twoAgents)
	}
	return nil
}

// answers reports whether the agent at the other end still answers for the TPM. An agent that attests
// anew has ended its stream before.
func (r *requoting) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, aloneWithin)
	defer cancel()
	outcome := make(chan error, 1)
	select {
	case r.asked <- outcome:
	case <-r.done:
		return false
	case <-ctx.Done():
		return false
	}
	select {
	case err := <-outcome:
		return err == nil
	case <-r.done:
		return false
	case <-ctx.Done():
		return false
	}
}

// refuse tells the agent which rules its machine breaks. A machine that was admitted before is suspended.
func (c *Continuous) refuse(ctx context.Context, id spiffeid.ID, f findings) error {
	if c != nil {
		if n := c.Nodes.Get(id); n != nil && n.State == nodes.StateAdmitted && n.TPM != nil {
			var denied *nodes.DeniedError
			if err := c.suspend(ctx, id, nodes.ByPolicy, f.String()); !errors.As(err, &denied) {
				return err
			}
		}
	}
	return breaks(f)
}

// suspend ends what the node may do and returns the *nodes.DeniedError for it.
func (c *Continuous) suspend(ctx context.Context, id spiffeid.ID, by, reason string) error {
	// The stream's context ends with the node's standing.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	c.Logger.Warn("node suspended", "agent", id, "by", by, "reason", reason)
	var state *nodes.StateError // banned meanwhile
	if err := c.Nodes.Suspend(ctx, id, reason, by); err != nil && !errors.As(err, &state) {
		return fmt.Errorf("suspending %s: %w", id, err)
	}
	w := c.of(id)
	w.mu.Lock()
	w.fresh = time.Time{}
	w.mu.Unlock()
	if err := c.Nodes.Admitted(id); err != nil {
		return err
	}
	return &nodes.DeniedError{Agent: id, Reason: nodes.NotActive}
}
