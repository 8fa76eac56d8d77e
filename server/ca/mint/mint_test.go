// SPDX-License-Identifier: Apache-2.0

package mint

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// A constrained authority signs for its own trust domain, and what it signs for another one nobody believes.
func TestNameConstraints(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dir, now := t.TempDir(), time.Now()
	for name, c := range map[string]struct {
		constraints bool
		id          string
		good        bool
	}{
		"own":           {true, "spiffe://example.org/a", true},
		"another":       {true, "spiffe://other.example/a", false},
		"below":         {true, "spiffe://sub.example.org/a", false},
		"unconstrained": {false, "spiffe://other.example/a", true},
	} {
		shape := &Shape{TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), NameConstraints: c.constraints}
		root, err := shape.SelfSign(key, now, time.Hour)
		if err != nil {
			t.Fatal(err)
		}
		a := &Authority{Key: key, Chain: []*x509.Certificate{root}, Root: true, NotAfter: root.NotAfter}
		id := spiffeid.RequireFromString(c.id)
		chain, err := a.SVID(&Shape{TrustDomain: id.TrustDomain()}, Request{ID: id, PublicKey: key.Public(), TTL: time.Minute, DNSNames: []string{"db.internal"}}, now)
		if err != nil {
			t.Fatal(err)
		}
		roots := x509.NewCertPool()
		roots.AddCert(root)
		_, err = chain[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		if (err == nil) != c.good {
			t.Errorf("%s: Go says %v", name, err)
		}
		files := []string{filepath.Join(dir, "root.pem"), filepath.Join(dir, "leaf.pem")}
		for i, cert := range []*x509.Certificate{root, chain[0]} {
			if err := os.WriteFile(files[i], pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if out, err := exec.Command("openssl", "verify", "-CAfile", files[0], files[1]).CombinedOutput(); (err == nil) != c.good {
			t.Errorf("%s: OpenSSL says %s, %v", name, out, err)
		}
	}
}
