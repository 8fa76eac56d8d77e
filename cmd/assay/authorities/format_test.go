// SPDX-License-Identifier: Apache-2.0

package authorities

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestBundleFormats(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	must(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	must(t, err)
	td := spiffeid.RequireTrustDomainFromString("other.test")
	b := &types.Bundle{TrustDomain: td.Name(), X509Authorities: []*types.X509Certificate{{Asn1: der}}, SequenceNumber: 4, RefreshHint: 60,
		JwtAuthorities: []*types.JWTKey{{KeyId: "j", PublicKey: public}}, WitAuthorities: []*types.WITKey{{KeyId: "w", PublicKey: public}}}
	text, err := bundleText(b, formatSPIFFE)
	must(t, err)
	got, err := readBundle(td, formatSPIFFE, []byte(text))
	must(t, err)
	if !proto.Equal(got, b) {
		t.Errorf("got %v, want %v", got, b)
	}
	text, err = bundleText(b, formatPEM)
	must(t, err)
	got, err = readBundle(td, formatPEM, []byte(text))
	must(t, err)
	if !proto.Equal(got, &types.Bundle{TrustDomain: td.Name(), X509Authorities: b.X509Authorities}) {
		t.Errorf("got %v", got)
	}
	for name, bad := range map[string]struct{ format, text string }{
		"empty": {formatPEM, ""}, "JSON as PEM": {formatPEM, "{}"}, "more behind": {formatPEM, text + "x"}, "PEM as JSON": {formatSPIFFE, text},
		"a key": {formatPEM, strings.ReplaceAll(text, "CERTIFICATE", "PRIVATE KEY")}, "no keys": {formatSPIFFE, "{}"},
	} {
		if b, err := readBundle(td, bad.format, []byte(bad.text)); err == nil {
			t.Errorf("%s was read as %v", name, b)
		}
	}
}
