// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"errors"
	"time"

	"github.com/assay-id/assay/server/ca/bundle"
	"github.com/assay-id/assay/server/ca/mint"
)

// What the CA speaks of; the packages below define them.
type (
	Bundle        = bundle.Bundle
	Kind          = bundle.Kind
	X509Authority = bundle.X509Authority
	KeyAuthority  = bundle.KeyAuthority
	// UpstreamBundle is all that an upstream trusts.
	UpstreamBundle = bundle.Trusted
	Request        = mint.Request
	JWTRequest     = mint.JWTRequest
	WITRequest     = mint.WITRequest
	Token          = mint.Token
)

// The kinds of authorities.
const (
	X509 = bundle.X509
	JWT  = bundle.JWT
	WIT  = bundle.WIT
)

// Errors that callers decide on, wrapped in a sentence. Any other is the store's, the key manager's
// or the upstream's, or, where SPIRE answers Internal, the caller's.
var (
	// ErrNotReady: there is no valid, published authority to sign with yet.
	ErrNotReady = errors.New("server is initializing")
	// ErrInvalid: the caller's argument is wrong.
	ErrInvalid = mint.ErrInvalid
	// ErrPrecondition: the server's configuration does not allow it.
	ErrPrecondition = errors.New("failed precondition")
	// ErrStale: nobody knows what has been revoked meanwhile, so nothing is signed.
	ErrStale = errors.New("the store has not been reachable for too long")
)

// Authority is one of this server's.
type Authority struct {
	// ID is the subject key id in hex (X509), or the `kid`.
	ID string
	// UpstreamID is the subject key id in hex of the upstream's root, or "".
	UpstreamID string
	ExpiresAt  time.Time
}

// State of the authorities of one kind. At most one of Prepared and Old is there.
type State struct{ Active, Prepared, Old *Authority }
