// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"
)

// truth is what a server tells operators.
type truth struct {
	entries map[string]*types.Entry
	nodes   map[string]*types.Agent // by path
	bundle  *types.Bundle
	foreign map[string]*types.Bundle
}

func ask(ctx context.Context, admin *grpc.ClientConn) (*truth, error) {
	t := &truth{entries: map[string]*types.Entry{}, nodes: map[string]*types.Agent{}, foreign: map[string]*types.Bundle{}}
	for token := ""; ; {
		page, err := entryv1.NewEntryClient(admin).ListEntries(ctx, &entryv1.ListEntriesRequest{PageSize: 100, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, e := range page.Entries {
			t.entries[e.Id] = e
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	for token := ""; ; {
		page, err := agentv1.NewAgentClient(admin).ListAgents(ctx, &agentv1.ListAgentsRequest{PageSize: 100, PageToken: token})
		if err != nil {
			return nil, err
		}
		for _, n := range page.Agents {
			t.nodes[n.Id.Path] = n
		}
		if token = page.NextPageToken; token == "" {
			break
		}
	}
	federated, err := bundlev1.NewBundleClient(admin).ListFederatedBundles(ctx, &bundlev1.ListFederatedBundlesRequest{})
	if err != nil {
		return nil, err
	}
	for _, b := range federated.Bundles {
		t.foreign[b.TrustDomain] = b
	}
	t.bundle, err = bundlev1.NewBundleClient(admin).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	return t, err
}

// view is what an agent should have, derived from the lists by the words of SPIRE's documentation and
// nothing else: an entry is an agent's if its parent is the agent, a node alias whose selectors the
// agent's node has, or the SPIFFE ID of an entry that is the agent's. Slow, and plainly so.
func (t *truth) view(node *types.Agent) view {
	is := map[string]bool{node.Id.Path: true} // the identities that the agent speaks for
	for _, e := range t.entries {
		if e.ParentId.Path == "/spire/server" && len(e.Selectors) > 0 && !slices.ContainsFunc(e.Selectors, func(s *types.Selector) bool { return !has(node, s) }) {
			is[e.SpiffeId.Path] = true
		}
	}
	v := view{entries: map[string]*types.Entry{}, bundle: t.bundle, foreign: map[string]*types.Bundle{}}
	for grown := true; grown; {
		grown = false
		for id, e := range t.entries {
			if v.entries[id] == nil && is[e.ParentId.Path] && e.ParentId.Path != "/spire/server" {
				v.entries[id], is[e.SpiffeId.Path], grown = e, true, true
			}
		}
	}
	for _, e := range v.entries {
		for _, td := range e.FederatesWith {
			if b := t.foreign[td]; b != nil {
				v.foreign[td] = b
			}
		}
	}
	return v
}

func has(node *types.Agent, s *types.Selector) bool {
	return slices.ContainsFunc(node.Selectors, func(n *types.Selector) bool { return n.Type == s.Type && n.Value == s.Value })
}

// differences between what should be and what is, in words.
func (should view) differences(is view) (all []string) {
	all = append(all, diff("entry", should.entries, is.entries, func(x, y *types.Entry) bool { return proto.Equal(x, y) })...)
	all = append(all, diff("bundle of", should.foreign, is.foreign, sameBundle)...)
	if !sameBundle(should.bundle, is.bundle) {
		all = append(all, fmt.Sprintf("the trust bundle is %d, not %d", is.bundle.GetSequenceNumber(), should.bundle.SequenceNumber))
	}
	return all
}

func diff[V any](what string, should, is map[string]V, same func(V, V) bool) (all []string) {
	for _, k := range slices.Sorted(maps.Keys(should)) {
		if v, ok := is[k]; !ok {
			all = append(all, fmt.Sprintf("%s %s is missing", what, k))
		} else if !same(should[k], v) {
			all = append(all, fmt.Sprintf("%s %s is {%v}, not {%v}", what, k, v, should[k]))
		}
	}
	for _, k := range slices.Sorted(maps.Keys(is)) {
		if _, ok := should[k]; !ok {
			all = append(all, fmt.Sprintf("%s %s is too much", what, k))
		}
	}
	return all
}

// sameBundle compares as sets: no document promises an order of authorities.
func sameBundle(x, y *types.Bundle) bool {
	if x == nil || y == nil {
		return x == y
	}
	x, y = proto.Clone(x).(*types.Bundle), proto.Clone(y).(*types.Bundle)
	for _, b := range []*types.Bundle{x, y} {
		slices.SortFunc(b.X509Authorities, func(p, q *types.X509Certificate) int { return bytes.Compare(p.Asn1, q.Asn1) })
		slices.SortFunc(b.JwtAuthorities, func(p, q *types.JWTKey) int { return strings.Compare(p.KeyId, q.KeyId) })
		slices.SortFunc(b.WitAuthorities, func(p, q *types.WITKey) int { return strings.Compare(p.KeyId, q.KeyId) })
	}
	return proto.Equal(x, y)
}

// against compares two servers.
func (t *truth) against(o *truth) (all []string) {
	all = diff("entry", t.entries, o.entries, func(x, y *types.Entry) bool { return proto.Equal(x, y) })
	all = append(all, diff("node", t.nodes, o.nodes, func(x, y *types.Agent) bool { return x.Banned == y.Banned })...)
	all = append(all, diff("bundle of", t.foreign, o.foreign, sameBundle)...)
	if !sameBundle(t.bundle, o.bundle) {
		all = append(all, fmt.Sprintf("bundle %d and %d", t.bundle.SequenceNumber, o.bundle.SequenceNumber))
	}
	return all
}

// differences of an agent from the truth.
func (a *agent) differences(ctx context.Context, t *truth) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.node == nil:
		return []string{"it is not attested"}
	case t.nodes[a.node.ID.Path] == nil && !a.banned:
		return []string{"the servers do not know it"}
	case t.nodes[a.node.ID.Path].GetBanned() || a.banned:
		if a.open || !t.nodes[a.node.ID.Path].GetBanned() || !a.banned {
			return []string{"it is banned and works, or is not and rests"}
		}
		return nil
	case !a.open:
		return []string{"it has no feed"}
	}
	is := a.view
	if a.polls { // what it would be told now
		var err error
		if is.entries, err = syncEntries(ctx, a.conn); err == nil {
			is.foreign, err = fetchForeign(ctx, a.conn, is.entries)
		}
		if err == nil {
			is.bundle, err = bundlev1.NewBundleClient(a.conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		}
		if err != nil {
			return []string{err.Error()}
		}
	}
	return t.view(t.nodes[a.node.ID.Path]).differences(is)
}
