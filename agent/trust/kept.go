// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"crypto/x509"
	"encoding/json"
	"fmt"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// kept is how MarshalJSON writes a bundle.
type kept struct {
	TrustDomain string          `json:"trust_domain"`
	Bundle      json.RawMessage `json:"bundle"` // SPIFFE bundle format
	TaintedX509 [][]byte        `json:"tainted_x509,omitempty"`
	TaintedJWT  []string        `json:"tainted_jwt,omitempty"`
	TaintedWIT  []string        `json:"tainted_wit,omitempty"`
	CRLs        [][]byte        `json:"crls"` // null: there are no lists
}

// Empty reports whether there are no authorities at all.
func (b *Bundle) Empty() bool { return b.all.Empty() }

// MarshalJSON writes the bundle with its taints and revocation lists. One that is Empty can not be read again.
func (b *Bundle) MarshalJSON() ([]byte, error) {
	all, err := b.all.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode the bundle of %s: %w", b.TrustDomain(), err)
	}
	k := kept{TrustDomain: b.TrustDomain().Name(), Bundle: all, TaintedJWT: b.tainted.JWT, TaintedWIT: b.tainted.WIT}
	for _, c := range b.tainted.X509 {
		k.TaintedX509 = append(k.TaintedX509, c.Raw)
	}
	if b.revoked != nil {
		k.CRLs = append([][]byte{}, b.revoked.lists...)
	}
	return json.Marshal(k)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (b *Bundle) UnmarshalJSON(data []byte) error {
	var k kept
	if err := json.Unmarshal(data, &k); err != nil {
		return err
	}
	td, err := spiffeid.TrustDomainFromString(k.TrustDomain)
	if err != nil {
		return err
	}
	all, err := spiffebundle.Parse(td, k.Bundle)
	if err != nil {
		return fmt.Errorf("bundle of %s: %w", td, err)
	}
	if all.Empty() {
		return fmt.Errorf("bundle of %s: it has no authorities", td)
	}
	tainted := Tainted{JWT: k.TaintedJWT, WIT: k.TaintedWIT}
	for _, der := range k.TaintedX509 {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("tainted authority of %s: %w", td, err)
		}
		tainted.X509 = append(tainted.X509, c)
	}
	read, err := New(all, tainted)
	if err != nil {
		return err
	}
	if k.CRLs != nil {
		if read.revoked, err = ReadRevoked(k.CRLs); err != nil {
			return err
		}
	}
	*b = *read
	return nil
}
