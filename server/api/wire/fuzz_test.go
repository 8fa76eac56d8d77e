// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"math/big"
	"testing"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"

	entrypb "github.com/assay-id/assay/proto/entry"
	evidencev1 "github.com/assay-id/assay/proto/evidence"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/federation"
)

func seed(f *testing.F, m proto.Message) {
	f.Helper()
	b, err := proto.Marshal(m)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
}

// FuzzFacts: what an agent sends never panics, and without a tier or an exec id it proves nothing.
func FuzzFacts(f *testing.F) {
	f.Add([]byte{})
	seed(f, &evidencev1.Facts{Process: &evidencev1.ProcessKey{ExecId: 1}, Tier: evidencev1.Tier_TIER_T2, Credentials: &evidencev1.Credentials{Uid: 1},
		Executable: &evidencev1.Executable{Path: "/bin/x", Sha256: make([]byte, 32)}, Ancestors: []*evidencev1.Ancestor{{ExecId: 2}}})
	f.Fuzz(func(t *testing.T, data []byte) {
		var p evidencev1.Facts
		if proto.Unmarshal(data, &p) != nil {
			return
		}
		facts, err := ReadFacts(&p)
		if err != nil {
			return
		}
		set := selectors.Derive(facts)
		if (p.Tier < evidencev1.Tier_TIER_T3 || p.Tier > evidencev1.Tier_TIER_T1 || p.Process.ExecId == 0) && len(set) != 0 {
			t.Errorf("selectors without evidence: %v", set)
		}
	})
}

// FuzzEntry: an entry that is accepted comes back as it was sent.
func FuzzEntry(f *testing.F) {
	f.Add([]byte{})
	options := &types.Entry{ParentId: &types.SPIFFEID{TrustDomain: "a", Path: "/p"}, SpiffeId: &types.SPIFFEID{TrustDomain: "a", Path: "/w"}}
	if err := entrypb.Set(options, &entrypb.Options{PerProcess: true, KeyType: 3, Grace: 90}); err != nil {
		f.Fatal(err)
	}
	seed(f, options)
	seed(f, &types.Entry{Id: "x", ParentId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/p"}, SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/w"},
		Selectors: []*types.Selector{{Type: "unix", Value: "uid:0"}}, X509SvidTtl: 1, FederatesWith: []string{"other.org"}, DnsNames: []string{"a.example"}, ExpiresAt: 5})
	f.Fuzz(func(t *testing.T, data []byte) {
		var p types.Entry
		if proto.Unmarshal(data, &p) != nil {
			return
		}
		e := selectors.Entry{ID: p.Id}
		if SetEntry(&e, &p, nil) != nil {
			return
		}
		back := Entry(&e, nil)
		before, _ := entrypb.Get(&p)
		if after, err := entrypb.Get(back); err != nil || before.GetPerProcess() != after.GetPerProcess() || before.GetKeyType() != after.GetKeyType() || before.GetGrace() != after.GetGrace() {
			t.Errorf("sent the options %v, got back %v, %v", before, after, err)
		}
		if back.X509SvidTtl != p.X509SvidTtl || back.JwtSvidTtl != p.JwtSvidTtl || back.ExpiresAt != p.ExpiresAt || back.Hint != p.Hint ||
			len(back.Selectors) != len(p.Selectors) || len(back.DnsNames) != len(p.DnsNames) || back.Admin != p.Admin || back.SpiffeId.GetPath() != p.SpiffeId.GetPath() {
			t.Errorf("sent %v, got back %v", &p, back)
		}
	})
}

// FuzzRelationship: a relationship with its bundle that is accepted, and valid, comes back as it was sent.
func FuzzRelationship(f *testing.F) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		f.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		f.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: true, BasicConstraintsValid: true}
	root, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{})
	seed(f, &types.FederationRelationship{TrustDomain: "a.org", BundleEndpointUrl: "https://a.org",
		BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: "spiffe://a.org/x"}},
		TrustDomainBundle: &types.Bundle{TrustDomain: "a.org", RefreshHint: 1, SequenceNumber: 2, X509Authorities: []*types.X509Certificate{{Asn1: root}},
			JwtAuthorities: []*types.JWTKey{{KeyId: "k", PublicKey: public, ExpiresAt: 3}}, WitAuthorities: []*types.WITKey{{KeyId: "w", PublicKey: public}}}})
	f.Fuzz(func(t *testing.T, data []byte) {
		var p types.FederationRelationship
		if proto.Unmarshal(data, &p) != nil {
			return
		}
		td, err := ReadTrustDomain(p.TrustDomain)
		if err != nil {
			return
		}
		r := federation.Relationship{TrustDomain: td}
		b, err := ReadFirstBundle(&p, nil)
		if err != nil || SetRelationship(&r, &p, nil) != nil || r.Validate() != nil || b != nil && b.Validate() != nil {
			return
		}
		back := Relationship(r, b, nil)
		if back.BundleEndpointUrl != p.BundleEndpointUrl || back.GetHttpsSpiffe().GetEndpointSpiffeId() != p.GetHttpsSpiffe().GetEndpointSpiffeId() || (back.GetHttpsWeb() == nil) != (p.GetHttpsWeb() == nil) {
			t.Errorf("sent %v, got back %v", &p, back)
		}
		if b == nil {
			return
		}
		sent, got := p.TrustDomainBundle, back.TrustDomainBundle
		if got.SequenceNumber != sent.SequenceNumber || got.RefreshHint != sent.RefreshHint || len(got.JwtAuthorities) != len(sent.JwtAuthorities) || len(got.WitAuthorities) != len(sent.WitAuthorities) {
			t.Errorf("sent %v, got back %v", sent, got)
		}
		for i, k := range got.JwtAuthorities {
			if k.KeyId != sent.JwtAuthorities[i].KeyId || k.ExpiresAt != sent.JwtAuthorities[i].ExpiresAt || len(k.PublicKey) == 0 || k.Tainted {
				t.Errorf("sent %v, got back %v", sent.JwtAuthorities[i], k)
			}
		}
	})
}
