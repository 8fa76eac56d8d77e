// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	localauthorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"

	"github.com/assay-id/assay/cmd/dev"
)

// signer is the key id of the authority that signed the first SVID, which all share.
func signer(t *testing.T, x *workloadapi.X509Context) (id string) {
	t.Helper()
	for _, v := range x.SVIDs {
		next := hex.EncodeToString(v.Certificates[len(v.Certificates)-1].AuthorityKeyId)
		if id != "" && id != next {
			return "several"
		}
		id = next
	}
	return id
}

func has(x *workloadapi.X509Context, ski string) bool {
	return x != nil && holds(x.Bundles.Bundles()[0], ski)
}

func holds(b *x509bundle.Bundle, ski string) bool {
	for _, a := range b.X509Authorities() {
		if hex.EncodeToString(a.SubjectKeyId) == ski {
			return true
		}
	}
	return false
}

// prepare → activate → taint: within a second every open stream has SVIDs by the new authority, and the
// agent itself soon; revoke: the bundle loses the old one, and all goes on.
func TestTaintReachesEveryStream(t *testing.T) {
	m := start(t, dev.Options{})
	const entries, streams = 3, 10
	for i := range entries {
		m.create(t, fmt.Sprint("/w", i), "--selector", me(t))
	}
	var watchers []watcher
	var old string
	for range streams {
		w := m.watch(t)
		watchers, old = append(watchers, w), signer(t, w.next(t))
	}
	jwt := m.client(t)
	token := func() string {
		v, err := jwt.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db"})
		if err != nil {
			t.Fatal(err)
		}
		return v.Marshal()
	}
	agentSerial := m.serial(t)
	conn, err := dev.Dial(m.ServerSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	local := localauthorityv1.NewLocalAuthorityClient(conn)

	prepared, err := local.PrepareX509Authority(t.Context(), &localauthorityv1.PrepareX509AuthorityRequest{})
	if err != nil {
		t.Fatal(err)
	}
	id := prepared.PreparedAuthority.AuthorityId
	for i, w := range watchers {
		if x := w.next(t); !has(x, id) || signer(t, x) != old {
			t.Fatalf("stream %d after prepare: %v", i, x)
		}
	}
	began := time.Now()
	if _, err := local.ActivateX509Authority(t.Context(), &localauthorityv1.ActivateX509AuthorityRequest{AuthorityId: id}); err != nil {
		t.Fatal(err)
	}
	if d := time.Since(began); d > 20*time.Second {
		t.Errorf("activation waited %s for agents that have the bundle", d)
	}
	if _, err := local.TaintX509Authority(t.Context(), &localauthorityv1.TaintX509AuthorityRequest{AuthorityId: old}); err != nil {
		t.Fatal(err)
	}
	tainted := time.Now()
	for i, w := range watchers {
		for x := w.next(t); signer(t, x) != id; x = w.next(t) {
			if !has(x, old) {
				t.Errorf("stream %d lost the old authority before it was revoked", i)
			}
		}
	}
	if d := time.Since(tainted); d > time.Second && os.Getenv("ASSAY_GUEST") != "1" { // which is emulated
		t.Errorf("the last of %d streams has its %d new SVIDs %s after the taint", streams, entries, d)
	} else {
		t.Logf("%d streams with %d SVIDs each after %s", streams, entries, d)
	}
	eventually(t, "the agent to have a new SVID, too", func() bool { return m.serial(t) != agentSerial })
	eventually(t, "the agent to be connected", func() bool { return m.connected(t) })

	if _, err := local.RevokeX509Authority(t.Context(), &localauthorityv1.RevokeX509AuthorityRequest{AuthorityId: old}); err != nil {
		t.Fatal(err)
	}
	for i, w := range watchers {
		x := w.next(t)
		if has(x, old) || signer(t, x) != id {
			t.Errorf("stream %d after revoke: %v", i, x)
		}
		roots := x509.NewCertPool()
		for _, a := range x.Bundles.Bundles()[0].X509Authorities() {
			roots.AddCert(a)
		}
		if _, err := x.SVIDs[0].Certificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
			t.Errorf("stream %d: %v", i, err)
		}
	}
	if !m.connected(t) {
		t.Error("the agent is not connected after the revocation")
	}

	first := token()
	if token() != first {
		t.Error("a token was not kept")
	}
	state, err := local.GetJWTAuthorityState(t.Context(), &localauthorityv1.GetJWTAuthorityStateRequest{})
	if err != nil {
		t.Fatal(err)
	}
	next, err := local.PrepareJWTAuthority(t.Context(), &localauthorityv1.PrepareJWTAuthorityRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := local.ActivateJWTAuthority(t.Context(), &localauthorityv1.ActivateJWTAuthorityRequest{AuthorityId: next.PreparedAuthority.AuthorityId}); err != nil {
		t.Fatal(err)
	}
	if token() != first {
		t.Error("a token by an authority that is old and not tainted was dropped")
	}
	if _, err := local.TaintJWTAuthority(t.Context(), &localauthorityv1.TaintJWTAuthorityRequest{AuthorityId: state.Active.AuthorityId}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the token of the tainted authority to go", func() bool { return token() != first })
}
