// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// What a server signs is looked at as those look at it to whom a workload will show it: a server that errs, or lies, must not
// make an agent hand out somebody else's identity, or one that nobody believes.

// skew is how far the clock of who signed may be ahead of ours.
const skew = time.Minute

// CheckX509 returns why the chain is not an X.509-SVID of id for the public key, which those who have the bundle believe now
// (X509-SVID, section 5).
func CheckX509(chain []*x509.Certificate, b *spiffebundle.Bundle, id spiffeid.ID, public crypto.PublicKey, now time.Time) error {
	leaf := chain[0]
	if from := leaf.NotBefore; from.After(now) && from.Sub(now) < skew {
		now = from
	}
	got, _, err := x509svid.Verify(chain, b, x509svid.WithTime(now))
	switch {
	case err != nil:
		return fmt.Errorf("server sent an X.509-SVID for %q that is not valid by this agent's bundle and clock: %w", id, err)
	case got != id:
		return fmt.Errorf("server sent an X.509-SVID of %q for %q", got, id)
	case !sameKey(leaf.PublicKey, public):
		return fmt.Errorf("server sent an X.509-SVID for %q with another key than that which was to be signed", id)
	}
	return nil
}

func sameKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// CheckJWT returns why the token is not a JWT-SVID for just this audience, which those who have the bundle believe now (JWT-SVID,
// section 5).
func (t Token) CheckJWT(b *spiffebundle.Bundle, audience []string, now time.Time) error {
	var c jwt.Claims
	if err := t.check(b.FindJWTAuthority, now, &c); err != nil {
		return err
	}
	has := func(list []string) func(string) bool {
		return func(s string) bool { return !slices.Contains(list, s) }
	}
	if slices.ContainsFunc(audience, has(c.Audience)) || slices.ContainsFunc(c.Audience, has(audience)) {
		return fmt.Errorf("server sent a token for the audience %q instead of %q", c.Audience, audience)
	}
	return nil
}

// CheckWIT does the same for a WIT-SVID of the holder of the public key (WIT-SVID, section 3).
func (t Token) CheckWIT(b *spiffebundle.Bundle, public crypto.PublicKey, now time.Time) error {
	var c struct {
		Confirmation struct {
			Key jose.JSONWebKey `json:"jwk"`
		} `json:"cnf"`
	}
	if err := t.check(b.FindWITAuthority, now, &c); err != nil {
		return err
	}
	if !sameKey(c.Confirmation.Key.Key, public) {
		return errors.New("server sent a token for another key than that which was to be named")
	}
	return nil
}

// check checks signature and time, and reads the claims.
func (t Token) check(authority func(string) (crypto.PublicKey, bool), now time.Time, claims any) error {
	parsed, err := jwt.ParseSigned(t.Text, Algorithms)
	if err != nil {
		return fmt.Errorf("server sent a malformed token: %w", err)
	}
	key, ok := authority(t.KeyID)
	if !ok {
		return fmt.Errorf("server sent a token by the authority %q, which is not in this agent's bundle", t.KeyID)
	}
	if err := parsed.Claims(key, claims); err != nil {
		return fmt.Errorf("server sent a token that the authority %q has not signed: %w", t.KeyID, err)
	}
	if !now.Before(t.ExpiresAt) || now.Add(skew).Before(t.IssuedAt) {
		return fmt.Errorf("server sent a token that is valid from %s to %s, and it is %s", t.IssuedAt.UTC(), t.ExpiresAt.UTC(), now.UTC())
	}
	return nil
}
