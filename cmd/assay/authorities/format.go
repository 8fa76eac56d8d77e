// SPDX-License-Identifier: Apache-2.0

package authorities

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// The formats of bundles: the X.509 authorities alone, or all that the SPIFFE standard has.
const (
	formatPEM    = "pem"
	formatSPIFFE = "spiffe"
)

const formatUsage = "pem (X.509 authorities only) or spiffe (the bundle format of the standard)"

func checkFormat(flag, format string) error {
	if format != formatPEM && format != formatSPIFFE {
		return fmt.Errorf("--%s %s: the formats are pem and spiffe", flag, format)
	}
	return nil
}

// readBundle reads a bundle of the trust domain. The server judges it once more.
func readBundle(td spiffeid.TrustDomain, format string, data []byte) (*types.Bundle, error) {
	if format == formatPEM {
		return readPEM(td, data)
	}
	doc, err := spiffebundle.Parse(td, data)
	if err != nil {
		return nil, fmt.Errorf("the bundle of %s: %w", td.Name(), err)
	}
	b := &types.Bundle{TrustDomain: td.Name()}
	b.SequenceNumber, _ = doc.SequenceNumber()
	hint, _ := doc.RefreshHint()
	b.RefreshHint = int64(hint / time.Second)
	for _, cert := range doc.X509Authorities() {
		b.X509Authorities = append(b.X509Authorities, &types.X509Certificate{Asn1: cert.Raw})
	}
	jwt, wit := doc.JWTAuthorities(), doc.WITAuthorities()
	for _, id := range slices.Sorted(maps.Keys(jwt)) {
		der, err := x509.MarshalPKIXPublicKey(jwt[id])
		if err != nil {
			return nil, fmt.Errorf("JWT authority %s: %w", id, err)
		}
		b.JwtAuthorities = append(b.JwtAuthorities, &types.JWTKey{PublicKey: der, KeyId: id})
	}
	for _, id := range slices.Sorted(maps.Keys(wit)) {
		der, err := x509.MarshalPKIXPublicKey(wit[id])
		if err != nil {
			return nil, fmt.Errorf("WIT authority %s: %w", id, err)
		}
		b.WitAuthorities = append(b.WitAuthorities, &types.WITKey{PublicKey: der, KeyId: id})
	}
	return b, nil
}

func readPEM(td spiffeid.TrustDomain, data []byte) (*types.Bundle, error) {
	b := &types.Bundle{TrustDomain: td.Name()}
	for {
		block, rest := pem.Decode(data)
		if block == nil {
			break
		}
		data = rest
		if _, err := x509.ParseCertificate(block.Bytes); err != nil || block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("the bundle of %s: a PEM block %s is no certificate", td.Name(), block.Type)
		}
		b.X509Authorities = append(b.X509Authorities, &types.X509Certificate{Asn1: block.Bytes})
	}
	if len(b.X509Authorities) == 0 || strings.TrimSpace(string(data)) != "" {
		return nil, fmt.Errorf("the bundle of %s is not all PEM certificates; for a JSON document name the format spiffe", td.Name())
	}
	return b, nil
}

// bundleText writes what readBundle reads.
func bundleText(b *types.Bundle, format string) (string, error) {
	if format == formatPEM {
		var out strings.Builder
		for _, x := range b.X509Authorities {
			out.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: x.Asn1}))
		}
		return out.String(), nil
	}
	td, err := trustDomain(b.TrustDomain)
	if err != nil {
		return "", err
	}
	doc := spiffebundle.New(td)
	doc.SetSequenceNumber(b.SequenceNumber)
	if b.RefreshHint > 0 {
		doc.SetRefreshHint(time.Duration(b.RefreshHint) * time.Second)
	}
	var wrong error
	for _, x := range b.X509Authorities {
		cert, err := x509.ParseCertificate(x.Asn1)
		wrong = errors.Join(wrong, err)
		if err == nil {
			doc.AddX509Authority(cert)
		}
	}
	for _, k := range b.JwtAuthorities {
		key, err := x509.ParsePKIXPublicKey(k.PublicKey)
		wrong = errors.Join(wrong, err, doc.AddJWTAuthority(k.KeyId, key))
	}
	for _, k := range b.WitAuthorities {
		key, err := x509.ParsePKIXPublicKey(k.PublicKey)
		wrong = errors.Join(wrong, err, doc.AddWITAuthority(k.KeyId, key))
	}
	if wrong != nil {
		return "", fmt.Errorf("the bundle of %s: %w", b.TrustDomain, wrong)
	}
	text, err := doc.Marshal()
	return string(text) + "\n", err
}

// trustDomain reads a name or an ID, as SPIRE's flags take either.
func trustDomain(text string) (spiffeid.TrustDomain, error) {
	td, err := spiffeid.TrustDomainFromString(text)
	if err != nil {
		return td, fmt.Errorf("%q is not a trust domain (%w): write it as example.org or spiffe://example.org", text, err)
	}
	return td, nil
}
