// SPDX-License-Identifier: Apache-2.0

package api

import (
	"crypto"
	"crypto/x509"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/ca"
)

// timedSigner tells the gate how long signatures take.
type timedSigner struct {
	Signer
	signed func(took time.Duration)
}

func (t timedSigner) SignWorkload(req ca.Request) ([]*x509.Certificate, error) {
	return timed(t, func() ([]*x509.Certificate, error) { return t.Signer.SignWorkload(req) })
}

func (t timedSigner) SignAgent(id spiffeid.ID, key crypto.PublicKey) ([]*x509.Certificate, error) {
	return timed(t, func() ([]*x509.Certificate, error) { return t.Signer.SignAgent(id, key) })
}

func (t timedSigner) SignJWT(req ca.JWTRequest) (ca.Token, error) {
	return timed(t, func() (ca.Token, error) { return t.Signer.SignJWT(req) })
}

func (t timedSigner) SignWIT(req ca.WITRequest) (ca.Token, error) {
	return timed(t, func() (ca.Token, error) { return t.Signer.SignWIT(req) })
}

// timed leaves out what was not signed: a refusal takes no time.
func timed[T any](t timedSigner, sign func() (T, error)) (T, error) {
	began := time.Now()
	out, err := sign()
	if err == nil {
		t.signed(time.Since(began))
	}
	return out, err
}
