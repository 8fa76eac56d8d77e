// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Entry is a registration entry (spire.api.types.Entry): who may hold SPIFFEID.
// Entries are values of the store and are never changed in place once shared.
type Entry struct {
	// ID is unique in the trust domain. Ours are UUIDv7; a caller may choose another.
	ID string `json:"id"`
	// SPIFFEID is the identity that matching workloads receive.
	SPIFFEID spiffeid.ID `json:"spiffe_id"`
	// ParentID is the agent (or alias) whose workloads this entry is about.
	ParentID spiffeid.ID `json:"parent_id"`
	// Selectors that a workload must all have, in the operator's order without duplicates
	// removed; use SelectorSet to match.
	Selectors []Selector `json:"selectors"`
	// X509SVIDTTL and JWTSVIDTTL; zero means the server's default.
	X509SVIDTTL time.Duration `json:"x509_svid_ttl,omitempty"`
	JWTSVIDTTL  time.Duration `json:"jwt_svid_ttl,omitempty"`
	// FederatesWith names trust domains whose bundles the workload gets.
	FederatesWith []string `json:"federates_with,omitempty"`
	// Admin and Downstream grant server APIs to holders of SPIFFEID.
	Admin      bool `json:"admin,omitempty"`
	Downstream bool `json:"downstream,omitempty"`
	StoreSVID  bool `json:"store_svid,omitempty"`
	// DNSNames are put into X.509-SVIDs in order; the first one becomes the common name.
	DNSNames []string `json:"dns_names,omitempty"`
	// Hint tells a workload with several SVIDs what this one is for.
	Hint string `json:"hint,omitempty"`
	// ExpiresAt is when the entry stops to count; zero is never.
	ExpiresAt time.Time `json:"expires_at,omitzero"`
	// CreatedAt has a resolution of one second.
	CreatedAt time.Time `json:"created_at"`
	// Revision starts at 0 and rises by one with each update.
	Revision int64 `json:"revision"`
	// Attributes are the optional spire.api.types.Entry.AdditionalAttributes; nil is unset.
	Attributes *EntryAttributes `json:"attributes,omitempty"`
	// Options are what Assay adds to SPIRE's entries.
	Options EntryOptions `json:"options,omitzero"`
}

// EntryAttributes mirrors spire.api.types.Entry.AdditionalAttributes.
type EntryAttributes struct {
	DisableX509SVIDPrefetch bool `json:"disable_x509_svid_prefetch,omitempty"`
	JWTSVIDIncludeJTI       bool `json:"jwt_svid_include_jti,omitempty"`
}

// SelectorSet returns the canonical set of the entry's selectors.
func (e *Entry) SelectorSet() Set { return NewSet(e.Selectors...) }

// Expired reports whether the entry no longer counts at the given time.
func (e *Entry) Expired(now time.Time) bool {
	return !e.ExpiresAt.IsZero() && !now.Before(e.ExpiresAt)
}
