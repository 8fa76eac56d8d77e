// SPDX-License-Identifier: Apache-2.0

package trust

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"slices"
)

// Revoked is what the authorities of a trust domain say is revoked: their lists (RFC 5280, section 5). It does not change.
type Revoked struct {
	lists   [][]byte
	serials map[string]bool // by key id of the authority and serial number
}

// ReadRevoked reads the lists that the server sent, DER. Signatures are not checked: the server vouches for them, and of some
// authorities, those below an upstream's, the agent has no certificate. Workloads check what they get.
func ReadRevoked(lists [][]byte) (*Revoked, error) {
	r := &Revoked{lists: slices.SortedFunc(slices.Values(lists), bytes.Compare), serials: map[string]bool{}}
	for _, der := range lists {
		l, err := x509.ParseRevocationList(der)
		if err != nil {
			return nil, fmt.Errorf("server sent a malformed revocation list: %w", err)
		}
		for _, e := range l.RevokedCertificateEntries {
			r.serials[string(l.AuthorityKeyId)+"\x00"+string(e.SerialNumber.Bytes())] = true
		}
	}
	return r, nil
}

func (r *Revoked) has(c *x509.Certificate) bool {
	return r.serials[string(c.AuthorityKeyId)+"\x00"+string(c.SerialNumber.Bytes())]
}

func (r *Revoked) equal(o *Revoked) bool {
	switch {
	case r == nil || o == nil:
		return r == o
	default:
		return slices.EqualFunc(r.lists, o.lists, bytes.Equal)
	}
}

// WithRevoked is the bundle with these lists instead of its own.
func (b *Bundle) WithRevoked(r *Revoked) *Bundle {
	next := *b
	next.revoked = r
	return &next
}

// CRLs returns the revocation lists of the trust domain's authorities, DER each, in the order of their bytes.
func (b *Bundle) CRLs() [][]byte {
	if b.revoked == nil {
		return nil
	}
	return b.revoked.lists
}
