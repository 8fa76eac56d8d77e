// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/nodes"
)

// agentFilter is what the two generated filter messages have in common.
type agentFilter interface {
	GetByAttestationType() string
	GetBySelectorMatch() *types.SelectorMatch
	GetByBanned() *wrapperspb.BoolValue
	GetByCanReattest() *wrapperspb.BoolValue
	GetByExpiresBefore() string
}

// ReadAgentFilter reads which agents are meant.
func ReadAgentFilter(p agentFilter) nodes.Filter {
	f := nodes.Filter{AttestationType: p.GetByAttestationType()}
	if b := p.GetByBanned(); b != nil {
		f.Banned = &b.Value
	}
	if b := p.GetByCanReattest(); b != nil {
		f.CanReattest = &b.Value
	}
	// SPIRE ignores a time that it can not read, and tools rely on nothing else.
	if t, err := time.Parse("2006-01-02 15:04:05 -0700 -07", p.GetByExpiresBefore()); err == nil {
		f.ExpiresBefore = t
	}
	if m := p.GetBySelectorMatch(); m != nil {
		f.Selectors = &nodes.SelectorMatch{Set: selectors.NewSet(readSelectors(m.Selectors)...), Match: nodes.Match(m.Match)}
	}
	return f
}

// entryFilter is what the two generated filter messages have in common.
type entryFilter interface {
	GetBySpiffeId() *types.SPIFFEID
	GetByParentId() *types.SPIFFEID
	GetBySelectors() *types.SelectorMatch
	GetByFederatesWith() *types.FederatesWithMatch
	GetByHint() *wrapperspb.StringValue
	GetByDownstream() *wrapperspb.BoolValue
}

// ReadEntryFilter reads which entries are meant.
func ReadEntryFilter(td spiffeid.TrustDomain, p entryFilter) (entries.Filter, error) {
	// by_downstream = false is no filter: spire-server's CLI always sends it.
	f := entries.Filter{Hint: p.GetByHint().GetValue(), Downstream: p.GetByDownstream().GetValue()}
	var err error
	if id := p.GetBySpiffeId(); id != nil {
		if f.SPIFFEID, err = ReadWorkloadID(td, id); err != nil {
			return f, status.Errorf(codes.InvalidArgument, "malformed SPIFFE ID filter: %v", err)
		}
	}
	if id := p.GetByParentId(); id != nil {
		f.ParentID, err = readID(id)
		if err == nil && f.ParentID.TrustDomain() != td {
			err = fmt.Errorf("%q is not a member of trust domain %q", f.ParentID, td.Name())
		}
		if err != nil {
			return f, status.Errorf(codes.InvalidArgument, "malformed parent ID filter: %v", err)
		}
	}
	if m := p.GetBySelectors(); m != nil {
		f.Selectors, f.SelectorMatch = selectors.NewSet(readSelectors(m.Selectors)...), entries.Match(m.Match)
		if len(f.Selectors) == 0 {
			return f, status.Error(codes.InvalidArgument, "malformed selectors filter: empty selector set")
		}
		for _, sel := range f.Selectors {
			if err := sel.Validate(); err != nil {
				return f, status.Errorf(codes.InvalidArgument, "malformed selectors filter: %v", err)
			}
		}
	}
	if m := p.GetByFederatesWith(); m != nil {
		f.FederateMatch = entries.Match(m.Match)
		if len(m.TrustDomains) == 0 {
			return f, status.Error(codes.InvalidArgument, "malformed federates with filter: empty trust domain set")
		}
		for _, name := range m.TrustDomains {
			td, err := spiffeid.TrustDomainFromString(name)
			if err != nil {
				return f, status.Errorf(codes.InvalidArgument, "malformed federates with filter: %v", err)
			}
			f.FederatesWith = append(f.FederatesWith, td.Name())
		}
	}
	return f, nil
}
