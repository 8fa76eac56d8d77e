// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/assay-id/assay/server/store"
)

// Errors that callers decide on, wrapped in a sentence.
var (
	// ErrInvalid: the request makes no sense.
	ErrInvalid = errors.New("invalid argument")
	// ErrTooMany: a list has no room for more.
	ErrTooMany = errors.New("too many SVIDs are revoked")
)

// Reasons of RFC 5280 §5.3.1 that an SVID may be revoked for, by name.
var Reasons = map[string]int{
	"unspecified": 0, "keyCompromise": 1, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5, "privilegeWithdrawn": 9,
}

const (
	// maxListed is how many SVIDs of one authority may be revoked at a time. A list of them has 800 kB, and reaches
	// every workload; gRPC's clients take 4 MB in one message.
	maxListed = 20_000
	// maxByNode is how many an agent may revoke by itself.
	maxByNode = 1000
	// patience is how long a request waits for all servers.
	patience = 5 * time.Second
)

// Outcome is what came of a request so far.
type Outcome struct {
	// Revoked are the SVIDs that it fits, those among them that were revoked before.
	Revoked int
	// Waiting are servers that have not answered; each does what is asked when it is back.
	Waiting []string
	// Failed are what servers could not do.
	Failed []string
}

// Revoke revokes all SVIDs that were issued until now and fit the scope. It returns when all servers have looked at what they
// signed, or after 5 s with those that have not.
func (r *Registry) Revoke(ctx context.Context, req Request) (Outcome, error) {
	if !req.Scope.specific() {
		return Outcome{}, fmt.Errorf("%w: say which SVIDs: a serial number, SPIFFE ID, entry, node or executable", ErrInvalid)
	}
	if s := req.Scope.Serial; s != "" {
		if _, ok := readSerial(s); !ok {
			return Outcome{}, fmt.Errorf("%w: serial number %q: write it in decimal", ErrInvalid, s)
		}
	}
	return r.ask(ctx, req)
}

// RevokeForNode is Revoke on behalf of an agent, of what was signed for it.
func (r *Registry) RevokeForNode(ctx context.Context, node string, req Request) (Outcome, error) {
	r.mu.RLock()
	n := 0
	for _, all := range r.view.revoked {
		for _, rev := range all {
			if rev.By == node {
				n++
			}
		}
	}
	r.mu.RUnlock()
	if n >= maxByNode {
		return Outcome{}, fmt.Errorf("%w: this agent has revoked %d; ask an operator to look at the node, and ban it", ErrTooMany, n)
	}
	req.Scope.Node, req.By = node, node
	return r.Revoke(ctx, req)
}

// RevokeCertificate revokes a certificate of one of our authorities, which the caller has verified. No server need have a
// record of it.
func (r *Registry) RevokeCertificate(ctx context.Context, cert *x509.Certificate, req Request) (Outcome, error) {
	authority, serial := KeyOf(cert)
	if authority == "" {
		return Outcome{}, fmt.Errorf("%w: the certificate does not say which authority signed it", ErrInvalid)
	}
	req.Scope = Scope{Authority: authority, Serial: serial}
	rev := &Revocation{Record: Record{Authority: authority, Serial: serial, NotAfter: cert.NotAfter.UTC()}}
	if len(cert.URIs) == 1 {
		rev.SPIFFEID = cert.URIs[0].String()
	}
	r.mu.RLock()
	known, full := r.view.revoked[authority][serial] != nil, len(r.view.revoked[authority]) >= maxListed
	r.mu.RUnlock()
	var puts []store.KV
	switch {
	case full && !known:
		return Outcome{}, tooMany(authority)
	case !known:
		rev.from(req, r.cfg.Now())
		kv, err := put(rev.key(), rev)
		if err != nil {
			return Outcome{}, err
		}
		puts = append(puts, kv)
	}
	out, err := r.ask(ctx, req, puts...)
	out.Revoked = 1
	if err == nil && len(out.Waiting) == 0 { // whoever has the key has published its list
		answer := Answer{}
		r.unlisted([]Record{rev.Record}, &answer)
		if answer.Error != "" {
			out.Failed = append(out.Failed, answer.Error)
		}
	}
	return out, err
}

func tooMany(authority string) error {
	return fmt.Errorf("%w: %d of authority %s; replace the authority instead: prepare and activate another, then taint and revoke this one", ErrTooMany, maxListed, authority)
}

func (rev *Revocation) from(req Request, now time.Time) {
	rev.At, rev.Reason, rev.Why, rev.By = now.UTC().Truncate(time.Millisecond), req.Reason, req.Why, req.By
}

func put(key string, v any) (store.KV, error) {
	value, err := json.Marshal(v)
	if err != nil {
		return store.KV{}, fmt.Errorf("encode %s: %w", key, err)
	}
	return store.KV{Key: key, Value: value}, nil
}

// ask writes a request, together with more, and waits for the servers.
func (r *Registry) ask(ctx context.Context, req Request, more ...store.KV) (Outcome, error) {
	valid := false
	for _, code := range Reasons {
		valid = valid || code == req.Reason
	}
	if !valid {
		return Outcome{}, fmt.Errorf("%w: reason %d is none that an SVID is revoked for", ErrInvalid, req.Reason)
	}
	servers, err := r.cfg.Authorities.Servers(ctx)
	if err != nil {
		return Outcome{}, err
	}
	id := rand.Text()
	req.At = r.cfg.Now().UTC()
	kv, err := put(askedPrefix+id, req)
	if err != nil {
		return Outcome{}, err
	}
	if _, err := r.cfg.Store.Commit(ctx, store.Txn{Puts: append(more, kv), Essential: true}); err != nil {
		return Outcome{}, fmt.Errorf("ask for a revocation: %w", err)
	}
	r.cfg.Logger.Warn("asked to revoke SVIDs", "request", id, "scope", req.Scope, "reason", req.Reason, "why", req.Why, "by", req.By)
	late := time.NewTimer(patience)
	defer late.Stop()
	for {
		out, moved := r.outcome(id, servers)
		if len(out.Waiting) == 0 {
			return out, nil
		}
		select {
		case <-moved:
		case <-late.C:
			return out, nil
		case <-ctx.Done():
			return out, fmt.Errorf("the request is recorded, and not all servers have answered it: %w", ctx.Err())
		}
	}
}

func (r *Registry) outcome(id string, servers []string) (out Outcome, moved <-chan struct{}) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	answers := r.view.done[id]
	for _, server := range sortedKeys(answers) {
		out.Revoked += answers[server].Revoked
		if text := answers[server].Error; text != "" {
			out.Failed = append(out.Failed, fmt.Sprintf("server %s: %s", server, text))
		}
	}
	out.Waiting = waiting(servers, answers)
	return out, r.moved
}

// NodeRefused has what was signed for a node revoked, by all servers: it does not count any more since then. It returns at
// once, and may be called again for the same refusal.
func (r *Registry) NodeRefused(node string, since time.Time, why string) {
	if r.cfg.Now().After(since.Add(r.cfg.Life)) {
		return // all that it had has ended
	}
	sum := sha256.Sum256([]byte(node + "\x00" + strconv.FormatInt(since.UnixNano(), 10)))
	r.mu.Lock()
	r.refused["node-"+hex.EncodeToString(sum[:16])] = Request{Scope: Scope{Node: node}, Reason: Reasons["privilegeWithdrawn"], Why: why, By: "server", At: r.cfg.Now().UTC()}
	r.mu.Unlock()
	r.kick()
}

// askRefused writes the requests for nodes that are refused, of which each server may have heard, and looks at each again:
// this server may have signed for the node until it heard.
func (r *Registry) askRefused(ctx context.Context) error {
	r.mu.RLock()
	ids := sortedKeys(r.refused)
	r.mu.RUnlock()
	for _, id := range ids {
		r.mu.RLock()
		req := r.refused[id]
		r.mu.RUnlock()
		kv, err := put(askedPrefix+id, req)
		if err != nil {
			return err
		}
		revision, err := r.cfg.Store.Commit(ctx, store.Txn{Compares: []store.Compare{store.Unchanged(kv.Key, 0)}, Puts: []store.KV{kv}, Essential: true})
		if conflict, ok := errors.AsType[*store.ConflictError](err); ok {
			revision, err = conflict.Revision, nil // another server was faster
		}
		if err == nil {
			err = r.seen(ctx, revision)
		}
		if err != nil {
			return fmt.Errorf("ask for the revocation of what node %s has: %w", req.Scope.Node, err)
		}
		r.mu.Lock()
		delete(r.refused, id)
		r.again[id] = true
		r.mu.Unlock()
	}
	return nil
}
