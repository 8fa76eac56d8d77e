// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	mrand "math/rand/v2"
	"net/url"
	"slices"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/tests/soak/fleet"
)

// churner changes entries of its own, one call at a time.
type churner struct {
	w    *world
	n    int
	own  []string // ids that exist, by all that was acknowledged
	made int
}

const mostEntries = 150 // of one churner

func (c *churner) run(ctx context.Context) {
	for ctx.Err() == nil {
		c.w.quiet.RLock()
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		c.step(call, entryv1.NewEntryClient(c.w.anyServer().Admin))
		cancel()
		c.w.quiet.RUnlock()
		pause(ctx, time.Duration(5+mrand.IntN(40))*time.Millisecond)
	}
}

func (c *churner) step(ctx context.Context, client entryv1.EntryClient) {
	switch p := mrand.IntN(10); {
	case len(c.own) == 0 || p < 5 && len(c.own) < mostEntries:
		c.create(ctx, client)
	case p < 8:
		c.update(ctx, client)
	default:
		c.remove(ctx, client)
	}
}

func (c *churner) create(ctx context.Context, client entryv1.EntryClient) {
	var batch []*types.Entry
	for range 1 + mrand.IntN(5) {
		c.made++
		e := c.w.randomEntry()
		e.Selectors = append(e.Selectors, &types.Selector{Type: "unix", Value: fmt.Sprintf("user:c%d-%d", c.n, c.made)}) // unlike all others
		if mrand.IntN(20) == 0 && len(c.w.cns) > 0 {
			e = &types.Entry{ParentId: id("/spire/server"), SpiffeId: id(group()), Selectors: []*types.Selector{{Type: "x509pop", Value: "subject:cn:" + c.w.cns[mrand.IntN(len(c.w.cns))]}}}
		}
		batch = append(batch, e)
	}
	resp, err := client.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: batch})
	if c.w.failed("create", err) {
		return
	}
	for _, r := range resp.Results {
		if codes.Code(r.Status.Code) == codes.AlreadyExists || c.w.refused("create", r.Status) {
			continue
		}
		c.w.count("entries created", 1)
		c.own = append(c.own, r.Entry.Id)
		c.w.entries.Store(r.Entry.Id, true)
	}
}

func (c *churner) update(ctx context.Context, client entryv1.EntryClient) {
	e := c.w.randomEntry()
	e.Id = c.own[mrand.IntN(len(c.own))]
	masks := []*types.EntryMask{{DnsNames: true}, {ParentId: true}, {FederatesWith: true}, {Hint: true, X509SvidTtl: true}, {SpiffeId: true}}
	resp, err := client.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}, InputMask: masks[mrand.IntN(len(masks))]})
	if !c.w.failed("update", err) && !c.w.refused("update", resp.Results[0].Status) {
		c.w.count("entries updated", 1)
	}
}

func (c *churner) remove(ctx context.Context, client entryv1.EntryClient) {
	i := mrand.IntN(len(c.own))
	gone := c.own[i]
	c.own = slices.Delete(c.own, i, i+1)
	c.w.entries.Delete(gone) // unknown until it is acknowledged
	resp, err := client.BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{gone}})
	if !c.w.failed("delete", err) && !c.w.refused("delete", resp.Results[0].Status) {
		c.w.count("entries deleted", 1)
		c.w.entries.Store(gone, false)
	}
}

// randomEntry is below an agent, a group, or another entry.
func (w *world) randomEntry() *types.Entry {
	e := &types.Entry{
		SpiffeId: id(fmt.Sprintf("/svc/%d", mrand.IntN(300))), Selectors: []*types.Selector{{Type: "unix", Value: fmt.Sprintf("uid:%d", mrand.IntN(1000))}},
		DnsNames: []string{fmt.Sprintf("n%d.example.org", mrand.IntN(1000))}, Hint: fmt.Sprint(mrand.IntN(9)), X509SvidTtl: int32(5 + mrand.IntN(20)),
	}
	switch p := mrand.IntN(10); {
	case p < 6:
		e.ParentId = w.randomAgent()
	case p < 8:
		e.ParentId = id(group())
	default:
		e.ParentId = id(fmt.Sprintf("/svc/%d", mrand.IntN(300)))
	}
	if mrand.IntN(4) == 0 {
		w.foreign.Range(func(td, _ any) bool {
			e.FederatesWith = append(e.FederatesWith, td.(string))
			return mrand.IntN(2) == 0
		})
	}
	return e
}

func (w *world) randomAgent() *types.SPIFFEID {
	a := w.agents[mrand.IntN(len(w.agents))]
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.node == nil {
		return id(group())
	}
	return a.node.ID
}

func group() string { return fmt.Sprintf("/group/%d", mrand.IntN(6)) }

func id(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: fleet.TrustDomain, Path: path}
}

// operate does to agents and federation what operators do.
func (w *world) operate(ctx context.Context) {
	for pause(ctx, time.Duration(100+mrand.IntN(400))*time.Millisecond) {
		w.quiet.RLock()
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		if mrand.IntN(2) == 0 {
			w.moderate(call)
		} else {
			w.federate(call)
		}
		cancel()
		w.quiet.RUnlock()
	}
}

// moderate bans an agent, or evicts one: it comes back.
func (w *world) moderate(ctx context.Context) {
	client, a := agentv1.NewAgentClient(w.anyServer().Admin), w.agents[mrand.IntN(len(w.agents))]
	a.mu.Lock()
	node, banned := a.node, a.banned
	a.mu.Unlock()
	switch {
	case node == nil:
	case !banned && mrand.IntN(2) == 0:
		if _, err := client.BanAgent(ctx, &agentv1.BanAgentRequest{Id: node.ID}); !w.failed("ban", err) {
			w.count("agents banned", 1)
		}
	default:
		if _, err := client.DeleteAgent(ctx, &agentv1.DeleteAgentRequest{Id: node.ID}); !w.failed("evict", err) {
			w.count("agents evicted", 1)
			if banned {
				a.mu.Lock()
				a.banned, a.node = false, nil
				a.mu.Unlock()
			}
		}
	}
}

func (w *world) federate(ctx context.Context) {
	client, td := bundlev1.NewBundleClient(w.anyServer().Admin), fmt.Sprintf("f%d.test", mrand.IntN(6))
	if mrand.IntN(3) == 0 {
		w.foreign.Delete(td)
		resp, err := client.BatchDeleteFederatedBundle(ctx, &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{td}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE})
		if !w.failed("delete bundle", err) && resp.Results[0].Status.Code == 0 {
			w.count("federated bundles deleted", 1)
		}
		return
	}
	_, root, err := authority(td)
	if err != nil {
		w.violation("%v", err)
		return
	}
	w.sequence++
	resp, err := client.BatchSetFederatedBundle(ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{{
		TrustDomain: td, X509Authorities: []*types.X509Certificate{{Asn1: root.Raw}}, SequenceNumber: w.sequence, RefreshHint: int64(60 + mrand.IntN(60)),
	}}})
	if !w.failed("set bundle", err) && !w.refused("set bundle", resp.Results[0].Status) {
		w.count("federated bundles set", 1)
		w.foreign.Store(td, true)
	}
}

// failed counts an error of a call; it may have been done all the same.
func (w *world) failed(what string, err error) bool {
	if err == nil {
		return false
	}
	switch c := status.Code(err); c {
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.NotFound:
		w.count(fmt.Sprintf("calls: %s: %s", what, c), 1)
	default:
		w.violation("%s: %v", what, err)
	}
	return true
}

// refused counts a result that is an error. An entry may name a bundle that was deleted just now, and a store may be away.
func (w *world) refused(what string, s *types.Status) bool {
	c := codes.Code(s.Code)
	if c == codes.OK {
		return false
	}
	w.count(fmt.Sprintf("results: %s: %s", what, c), 1)
	if _, seen := w.said.LoadOrStore(fmt.Sprint(what, c), true); !seen {
		w.t.Logf("the first %s %s: %s", what, c, s.Message)
	}
	return true
}

// authority makes a self-signed X.509 authority for a trust domain, or a PKI for x509pop.
func authority(name string) (*tls.Certificate, *x509.Certificate, error) {
	return certify(&x509.Certificate{
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, Subject: pkix.Name{CommonName: name}, URIs: []*url.URL{{Scheme: "spiffe", Host: name}},
	}, nil)
}

func certify(template *x509.Certificate, by *tls.Certificate) (*tls.Certificate, *x509.Certificate, error) {
	key, err := fleet.NewKey()
	if err != nil {
		return nil, nil, err
	}
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(mrand.Int64()), time.Now().Add(-time.Minute), time.Now().Add(24*time.Hour)
	if by == nil {
		by = &tls.Certificate{PrivateKey: key, Leaf: template}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, by.Leaf, key.Public(), by.PrivateKey)
	if err != nil {
		return nil, nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: cert}, cert, err
}
