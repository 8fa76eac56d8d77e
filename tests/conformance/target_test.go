// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// patience is how long a change may take until a workload sees it: agents that poll do so every few seconds.
const patience = time.Minute

// A target is the Workload API under test and, if there is one, the server behind it.
type target struct {
	td        string // the trust domain's name
	conn      *grpc.ClientConn
	api       pb.SpiffeWorkloadAPIClient
	server    *grpc.ClientConn // nil without -server
	parent    *types.SPIFFEID
	selectors []*types.Selector
	far       *far
	wit       bool     // it serves the WIT profile
	ids       []string // our identities, in the order of the Workload API
	undo      []func()
}

var (
	withServer   = need{func() bool { return at.server != nil }, "needs -server"}
	withTwo      = need{func() bool { return len(at.ids) > 1 }, "needs two identities"}
	withWIT      = need{func() bool { return at.wit }, "the WIT profile, which is optional, is not served"}
	withEndpoint = need{func() bool { return *endpointFlag != "" }, "needs -bundle-endpoint"}
	withSPIFFE   = need{func() bool { return *profileFlag != "" }, "the endpoint's profile is not https_spiffe"}
	withBroker   = need{func() bool { return *brokerFlag != "" }, "needs -broker"}
	withSDS      = need{func() bool { return *sdsFlag }, "needs -sds"}
	withRoot     = need{func() bool { return os.Geteuid() == 0 }, "needs root, to be another user"}
)

// header is the metadata that every request carries.
func header(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
}

func dial(address string) (*grpc.ClientConn, error) {
	target := strings.Replace(address, "unix://", "unix:", 1)
	return grpc.NewClient(strings.TrimPrefix(target, "tcp://"), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
}

// open connects, and with a server prepares three identities of ours and the far trust domain.
func open(ctx context.Context) (*target, error) {
	a := &target{}
	var err error
	if a.conn, err = dial(*socketFlag); err != nil {
		return nil, err
	}
	a.api = pb.NewSpiffeWorkloadAPIClient(a.conn)
	if *serverFlag != "" {
		if err := a.prepare(ctx); err != nil {
			a.close()
			return nil, fmt.Errorf("prepare the server at %s: %w", *serverFlag, err)
		}
	}
	if err := a.arrive(ctx); err != nil {
		a.close()
		return nil, err
	}
	st, err := a.api.FetchWITSVID(header(ctx), &pb.WITSVIDRequest{})
	if err == nil {
		_, err = st.Recv()
	}
	a.wit = status.Code(err) != codes.Unimplemented
	return a, nil
}

// prepare makes the entries.
func (a *target) prepare(ctx context.Context) error {
	var err error
	if a.server, err = dial("unix://" + *serverFlag); err != nil {
		return err
	}
	if err := a.place(ctx); err != nil {
		return err
	}
	if a.far, err = newFar("far.test"); err != nil {
		return err
	}
	if err := a.setBundle(ctx, a.far.bundle()); err != nil {
		return err
	}
	a.undo = append(a.undo, func() { a.deleteBundle("far.test") })
	for _, e := range []*types.Entry{
		{SpiffeId: a.id("/conformance/one"), Hint: "internal", DnsNames: []string{"one.example.org", "www.one.example.org"}, FederatesWith: []string{"far.test"}},
		{SpiffeId: a.id("/conformance/two")},
		{SpiffeId: a.id("/conformance/three"), Hint: "external"},
	} {
		id, err := a.create(ctx, e)
		if err != nil {
			return err
		}
		a.undo = append(a.undo, func() { a.delete(id) })
		a.ids = append(a.ids, "spiffe://"+a.td+e.SpiffeId.Path)
	}
	return nil
}

// place finds the trust domain, the agent and the selectors that we have.
func (a *target) place(ctx context.Context) error {
	b, err := bundlev1.NewBundleClient(a.server).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return err
	}
	a.td = b.TrustDomain
	node := *nodeFlag
	if node == "" {
		list, err := agentv1.NewAgentClient(a.server).ListAgents(ctx, &agentv1.ListAgentsRequest{})
		if err != nil {
			return err
		}
		if len(list.Agents) != 1 {
			return fmt.Errorf("the server has %d agents: name ours with -node", len(list.Agents))
		}
		node = "spiffe://" + list.Agents[0].Id.TrustDomain + list.Agents[0].Id.Path
	}
	path, ok := strings.CutPrefix(node, "spiffe://"+a.td)
	if !ok {
		return fmt.Errorf("-node %s is not of trust domain %s", node, a.td)
	}
	a.parent = &types.SPIFFEID{TrustDomain: a.td, Path: path}
	text := *selectorsFlag
	if text == "" {
		text = fmt.Sprintf("unix:uid:%d", os.Geteuid())
	}
	a.selectors = readSelectors(text)
	return nil
}

func readSelectors(text string) (list []*types.Selector) {
	for _, s := range strings.Fields(text) {
		kind, value, _ := strings.Cut(s, ":")
		list = append(list, &types.Selector{Type: kind, Value: value})
	}
	return list
}

// arrive waits until the Workload API gives us our identities.
func (a *target) arrive(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	var last error
	for {
		st, err := a.api.FetchX509SVID(header(ctx), &pb.X509SVIDRequest{})
		var m *pb.X509SVIDResponse
		if err == nil {
			m, err = st.Recv()
		}
		if last = err; err == nil && len(m.Svids) >= max(1, len(a.ids)) && (a.far == nil || len(m.FederatedBundles) == 1) {
			got := idsOf(m.Svids)
			if a.ids != nil && !sameSet(got, a.ids) {
				return fmt.Errorf("this process has the identities %q, want %q: it must have no others", got, a.ids)
			}
			a.ids = got
			if a.td == "" {
				a.td, _, _ = strings.Cut(strings.TrimPrefix(a.ids[0], "spiffe://"), "/")
			}
			if *domainFlag != "" && a.td != *domainFlag {
				return fmt.Errorf("the trust domain is %s, not %s", a.td, *domainFlag)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s gives this process (%s, uid %d) no identity: %w", *socketFlag, os.Args[0], os.Geteuid(), errors.Join(last, ctx.Err()))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (a *target) close() {
	for i := len(a.undo) - 1; i >= 0; i-- {
		a.undo[i]()
	}
	a.conn.Close()
	if a.server != nil {
		a.server.Close()
	}
}

func (a *target) id(path string) *types.SPIFFEID {
	return &types.SPIFFEID{TrustDomain: a.td, Path: path}
}

// create makes an entry, for us if it has no selectors.
func (a *target) create(ctx context.Context, e *types.Entry) (string, error) {
	if e.ParentId == nil {
		e.ParentId = a.parent
	}
	if e.Selectors == nil {
		e.Selectors = a.selectors
	}
	r, err := entryv1.NewEntryClient(a.server).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	if err != nil {
		return "", err
	}
	if err := statusError(r.Results[0].Status); err != nil {
		return "", err
	}
	return r.Results[0].Entry.Id, nil
}

func (a *target) delete(entry string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, _ = entryv1.NewEntryClient(a.server).BatchDeleteEntry(ctx, &entryv1.BatchDeleteEntryRequest{Ids: []string{entry}})
}

func (a *target) setBundle(ctx context.Context, b *types.Bundle) error {
	r, err := bundlev1.NewBundleClient(a.server).BatchSetFederatedBundle(ctx, &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{b}})
	if err == nil {
		err = statusError(r.Results[0].Status)
	}
	return err
}

func (a *target) deleteBundle(td string) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	_, _ = bundlev1.NewBundleClient(a.server).BatchDeleteFederatedBundle(ctx,
		&bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{td}, Mode: bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE})
}

// statusError is that of one item of a batch.
func statusError(s *types.Status) error { return status.Error(codes.Code(s.Code), s.Message) }
