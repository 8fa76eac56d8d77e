// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"crypto"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/tests/soak/fleet"
)

// sign has SVIDs of random entries signed and checks each.
func (a *agent) sign(ctx context.Context, conn *grpc.ClientConn) {
	key, err := fleet.NewKey()
	if err != nil {
		a.w.violation("%v", err)
		return
	}
	csr, err := fleet.CSR(key)
	if err != nil {
		a.w.violation("%v", err)
		return
	}
	for pause(ctx, time.Duration(300+rand.IntN(700))*time.Millisecond) {
		if e, open := a.anyEntry(); open && e != nil {
			a.signFor(ctx, svidv1.NewSVIDClient(conn), e, csr)
		}
	}
}

func (a *agent) signFor(ctx context.Context, client svidv1.SVIDClient, e *types.Entry, csr []byte) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	before := a.present()
	resp, err := client.BatchNewX509SVID(ctx, &svidv1.BatchNewX509SVIDRequest{Params: []*svidv1.NewX509SVIDParams{{EntryId: e.Id, Csr: csr}}})
	if err == nil && resp.Results[0].Status.Code == 0 {
		a.w.count("X.509-SVIDs verified", 1)
		a.w.checkX509(a, resp.Results[0].Svid.CertChain, before)
	}
	before = a.present()
	token, err := client.NewJWTSVID(ctx, &svidv1.NewJWTSVIDRequest{EntryId: e.Id, Audience: []string{"soak"}})
	if err == nil {
		a.w.count("JWT-SVIDs verified", 1)
		a.w.checkJWT(a, token.Svid.Token, before)
	}
}

// anyEntry is one that the agent has, if any, and whether it is connected.
func (a *agent) anyEntry() (e *types.Entry, open bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, e := range a.entries { // maps are ranged over in random order
		return e, a.open
	}
	return nil, a.open
}

// present is the bundle that the agent has now.
func (a *agent) present() *types.Bundle {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.bundle
}

// checkX509: what was signed verifies by the bundle that the agent had when it asked, or has now,
// and who signed it is known to all who are connected.
func (w *world) checkX509(a *agent, chain [][]byte, had *types.Bundle) {
	var failed error
	for _, b := range []*types.Bundle{had, a.present()} {
		roots, err := fleet.Roots(b)
		if err == nil {
			if _, _, err = x509svid.ParseAndVerify(chain, roots); err == nil {
				failed = nil
				break
			}
		}
		failed = err
	}
	if failed != nil && !a.polls { // who polls may be a second behind
		w.violation("%s got an SVID that its bundle %d does not verify: %v", a.name, a.present().SequenceNumber, failed)
	}
	leaf := parsed(chain[0])
	w.newAuthority(fmt.Sprintf("x509 %x", leaf.AuthorityKeyId), func(b *types.Bundle) bool {
		return slices.ContainsFunc(b.X509Authorities, func(c *types.X509Certificate) bool { return keyID(c.Asn1) == string(leaf.AuthorityKeyId) })
	})
}

func (w *world) checkJWT(a *agent, token string, had *types.Bundle) {
	var failed error
	for _, b := range []*types.Bundle{had, a.present()} {
		if _, failed = jwtsvid.ParseAndValidate(token, jwtRoots(b), []string{"soak"}); failed == nil {
			break
		}
	}
	if failed != nil && !a.polls {
		w.violation("%s got a JWT-SVID that its bundle %d does not verify: %v", a.name, a.present().SequenceNumber, failed)
	}
	signed, err := jose.ParseSigned(token, []jose.SignatureAlgorithm{jose.ES256})
	if err != nil {
		w.violation("a JWT-SVID can not be read: %v", err)
		return
	}
	id := signed.Signatures[0].Header.KeyID
	w.newAuthority("jwt "+id, func(b *types.Bundle) bool {
		return slices.ContainsFunc(b.JwtAuthorities, func(k *types.JWTKey) bool { return k.KeyId == id })
	})
}

func jwtRoots(b *types.Bundle) *jwtbundle.Bundle {
	keys := map[string]crypto.PublicKey{}
	for _, k := range b.JwtAuthorities {
		if key, err := x509.ParsePKIXPublicKey(k.PublicKey); err == nil {
			keys[k.KeyId] = key
		}
	}
	return jwtbundle.FromJWTAuthorities(spiffeid.RequireTrustDomainFromString(fleet.TrustDomain), keys)
}

// newAuthority checks, when something signed by an authority is seen for the first time, that all
// agents with an open feed know it. One whose feed turns out to have ended just then is excused.
func (w *world) newAuthority(name string, in func(*types.Bundle) bool) {
	if _, seen := w.authorities.LoadOrStore(name, true); seen {
		return
	}
	w.count("authorities that signed", 1)
	for _, a := range w.agents {
		a.mu.Lock()
		stream, sequence := a.streams, a.bundle.GetSequenceNumber()
		ignorant := a.open && !a.polls && !in(a.bundle)
		a.mu.Unlock()
		if !ignorant {
			continue
		}
		time.AfterFunc(time.Second, func() {
			a.mu.Lock()
			defer a.mu.Unlock()
			if a.open && a.streams == stream {
				w.violation("authority %q signed while %s was connected and had bundle %d without it", name, a.name, sequence)
			}
		})
	}
}

// parsed is a certificate that the server sent.
func parsed(der []byte) *x509.Certificate {
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return &x509.Certificate{} // of no authority: the checks fail
	}
	return c
}

// syncEntries asks for the authorised entries as SPIRE's agents do, in pages if they are many.
func syncEntries(ctx context.Context, conn *grpc.ClientConn) (map[string]*types.Entry, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	stream, err := entryv1.NewEntryClient(conn).SyncAuthorizedEntries(ctx)
	if err != nil {
		return nil, err
	}
	_ = stream.Send(&entryv1.SyncAuthorizedEntriesRequest{}) // Recv says why it failed
	all := map[string]*types.Entry{}
	var ids []string
	for more := true; more; {
		resp, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		more = resp.More
		for _, e := range resp.Entries {
			all[e.Id] = e
		}
		for _, r := range resp.EntryRevisions {
			ids = append(ids, r.Id)
		}
	}
	for page := range slices.Chunk(ids, 500) {
		_ = stream.Send(&entryv1.SyncAuthorizedEntriesRequest{Ids: page})
		for more := true; more; {
			resp, err := stream.Recv()
			if err != nil {
				return nil, err
			}
			more = resp.More
			for _, e := range resp.Entries {
				all[e.Id] = e
			}
		}
	}
	return all, nil
}

func fetchForeign(ctx context.Context, conn *grpc.ClientConn, entries map[string]*types.Entry) (map[string]*types.Bundle, error) {
	all := map[string]*types.Bundle{}
	for _, e := range entries {
		for _, td := range e.FederatesWith {
			if all[td] != nil {
				continue
			}
			b, err := bundlev1.NewBundleClient(conn).GetFederatedBundle(ctx, &bundlev1.GetFederatedBundleRequest{TrustDomain: td})
			if status.Code(err) == codes.NotFound {
				continue
			}
			if err != nil {
				return nil, err
			}
			all[td] = b
		}
	}
	return all, nil
}
