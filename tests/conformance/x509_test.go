// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"bytes"
	"crypto/x509"
	"encoding/asn1"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
)

var (
	oidSAN              = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidKeyUsage         = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidBasicConstraints = asn1.ObjectIdentifier{2, 5, 29, 19}
)

// verify checks a chain by its bundle, as any X.509 library does.
func verify(p *probe, s *svid) {
	p.Helper()
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	for _, c := range s.bundle {
		roots.AddCert(c)
	}
	for _, c := range s.chain[1:] {
		between.AddCert(c)
	}
	if _, err := s.leaf().Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		p.Errorf("%s: %v", s.id, err)
	}
}

// signing are all certificates that sign: the bundle and what stands between.
func signing(p *probe) (list []*x509.Certificate) {
	p.Helper()
	for _, s := range svids(p) {
		list = append(append(list, s.chain[1:]...), s.bundle...)
	}
	if len(list) == 0 {
		p.Fatalf("no signing certificate")
	}
	return list
}

func critical(c *x509.Certificate, oid asn1.ObjectIdentifier) (present, isCritical bool) {
	for _, e := range c.Extensions {
		if e.Id.Equal(oid) {
			return true, e.Critical
		}
	}
	return false, false
}

func TestX509SVIDLeaf(t *testing.T) {
	point(t, "X-1", func(p *probe) {
		for _, s := range svids(p) {
			verify(p, s)
			if len(s.leaf().URIs) != 1 || s.leaf().URIs[0].String() != s.id {
				p.Errorf("%s has the URIs %v", s.id, s.leaf().URIs)
			}
		}
		if at.server == nil {
			return
		}
		a, b := &url.URL{Scheme: "spiffe", Host: at.td, Path: "/a"}, &url.URL{Scheme: "spiffe", Host: at.td, Path: "/b"}
		if s, err := minted(p, a, b); err == nil && len(s.leaf().URIs) != 1 {
			p.Errorf("a request for two IDs gave %v", s.leaf().URIs)
		}
	})
	point(t, "X-3", func(p *probe) {
		for _, s := range svids(p) {
			if got := s.leaf().DNSNames; strings.HasSuffix(s.id, "/one") && !slices.Equal(got, []string{"one.example.org", "www.one.example.org"}) {
				p.Errorf("DNS names %q", got)
			}
		}
	}, withServer)
	point(t, "X-4", func(p *probe) {
		for _, s := range svids(p) {
			if u := s.leaf().URIs[0]; len(strings.Trim(u.Path, "/")) == 0 {
				p.Errorf("%s has no path", u)
			}
		}
		if at.server == nil {
			return
		}
		noEntry(p, "the trust domain itself", &types.Entry{SpiffeId: at.id("")})
		_, err := minted(p, &url.URL{Scheme: "spiffe", Host: at.td})
		code(p, "MintX509SVID for the trust domain itself", err, codes.InvalidArgument)
	})
	point(t, "X-5", func(p *probe) {
		for _, s := range svids(p) {
			for _, c := range s.chain {
				if _, is := critical(c, oidSAN); !is && bytes.Equal(c.RawSubject, []byte{0x30, 0}) {
					p.Errorf("%s: empty subject and a SAN that is not critical", s.id)
				}
			}
		}
	})
	point(t, "X-13", func(p *probe) {
		for _, s := range svids(p) {
			if u := s.leaf().KeyUsage; u&x509.KeyUsageDigitalSignature == 0 || u&^(x509.KeyUsageDigitalSignature|x509.KeyUsageKeyEncipherment|x509.KeyUsageKeyAgreement) != 0 {
				p.Errorf("%s: key usage %b", s.id, u)
			}
		}
	})
	point(t, "X-14", func(p *probe) {
		for _, s := range svids(p) {
			if u := s.leaf().KeyUsage; u&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
				p.Errorf("%s: key usage %b", s.id, u)
			}
		}
	})
	point(t, "X-15", func(p *probe) {
		for _, s := range svids(p) {
			if u := s.leaf().ExtKeyUsage; !slices.Contains(u, x509.ExtKeyUsageServerAuth) || !slices.Contains(u, x509.ExtKeyUsageClientAuth) {
				p.Errorf("%s: extended key usage %v", s.id, u)
			}
		}
	})
}

func TestX509SVIDSigning(t *testing.T) {
	point(t, "X-6", func(p *probe) {
		for _, c := range signing(p) {
			if len(c.URIs) != 1 || c.URIs[0].Scheme != "spiffe" {
				p.Errorf("%s has the URIs %v", c.Subject, c.URIs)
			}
		}
	})
	point(t, "X-7", func(p *probe) {
		for _, c := range signing(p) {
			for _, u := range c.URIs {
				if u.Path != "" || u.Host != at.td {
					p.Errorf("%s is %s", c.Subject, u)
				}
			}
		}
	})
	point(t, "X-9", func(p *probe) {
		for _, c := range signing(p) {
			if is, _ := critical(c, oidBasicConstraints); !is || !c.IsCA {
				p.Errorf("%s is no CA", c.Subject)
			}
		}
		for _, s := range svids(p) {
			if s.leaf().IsCA {
				p.Errorf("%s is a CA", s.id)
			}
		}
	})
	point(t, "X-11", func(p *probe) {
		list := signing(p)
		for _, s := range svids(p) {
			list = append(list, s.leaf())
		}
		for _, c := range list {
			if present, is := critical(c, oidKeyUsage); !present || !is {
				p.Errorf("%s %v: key usage present %t, critical %t", c.Subject, c.URIs, present, is)
			}
		}
	})
	point(t, "X-12", func(p *probe) {
		for _, c := range signing(p) {
			if c.KeyUsage&x509.KeyUsageCertSign == 0 || c.KeyUsage&^(x509.KeyUsageCertSign|x509.KeyUsageCRLSign|x509.KeyUsageDigitalSignature) != 0 {
				p.Errorf("%s: key usage %b", c.Subject, c.KeyUsage)
			}
		}
	})
}

// The server validates X509-SVIDs where anybody can show it some: at bundle endpoints with which it federates.
func TestX509SVIDValidation(t *testing.T) {
	bad := []struct {
		id, what string
		change   func(c *x509.Certificate)
	}{
		{"X-2", "two URIs", func(c *x509.Certificate) {
			c.URIs = append(c.URIs, &url.URL{Scheme: "spiffe", Host: "v.test", Path: "/b"})
		}},
		{"X-16", "expired", func(c *x509.Certificate) {
			c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
		}},
		{"X-17", "cA", func(c *x509.Certificate) { c.IsCA = true }},
		{"X-18", "keyCertSign", func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign }},
		{"X-19", "another scheme", func(c *x509.Certificate) { c.URIs[0].Scheme = "https" }},
	}
	for _, b := range bad {
		point(t, b.id, func(p *probe) {
			r := relate(p, "v.test")
			template := r.far.leafTemplate()
			b.change(template)
			r.present(p, template)
			r.refuses(p, b.what)
			if b.id == "X-18" {
				template := r.far.leafTemplate()
				template.KeyUsage |= x509.KeyUsageCRLSign
				r.present(p, template)
				r.refuses(p, "cRLSign")
			}
			if b.id == "X-16" {
				other, err := newFar("v.test")
				p.must("an impostor", err)
				r.far, other = other, r.far
				r.present(p, r.far.leafTemplate())
				r.refuses(p, "signed by another key")
				r.far = other
			}
			r.present(p, r.far.leafTemplate())
			r.accepts(p, "a good certificate after all", r.far.x509JWK())
		}, withServer)
	}
	point(t, "X-8", func(p *probe) {
		r := relate(p, "v.test")
		template := r.far.caTemplate()
		template.URIs[0].Path = endpointPath
		template.ExtKeyUsage = r.far.leafTemplate().ExtKeyUsage
		r.present(p, template)
		r.refuses(p, "a signing certificate")
	}, withServer)
	point(t, "X-20", func(p *probe) {
		f, err := newFar("v.test")
		p.must("far trust domain", err)
		r := &relation{endpoint: f.serve(p), id: "spiffe://v.test"}
		if err := r.create(p, r.url, r.id); err != nil {
			code(p, "a relationship with an endpoint without a path", err, codes.InvalidArgument)
			return
		}
		p.Cleanup(func() {
			r.end(p)
			at.deleteBundle("v.test")
		})
		template := f.leafTemplate()
		template.URIs[0].Path = ""
		r.present(p, template)
		r.refuses(p, "a leaf without a path")
	}, withServer)
}

func TestX509SVIDBundle(t *testing.T) {
	point(t, "X-21", func(p *probe) {
		if len(published(p, "x509-svid")) == 0 {
			p.Errorf("no key with the use x509-svid")
		}
	}, withEndpoint)
	point(t, "X-22", func(p *probe) {
		for _, k := range published(p, "x509-svid") {
			if kid, ok := k["kid"]; ok {
				p.Errorf("kid %v", kid)
			}
		}
	}, withEndpoint)
	point(t, "X-23", func(p *probe) {
		for _, k := range published(p, "x509-svid") {
			list, _ := k["x5c"].([]any)
			if len(list) != 1 {
				p.Fatalf("x5c has %d values", len(list))
			}
			c := decodeX5C(p, list[0])
			if !c.IsCA || c.CheckSignatureFrom(c) != nil {
				p.Errorf("%s is no self-signed CA", c.Subject)
			}
		}
	}, withEndpoint)
	point(t, "X-24", func(p *probe) {
		r := relate(p, "v.test")
		without, empty := r.far.x509JWK(), r.far.x509JWK().with("x5c", []string{})
		delete(without, "x5c")
		if b := r.accepts(p, "a bundle with such a key", without, empty, r.far.x509JWK()); len(b.X509Authorities) != 1 {
			p.Errorf("%d authorities", len(b.X509Authorities))
		}
	}, withServer)
	point(t, "X-25", func(p *probe) {
		r := relate(p, "v.test")
		other, err := newFar("v.test")
		p.must("another CA", err)
		b := r.accepts(p, "a bundle with such a key", r.far.x509JWK().with("x5c", x5c(r.far.ca, other.ca)))
		if len(b.X509Authorities) != 1 || !bytes.Equal(b.X509Authorities[0].Asn1, r.far.ca.Raw) {
			p.Errorf("%d authorities, want the first value's", len(b.X509Authorities))
		}
	}, withServer)
}
