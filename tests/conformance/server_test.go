// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"net/url"
	"slices"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// What is asked of the server behind the agent goes by SPIRE's server API.

// entry makes an entry for the time of a probe; without selectors it is for us.
func entry(p *probe, e *types.Entry) string {
	p.Helper()
	id, err := at.create(p.Context(), e)
	p.must("create the entry", err)
	p.Cleanup(func() {
		at.delete(id)
		if len(e.Selectors) > 0 && e.Selectors[0] == at.selectors[0] {
			return // settle sees that it is gone
		}
		marker, err := at.create(context.Background(), &types.Entry{SpiffeId: at.id("/conformance/marker")})
		if err != nil {
			p.Errorf("marker: %v", err)
			return
		}
		eventually(p, "the agent to know that the stranger's entry is gone", func() bool {
			return slices.Contains(ours(p), "spiffe://"+at.td+"/conformance/marker")
		})
		at.delete(marker)
	})
	return id
}

// settle waits until the agent knows that the entries of the probe before are gone: one that polls
// does so every few seconds.
func settle(p *probe) {
	p.Helper()
	if at.server != nil {
		eventually(p, "our identities to be those of the beginning", func() bool { return sameSet(ours(p), at.ids) })
	}
}

func sameSet(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// ours are the SPIFFE IDs that we have now.
func ours(p *probe) []string {
	ctx, cancel := context.WithTimeout(header(context.Background()), patience)
	defer cancel()
	st, err := at.api.FetchX509SVID(ctx, &pb.X509SVIDRequest{})
	if err != nil {
		return nil
	}
	m, err := st.Recv()
	if err != nil {
		return nil
	}
	return idsOf(m.Svids)
}

// noEntry wants an entry to be refused.
func noEntry(p *probe, what string, e *types.Entry) {
	p.Helper()
	id, err := at.create(p.Context(), e)
	if err == nil {
		at.delete(id)
		p.Errorf("an entry for %s is accepted", what)
	} else {
		code(p, "an entry for "+what, err, codes.InvalidArgument)
	}
}

// minted asks the server for an X509-SVID for the URIs of a request.
func minted(p *probe, uris ...*url.URL) (*svid, error) {
	p.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p.must("key", err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{URIs: uris, DNSNames: []string{"mint.example.org"}}, key)
	p.must("request", err)
	r, err := svidv1.NewSVIDClient(at.server).MintX509SVID(p.Context(), &svidv1.MintX509SVIDRequest{Csr: csr})
	if err != nil {
		return nil, err
	}
	s := &svid{id: "spiffe://" + r.Svid.Id.TrustDomain + r.Svid.Id.Path, key: crypto.Signer(key)}
	for _, der := range r.Svid.CertChain {
		c, err := x509.ParseCertificate(der)
		p.must("minted certificate", err)
		s.chain = append(s.chain, c)
	}
	b, err := bundlev1.NewBundleClient(at.server).GetBundle(p.Context(), &bundlev1.GetBundleRequest{})
	p.must("bundle", err)
	for _, a := range b.X509Authorities {
		c, err := x509.ParseCertificate(a.Asn1)
		p.must("authority", err)
		s.bundle = append(s.bundle, c)
	}
	return s, nil
}

func mintX509(p *probe) *svid {
	p.Helper()
	s, err := minted(p, &url.URL{Scheme: "spiffe", Host: at.td, Path: "/conformance/minted"})
	p.must("MintX509SVID", err)
	return s
}

func mintJWT(p *probe) token {
	p.Helper()
	r, err := svidv1.NewSVIDClient(at.server).MintJWTSVID(p.Context(), &svidv1.MintJWTSVIDRequest{Id: at.id("/conformance/minted"), Audience: []string{"db"}})
	p.must("MintJWTSVID", err)
	return readToken(p, r.Svid.Token)
}

// A relation is a federation relationship of the server with a far trust domain whose endpoint we are.
type relation struct {
	*endpoint
	id string // SPIFFE ID of the endpoint that the server expects
}

// relate federates the server with a far trust domain and waits for the first bundle.
func relate(p *probe, td string) *relation {
	p.Helper()
	f, err := newFar(td)
	p.must("far trust domain", err)
	r := &relation{endpoint: f.serve(p), id: "spiffe://" + td + endpointPath}
	p.must("create the relationship", r.create(p, r.url, r.id))
	p.Cleanup(func() {
		r.end(p)
		at.deleteBundle(td)
	})
	r.accepts(p, "a good bundle", f.x509JWK(), f.jwtJWK())
	return r
}

// create makes the relationship, with the bundle of the far trust domain to begin with.
func (r *relation) create(p *probe, url, id string) error {
	return r.createWith(p, url, id, r.far.bundle())
}

func (r *relation) createWith(p *probe, url, id string, b *types.Bundle) error {
	resp, err := trustdomainv1.NewTrustDomainClient(at.server).BatchCreateFederationRelationship(p.Context(), &trustdomainv1.BatchCreateFederationRelationshipRequest{
		FederationRelationships: []*types.FederationRelationship{{TrustDomain: r.far.td, BundleEndpointUrl: url, TrustDomainBundle: b,
			BundleEndpointProfile: &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: id}}}}})
	if err == nil {
		err = statusError(resp.Results[0].Status)
	}
	return err
}

// end deletes the relationship.
func (r *relation) end(p *probe) {
	ctx, cancel := cleanupContext()
	defer cancel()
	_, err := trustdomainv1.NewTrustDomainClient(at.server).BatchDeleteFederationRelationship(ctx, &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{r.far.td}})
	if err != nil {
		p.Errorf("end the relationship: %v", err)
	}
}

// refresh has the server fetch now. A server may need a moment to know a new relationship.
func (r *relation) refresh(p *probe) (err error) {
	p.Helper()
	eventually(p, "the relationship", func() bool {
		_, err = trustdomainv1.NewTrustDomainClient(at.server).RefreshBundle(p.Context(), &trustdomainv1.RefreshBundleRequest{TrustDomain: r.far.td})
		return status.Code(err) != codes.NotFound
	})
	return err
}

// known is the bundle that the server has of the far trust domain.
func (r *relation) known(p *probe) *types.Bundle {
	p.Helper()
	b, err := bundlev1.NewBundleClient(at.server).GetFederatedBundle(p.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: r.far.td})
	p.must("GetFederatedBundle", err)
	return b
}

// try serves a document with a JWT key of a new name beside the keys, and says whether the server took it.
func (r *relation) try(p *probe, keys ...jwk) (*types.Bundle, error) {
	p.Helper()
	marker := rand.Text()
	doc := r.far.document(append(keys, coordinates(r.far.jwtKey).with("use", "jwt-svid", "kid", marker))...)
	r.show(doc)
	err := r.refresh(p)
	b := r.known(p)
	for _, k := range b.JwtAuthorities {
		if k.KeyId == marker {
			return b, nil
		}
	}
	return nil, errors.Join(errors.New("the server did not take the bundle"), err)
}

// accepts wants the server to take a bundle with these keys.
func (r *relation) accepts(p *probe, what string, keys ...jwk) *types.Bundle {
	p.Helper()
	b, err := r.try(p, keys...)
	if err != nil {
		p.Fatalf("%s: %v", what, err)
	}
	return b
}

// refuses wants the server to believe nothing that the endpoint says now.
func (r *relation) refuses(p *probe, what string) {
	p.Helper()
	if _, err := r.try(p, r.far.x509JWK()); err == nil {
		p.Errorf("%s: the server took its bundle", what)
	}
}
