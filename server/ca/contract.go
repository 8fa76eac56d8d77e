// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Kind of an authority: what it signs.
type Kind int

// The kinds.
const (
	X509 Kind = iota
	JWT
	WIT
)

var kindNames = [...]string{X509: "x509", JWT: "jwt", WIT: "wit"}

func (k Kind) String() string { return kindNames[k] }

// X509Authority is a root of the trust domain.
type X509Authority struct {
	Cert *x509.Certificate
	// Tainted: SVIDs below it must be replaced; it is still in the bundle until it is revoked.
	Tainted bool
}

// KeyAuthority is a key that signs tokens.
type KeyAuthority struct {
	// ID is the `kid`.
	ID        string
	PublicKey crypto.PublicKey
	// ExpiresAt is zero if the key is for ever.
	ExpiresAt time.Time
	Tainted   bool
}

// Errors that callers decide on; those of the CA wrap one of them in a sentence. Any other is the
// store's, the key manager's or ours (Internal).
var (
	// ErrNotReady: there is no valid, published authority to sign with yet.
	ErrNotReady = errors.New("server is initializing")
	// ErrInvalid: the caller's argument is wrong.
	ErrInvalid = errors.New("invalid argument")
	// ErrPrecondition: the configuration does not allow it.
	ErrPrecondition = errors.New("failed precondition")
)

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
	TTL       time.Duration
	JTI       bool
}

// Token is a signed JWT- or WIT-SVID. The times are whole seconds and equal to its claims.
type Token struct {
	Token, KeyID        string
	IssuedAt, ExpiresAt time.Time
}

// DownstreamRequest asks for the CA certificate of a nested server.
type DownstreamRequest struct {
	PublicKey crypto.PublicKey
	// TTL from now; zero is that of our own authorities.
	TTL time.Duration
}

// Authority is one of this server's.
type Authority struct {
	// ID is the subject key id in hex (X509), or the `kid`.
	ID string
	// UpstreamID is the subject key id in hex of the upstream's root, or "".
	UpstreamID string
	ExpiresAt  time.Time
}

// State of the authorities of one kind. Either of Prepared and Old is nil.
type State struct{ Active, Prepared, Old *Authority }

func (c *CA) todo() error { return fmt.Errorf("%w: being built", ErrNotReady) }

// SignJWT signs a JWT-SVID.
func (c *CA) SignJWT(JWTRequest) (Token, error) { return Token{}, c.todo() }

// SignWIT signs a WIT-SVID.
func (c *CA) SignWIT(WITRequest) (Token, error) { return Token{}, c.todo() }

// SignDownstream signs a nested server's CA certificate. The chain has the certificate first and
// never the root.
func (c *CA) SignDownstream(DownstreamRequest) ([]*x509.Certificate, error) { return nil, c.todo() }

// State returns this server's authorities of a kind, or ErrNotReady.
func (c *CA) State(Kind) (State, error) { return State{}, c.todo() }

// Prepare makes and publishes the next authority, in the place of the prepared or old one.
func (c *CA) Prepare(context.Context, Kind) (Authority, error) { return Authority{}, c.todo() }

// Activate signs with the prepared authority from now on.
func (c *CA) Activate(context.Context, Kind, string) (Authority, error) {
	return Authority{}, c.todo()
}

// Taint marks the old authority.
func (c *CA) Taint(context.Context, Kind, string) (Authority, error) { return Authority{}, c.todo() }

// Revoke removes a tainted authority from the bundle.
func (c *CA) Revoke(context.Context, Kind, string) (Authority, error) { return Authority{}, c.todo() }

// TaintUpstream marks the upstream's root.
func (c *CA) TaintUpstream(context.Context, string) error { return c.todo() }

// RevokeUpstream removes the upstream's tainted root.
func (c *CA) RevokeUpstream(context.Context, string) error { return c.todo() }

// Append adds authorities to the bundle.
func (c *CA) Append(context.Context, []*x509.Certificate, []KeyAuthority) (Bundle, error) {
	return Bundle{}, c.todo()
}

// PublishJWT adds a nested server's key and returns all JWT authorities.
func (c *CA) PublishJWT(context.Context, KeyAuthority) ([]KeyAuthority, error) { return nil, c.todo() }

// PublishWIT does so for a WIT key.
func (c *CA) PublishWIT(context.Context, KeyAuthority) ([]KeyAuthority, error) { return nil, c.todo() }
