// SPDX-License-Identifier: Apache-2.0

package mint

import (
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
)

// CRL signs a certificate revocation list (RFC 5280 §5, version 2) of what the authority signed. Of the list the entries,
// the number and the times count.
func (a *Authority) CRL(list *x509.RevocationList) ([]byte, error) {
	if a.Chain[0].KeyUsage&x509.KeyUsageCRLSign == 0 {
		return nil, errors.New("the authority's certificate does not allow it to sign revocation lists (key usage cRLSign)")
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, a.Chain[0], a.Key)
	if err != nil {
		return nil, fmt.Errorf("sign a revocation list: %w", err)
	}
	return der, nil
}
