// SPDX-License-Identifier: Apache-2.0

package mint

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/cryptosigner"
	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// The `typ` of tokens.
const (
	TypeJWT = "JWT"     // SPIFFE JWT-SVID §2.3
	TypeWIT = "wit+jwt" // WIT-SVID §2.2
)

// Tokens signs tokens of one type with one key. It is safe for concurrent use.
type Tokens struct {
	id        string
	notAfter  time.Time
	algorithm jose.SignatureAlgorithm
	header    string // encoded, with the dot
	signer    jose.OpaqueSigner
}

// header of a token; there are no others (SPIFFE JWT-SVID §2, WIT-SVID §2.4).
type header struct {
	Algorithm jose.SignatureAlgorithm `json:"alg"`
	KeyID     string                  `json:"kid"`
	Type      string                  `json:"typ"`
}

// NewTokens makes the signer; id is the key's `kid`, and no token outlives notAfter.
func NewTokens(typ, id string, key crypto.Signer, notAfter time.Time) (*Tokens, error) {
	algorithm, err := algorithmOf(key.Public())
	if err != nil {
		return nil, err
	}
	encoded, err := json.Marshal(header{algorithm, id, typ})
	if err != nil {
		return nil, fmt.Errorf("encode the header of signing key %s: %w", id, err)
	}
	return &Tokens{id, notAfter, algorithm, base64.RawURLEncoding.EncodeToString(encoded) + ".", cryptosigner.Opaque(key)}, nil
}

// NewKeyID returns a `kid` of 32 letters and digits, with 160 bits drawn at random.
func NewKeyID() string { return rand.Text() + rand.Text()[:6] }

// JWTRequest asks for a JWT-SVID.
type JWTRequest struct {
	ID spiffeid.ID
	// Audience, at least one that is not empty.
	Audience []string
	// TTL from now; zero is the default. It ends with the key's at the latest.
	TTL time.Duration
	// JTI adds a random `jti`.
	JTI bool
}

// WITRequest asks for a WIT-SVID for the holder of a key.
type WITRequest struct {
	ID        spiffeid.ID
	PublicKey crypto.PublicKey
	// Algorithm that the holder will sign with (RFC 7518 §3.1).
	Algorithm string
	// TTL from now; zero is that of X.509-SVIDs.
	TTL time.Duration
	// JTI adds a random `jti`.
	JTI bool
}

// Token is a signed JWT- or WIT-SVID. The times are whole seconds and equal to its claims.
type Token struct {
	Token, KeyID        string
	IssuedAt, ExpiresAt time.Time
}

// claims of JWT-SVIDs (SPIFFE JWT-SVID §3) and WIT-SVIDs (WIT-SVID §3).
type claims struct {
	Subject      string        `json:"sub"`
	Audience     []string      `json:"aud,omitempty"`
	ExpiresAt    int64         `json:"exp"`
	IssuedAt     int64         `json:"iat"`
	Issuer       string        `json:"iss,omitempty"`
	ID           string        `json:"jti,omitempty"`
	Confirmation *confirmation `json:"cnf,omitempty"` // RFC 7800
}

type confirmation struct {
	JWK jose.JSONWebKey `json:"jwk"`
}

// JWT signs a JWT-SVID; issuer may be empty.
func (t *Tokens) JWT(s *Shape, req JWTRequest, issuer string, now time.Time) (Token, error) {
	audience := slices.DeleteFunc(slices.Clone(req.Audience), func(a string) bool { return a == "" })
	if len(audience) == 0 {
		return Token{}, fmt.Errorf("%w: at least one audience is required", ErrInvalid)
	}
	if err := s.member(req.ID); err != nil {
		return Token{}, err
	}
	return t.sign(claims{Audience: audience, Issuer: issuer}, req.ID, req.TTL, req.JTI, now)
}

// WIT signs a WIT-SVID. It has no issuer: ours may be one of OpenID Connect's, and a WIT must not
// pass for its tokens (WIT-SVID §3.7).
func (t *Tokens) WIT(s *Shape, req WITRequest, now time.Time) (Token, error) {
	if !mayUse(req.PublicKey, jose.SignatureAlgorithm(req.Algorithm)) {
		return Token{}, fmt.Errorf("%w: signing algorithm %q does not go with a key of type %T of that size; write RS256 to PS512 for RSA from 2048 bits, ES256, ES384 or ES512 for P-256, P-384 or P-521",
			ErrInvalid, req.Algorithm, req.PublicKey)
	}
	if err := s.member(req.ID); err != nil {
		return Token{}, err
	}
	holder := &confirmation{jose.JSONWebKey{Key: req.PublicKey, Algorithm: req.Algorithm}}
	return t.sign(claims{Confirmation: holder}, req.ID, req.TTL, req.JTI, now)
}

func (t *Tokens) sign(with claims, id spiffeid.ID, ttl time.Duration, jti bool, now time.Time) (Token, error) {
	expires := now.Add(ttl)
	if expires.After(t.notAfter) {
		expires = t.notAfter
	}
	out := Token{KeyID: t.id, IssuedAt: now.Truncate(time.Second), ExpiresAt: expires.Truncate(time.Second)}
	with.Subject, with.IssuedAt, with.ExpiresAt = id.String(), out.IssuedAt.Unix(), out.ExpiresAt.Unix()
	if jti {
		random := uuid.New()
		with.ID = base64.RawURLEncoding.EncodeToString(random[:])
	}
	payload, err := json.Marshal(with)
	if err != nil {
		return Token{}, fmt.Errorf("encode the token of %s: %w", id, err)
	}
	signed := t.header + base64.RawURLEncoding.EncodeToString(payload)
	signature, err := t.signer.SignPayload([]byte(signed), t.algorithm)
	if err != nil {
		return Token{}, fmt.Errorf("sign the token of %s: %w", id, err)
	}
	out.Token = signed + "." + base64.RawURLEncoding.EncodeToString(signature)
	return out, nil
}

// algorithmOf is what an authority's key signs with.
func algorithmOf(public crypto.PublicKey) (jose.SignatureAlgorithm, error) {
	for _, algorithm := range []jose.SignatureAlgorithm{jose.ES256, jose.ES384, jose.RS256} {
		if mayUse(public, algorithm) {
			return algorithm, nil
		}
	}
	return "", fmt.Errorf("a key of type %T does not sign tokens", public)
}

// mayUse reports whether a key and an algorithm of WIT-SVID §2.3 go together.
func mayUse(public crypto.PublicKey, algorithm jose.SignatureAlgorithm) bool {
	switch key := public.(type) {
	case *rsa.PublicKey:
		return key.N.BitLen() >= 2048 && slices.Contains([]jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.PS256, jose.PS384, jose.PS512}, algorithm)
	case *ecdsa.PublicKey:
		curve, ok := map[jose.SignatureAlgorithm]elliptic.Curve{jose.ES256: elliptic.P256(), jose.ES384: elliptic.P384(), jose.ES512: elliptic.P521()}[algorithm]
		return ok && curve == key.Curve
	}
	return false
}
