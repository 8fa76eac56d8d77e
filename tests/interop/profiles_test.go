// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/cmd/dev"
)

// Our agent gives its workloads what a server of SPIRE's has beyond X.509-SVIDs: tokens, bundles of other trust
// domains, and SVIDs by a new authority when the former one is tainted.
func TestOurAgentProfiles(t *testing.T) {
	f := spireServer(t, "")
	token := joinToken(t, f.socket)
	env := ours(t, f, fmt.Sprintf("join_token {\n  token = %q\n}", token))
	conn, err := dev.Dial(f.socket)
	fatal(t, err)
	defer conn.Close()
	own, err := bundlev1.NewBundleClient(conn).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	fatal(t, err)
	_, err = bundlev1.NewBundleClient(conn).BatchSetFederatedBundle(t.Context(), &bundlev1.BatchSetFederatedBundleRequest{
		Bundle: []*types.Bundle{{TrustDomain: "far.test", X509Authorities: own.X509Authorities}}})
	fatal(t, err)
	_, err = entryv1.NewEntryClient(conn).BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
		ParentId: &types.SPIFFEID{TrustDomain: trustDomain, Path: "/spire/agent/join_token/" + token}, SpiffeId: &types.SPIFFEID{TrustDomain: trustDomain, Path: "/w"},
		Selectors: []*types.Selector{{Type: "unix", Value: fmt.Sprintf("uid:%d", os.Getuid())}}, FederatesWith: []string{"far.test"}}}})
	fatal(t, err)
	fetch(t, env.WorkloadSocket)

	client, err := workloadapi.New(t.Context(), workloadapi.WithAddr(env.WorkloadSocket))
	fatal(t, err)
	defer client.Close()
	bundles, err := client.FetchJWTBundles(t.Context())
	fatal(t, err)
	svid, err := client.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db"})
	fatal(t, err)
	_, err = jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"db"})
	fatal(t, err)
	_, err = client.ValidateJWTSVID(t.Context(), svid.Marshal(), "db")
	fatal(t, err)
	within(t, 15*time.Second, "the bundle of the other trust domain is there", func() bool {
		x, err := client.FetchX509Context(t.Context())
		return err == nil && x.Bundles.Has(spiffeid.RequireTrustDomainFromString("far.test"))
	})

	signer := func(v *x509svid.SVID) string { return hex.EncodeToString(v.Certificates[0].AuthorityKeyId) }
	old := signer(fetch(t, env.WorkloadSocket))
	local := localauthorityv1.NewLocalAuthorityClient(conn)
	next, err := local.PrepareX509Authority(t.Context(), &localauthorityv1.PrepareX509AuthorityRequest{})
	fatal(t, err)
	id := next.PreparedAuthority.AuthorityId
	within(t, 15*time.Second, "the agent has polled the new authority, without which it would not know the server again", func() bool {
		x, err := client.FetchX509Context(t.Context())
		if err != nil {
			return false
		}
		b, ok := x.Bundles.Get(spiffeid.RequireTrustDomainFromString(trustDomain))
		return ok && slices.ContainsFunc(b.X509Authorities(), func(a *x509.Certificate) bool { return hex.EncodeToString(a.SubjectKeyId) == id })
	})
	_, err = local.ActivateX509Authority(t.Context(), &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: id})
	fatal(t, err)
	if got := signer(fetch(t, env.WorkloadSocket)); got != old {
		t.Errorf("before the taint: by %s", got)
	}
	before, err := env.AgentStatus(t.Context())
	fatal(t, err)
	_, err = local.TaintX509Authority(t.Context(), &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: old})
	fatal(t, err)
	within(t, 15*time.Second, "the workload has an SVID by the new authority", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		v, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(env.WorkloadSocket))
		return err == nil && signer(v) == id
	})
	within(t, 15*time.Second, "the agent has one, too", func() bool {
		s, err := env.AgentStatus(t.Context())
		return err == nil && s.SvidExpiresAt > before.SvidExpiresAt && s.Connected
	})
}
