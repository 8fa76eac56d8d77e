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

// JoinTokenType is the attestation type of join tokens.
const JoinTokenType = "join_token"

var (
	// errTokenExists: a join token with that text is waiting for its agent.
	errTokenExists = errors.New("join token already exists")
	// errBadToken: the text can not be part of an agent's ID.
	errBadToken = errors.New("a join token consists of letters, digits, '.', '-' and '_'")
	// errBadTTL: the lifetime is not positive.
	errBadTTL = errors.New("ttl is required, you must provide one")
)

// Refusals, in SPIRE's words.
var (
	errNoToken      = &AttestError{Fault: FaultMessage, Text: "failed to attest: join token does not exist or has already been used"}
	errTokenExpired = &AttestError{Fault: FaultMessage, Text: "join token expired"}
)

// joinToken is the stored value.
type joinToken struct {
	ExpiresAt time.Time `json:"expires_at"`
}

// JoinTokenAgent returns the ID of the agent that a join token admits.
func JoinTokenAgent(td spiffeid.TrustDomain, token string) (spiffeid.ID, error) {
	if err := spiffeid.ValidatePathSegment(token); err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %q", errBadToken, token)
	}
	return spiffeid.FromSegments(td, "spire", "agent", JoinTokenType, token)
}

// CreateJoinToken stores a token that admits one agent within ttl, and returns when it expires.
func (r *Registry) CreateJoinToken(ctx context.Context, token string, ttl time.Duration) (time.Time, error) {
	if err := spiffeid.ValidatePathSegment(token); err != nil {
		return time.Time{}, fmt.Errorf("%w: %q", errBadToken, token)
	}
	if ttl <= 0 {
		return time.Time{}, errBadTTL
	}
	t := joinToken{ExpiresAt: r.cfg.Now().Add(ttl).UTC().Truncate(time.Second)}
	value, err := json.Marshal(t)
	if err != nil {
		return time.Time{}, fmt.Errorf("encoding a join token: %w", err)
	}
	key := tokenPrefix + token
	_, err = r.cfg.Store.Commit(ctx, store.Txn{Compares: []store.Compare{store.Unchanged(key, 0)}, Puts: []store.KV{{Key: key, Value: value}}})
	if errors.Is(err, store.ErrConflict) {
		return time.Time{}, errTokenExists
	}
	if err != nil {
		return time.Time{}, fmt.Errorf("storing a join token: %w", err)
	}
	return t.ExpiresAt, nil
}

// UseJoinToken spends a token: of any number of callers, on any server, one succeeds. An
// expired token is spent, too. A token that does not count is an *AttestError.
func (r *Registry) UseJoinToken(ctx context.Context, token string) error {
	if spiffeid.ValidatePathSegment(token) != nil {
		return errNoToken // CreateJoinToken makes none like this
	}
	key := tokenPrefix + token
	kv, err := get(ctx, r.cfg.Store, key)
	if err != nil {
		return fmt.Errorf("reading a join token: %w", err)
	}
	if kv == nil {
		return errNoToken
	}
	var t joinToken
	if err := json.Unmarshal(kv.Value, &t); err != nil {
		return fmt.Errorf("reading a join token: %w", err)
	}
	_, err = r.cfg.Store.Commit(ctx, store.Txn{Compares: []store.Compare{store.Unchanged(key, kv.Revision)}, Deletes: []string{key}})
	switch {
	case errors.Is(err, store.ErrConflict):
		return errNoToken
	case err != nil:
		return fmt.Errorf("spending a join token: %w", err)
	case r.cfg.Now().After(t.ExpiresAt):
		return errTokenExpired
	}
	return nil
}

// PruneJoinTokens removes the tokens that expired unused and returns how many they were.
func (r *Registry) PruneJoinTokens(ctx context.Context) (int, error) {
	kvs, _, err := r.cfg.Store.Snapshot(ctx, tokenPrefix)
	if err != nil {
		return 0, fmt.Errorf("reading the join tokens: %w", err)
	}
	pruned := 0
	for _, kv := range kvs {
		var t joinToken
		if json.Unmarshal(kv.Value, &t) == nil && !r.cfg.Now().After(t.ExpiresAt) {
			continue
		}
		_, err := r.cfg.Store.Commit(ctx, store.Txn{Compares: []store.Compare{store.Unchanged(kv.Key, kv.Revision)}, Deletes: []string{kv.Key}})
		switch {
		case errors.Is(err, store.ErrConflict): // used meanwhile
		case err != nil:
			return pruned, fmt.Errorf("pruning join tokens: %w", err)
		default:
			pruned++
		}
	}
	return pruned, nil
}
