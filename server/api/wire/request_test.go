// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"encoding/json"
	"strings"
	"testing"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// TestShown: what a policy sees of a request, and what it does not.
func TestShown(t *testing.T) {
	for want, m := range map[string]proto.Message{
		`{"entries":[{"admin":true,"selectors":[{"type":"unix","value":"uid:1"}],"spiffe_id":{"path":"/w","trust_domain":"example.org"},"x509_svid_ttl":60}]}`: &entryv1.BatchCreateEntryRequest{
			Entries: []*types.Entry{{SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/w"}, Admin: true, X509SvidTtl: 60, Selectors: []*types.Selector{{Type: "unix", Value: "uid:1"}}}},
		},
		`{"agent_id":{"path":"/a"},"ttl":60}`: &agentv1.CreateJoinTokenRequest{Ttl: 60, Token: "secret", AgentId: &types.SPIFFEID{Path: "/a"}},
		`{"bundle":[{"jwt_authorities":[{"key_id":"k"}],"trust_domain":"other.org","x509_authorities":[{}]}]}`: &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{{
			TrustDomain: "other.org", X509Authorities: []*types.X509Certificate{{Asn1: []byte("secret")}}, JwtAuthorities: []*types.JWTKey{{KeyId: "k", PublicKey: []byte("secret")}},
		}}},
		`{"mode":"DISSOCIATE","trust_domains":["a.org"]}`: &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{"a.org"}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE},
		`{"filter":{"by_banned":{"value":true}}}`:         &agentv1.ListAgentsRequest{Filter: &agentv1.ListAgentsRequest_Filter{ByBanned: wrapperspb.Bool(true)}},
		`{}`: &agentv1.CountAgentsRequest{},
	} {
		shown, err := Shown(m)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := json.Marshal(shown); err != nil || string(got) != want {
			t.Errorf("%T: %s, %v; want %s", m, got, err, want)
		}
	}
	_, err := Shown(&agentv1.BanAgentRequest{Id: &types.SPIFFEID{Path: strings.Repeat("a", maxShown)}})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a request that is too large: %v", err)
	}
}
