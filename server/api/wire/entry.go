// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"fmt"
	"math"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	entrypb "github.com/assay-id/assay/proto/entry"
	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries"
)

// allFields is what a nil mask means.
var allFields = &types.EntryMask{
	SpiffeId: true, ParentId: true, Selectors: true, X509SvidTtl: true, FederatesWith: true, Admin: true,
	Downstream: true, ExpiresAt: true, DnsNames: true, RevisionNumber: true, StoreSvid: true, JwtSvidTtl: true,
	Hint: true, CreatedAt: true, AdditionalAttributes: true,
}

func entryMask(m *types.EntryMask) *types.EntryMask {
	if m == nil {
		return allFields
	}
	return m
}

// SetEntry writes the masked fields of the message into e, all without a mask. The ID, the revision and the time
// of creation are not a caller's to set.
func SetEntry(e *selectors.Entry, p *types.Entry, mask *types.EntryMask) error {
	m := entryMask(mask)
	if m.ParentId {
		id, err := readID(p.ParentId)
		if err != nil {
			return &entries.InvalidError{Reason: fmt.Sprintf("invalid parent ID: %v", err)}
		}
		e.ParentID = id
	}
	if m.SpiffeId {
		id, err := readID(p.SpiffeId)
		if err != nil {
			return &entries.InvalidError{Reason: fmt.Sprintf("invalid spiffe ID: %v", err)}
		}
		e.SPIFFEID = id
	}
	if m.FederatesWith {
		e.FederatesWith = nil
		for _, name := range p.FederatesWith {
			td, err := spiffeid.TrustDomainFromString(name)
			if err != nil {
				return &entries.InvalidError{Reason: fmt.Sprintf("invalid federated trust domain: %v", err)}
			}
			e.FederatesWith = append(e.FederatesWith, td.Name())
		}
	}
	set(m.Selectors, &e.Selectors, readSelectors(p.Selectors))
	set(m.X509SvidTtl, &e.X509SVIDTTL, time.Duration(p.X509SvidTtl)*time.Second)
	set(m.JwtSvidTtl, &e.JWTSVIDTTL, time.Duration(p.JwtSvidTtl)*time.Second)
	set(m.Admin, &e.Admin, p.Admin)
	set(m.Downstream, &e.Downstream, p.Downstream)
	set(m.StoreSvid, &e.StoreSVID, p.StoreSvid)
	set(m.DnsNames, &e.DNSNames, p.DnsNames)
	set(m.Hint, &e.Hint, p.Hint)
	set(m.ExpiresAt, &e.ExpiresAt, unixTime(p.ExpiresAt))
	if m.AdditionalAttributes {
		if err := setOptions(e, p); err != nil {
			return err
		}
		e.Attributes = nil
		if a := p.AdditionalAttributes; a != nil {
			e.Attributes = &selectors.EntryAttributes{DisableX509SVIDPrefetch: a.DisableX509SvidPrefetch, JWTSVIDIncludeJTI: a.JwtSvidIncludeJti}
		}
	}
	if err := e.Validate(); err != nil {
		return &entries.InvalidError{Reason: err.Error()}
	}
	return nil
}

// setOptions: SPIRE's clients say nothing of them, and change nothing.
func setOptions(e *selectors.Entry, p *types.Entry) error {
	o, err := entrypb.Get(p)
	if err != nil {
		return &entries.InvalidError{Reason: err.Error()}
	}
	if o != nil {
		kind := selectors.KeyType(min(uint32(o.KeyType), math.MaxUint8))
		e.Options = selectors.EntryOptions{PerProcess: o.PerProcess, Prefetch: o.Prefetch, KeyType: kind, Grace: time.Duration(o.Grace) * time.Second}
	}
	return nil
}

func set[T any](masked bool, to *T, value T) {
	if masked {
		*to = value
	}
}

// Entry returns the masked fields; the id is always there.
func Entry(e *selectors.Entry, mask *types.EntryMask) *types.Entry {
	m := entryMask(mask)
	p := &types.Entry{Id: e.ID}
	if m.SpiffeId {
		p.SpiffeId = ID(e.SPIFFEID)
	}
	if m.ParentId {
		p.ParentId = ID(e.ParentID)
	}
	if m.Selectors {
		p.Selectors = selectorsOf(e.Selectors)
	}
	set(m.X509SvidTtl, &p.X509SvidTtl, int32(e.X509SVIDTTL/time.Second))
	set(m.JwtSvidTtl, &p.JwtSvidTtl, int32(e.JWTSVIDTTL/time.Second))
	set(m.FederatesWith, &p.FederatesWith, e.FederatesWith)
	set(m.Admin, &p.Admin, e.Admin)
	set(m.Downstream, &p.Downstream, e.Downstream)
	set(m.StoreSvid, &p.StoreSvid, e.StoreSVID)
	set(m.DnsNames, &p.DnsNames, e.DNSNames)
	set(m.Hint, &p.Hint, e.Hint)
	set(m.ExpiresAt, &p.ExpiresAt, unixSeconds(e.ExpiresAt))
	set(m.RevisionNumber, &p.RevisionNumber, e.Revision)
	set(m.CreatedAt, &p.CreatedAt, unixSeconds(e.CreatedAt))
	if a := e.Attributes; m.AdditionalAttributes && a != nil {
		p.AdditionalAttributes = &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: a.DisableX509SVIDPrefetch, JwtSvidIncludeJti: a.JWTSVIDIncludeJTI}
	}
	if o := e.Options; m.AdditionalAttributes && o != (selectors.EntryOptions{}) {
		// The message is new: it has no other fields that could be malformed.
		_ = entrypb.Set(p, &entrypb.Options{PerProcess: o.PerProcess, Prefetch: o.Prefetch, KeyType: entrypb.KeyType(o.KeyType), Grace: uint32(o.Grace / time.Second)})
	}
	return p
}

// Entries returns the masked fields of each.
func Entries(es []*selectors.Entry, mask *types.EntryMask) []*types.Entry {
	out := make([]*types.Entry, 0, len(es))
	for _, e := range es {
		out = append(out, Entry(e, mask))
	}
	return out
}

// Revision names the entry and its revision.
func Revision(e *selectors.Entry) *entryv1.EntryRevision {
	return &entryv1.EntryRevision{Id: e.ID, RevisionNumber: e.Revision, CreatedAt: unixSeconds(e.CreatedAt)}
}

// Delta returns what an agent's feed pushes, with whole entries.
func Delta(d entries.Delta) *nodev1.WatchResponse {
	return &nodev1.WatchResponse{Full: d.Full, Entries: Entries(d.Put, nil), Removed: d.Removed, Revision: d.Revision, State: d.State}
}
