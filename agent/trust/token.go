// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"errors"
	"fmt"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Algorithms are those that sign JWT-SVIDs (JWT-SVID, section 2.1) and WIT-SVIDs (WIT-SVID, section 2.3).
var Algorithms = []jose.SignatureAlgorithm{jose.RS256, jose.RS384, jose.RS512, jose.ES256, jose.ES384, jose.ES512, jose.PS256, jose.PS384, jose.PS512}

// Token is a JWT-SVID or WIT-SVID as the server signed it.
type Token struct {
	// Text is the compact JWS.
	Text string
	// KeyID names the authority that signed.
	KeyID               string
	IssuedAt, ExpiresAt time.Time
	// PerProcess: the server signed for one process, not for all of the entry (of WIT; a JWT-SVID always is).
	PerProcess bool
}

// ReadToken reads what the server sent for id. The signature is left to CheckJWT and CheckWIT.
func ReadToken(text string, id spiffeid.ID) (Token, error) {
	parsed, err := jwt.ParseSigned(text, Algorithms)
	if err != nil {
		return Token{}, fmt.Errorf("server sent a malformed token: %w", err)
	}
	var claims jwt.Claims
	if err := parsed.UnsafeClaimsWithoutVerification(&claims); err != nil {
		return Token{}, fmt.Errorf("server sent a token with malformed claims: %w", err)
	}
	switch key := parsed.Headers[0].KeyID; {
	case claims.Subject != id.String():
		return Token{}, fmt.Errorf("server sent a token of %q for %q", claims.Subject, id)
	case key == "":
		return Token{}, errors.New("server sent a token without a key id")
	case claims.Expiry == nil || claims.IssuedAt == nil || !claims.IssuedAt.Time().Before(claims.Expiry.Time()):
		return Token{}, errors.New("server sent a token that does not say from when to when it is valid")
	default:
		return Token{Text: text, KeyID: key, IssuedAt: claims.IssuedAt.Time(), ExpiresAt: claims.Expiry.Time()}, nil
	}
}
