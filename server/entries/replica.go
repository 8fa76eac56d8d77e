// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// record is one stored entry; neither it nor its entry changes.
type record struct {
	key      string
	revision int64 // of the store
	entry    *selectors.Entry
}

type recordSet map[*record]struct{}

// replica is all entries as of one revision of the store. The registry's lock guards it.
type replica struct {
	revision   int64
	byKey      map[string]*record
	byID       map[string]*record
	byParent   map[spiffeid.ID]recordSet
	bySPIFFEID map[spiffeid.ID]recordSet
	ordered    []*record // by key: creation order
}

func newReplica() *replica {
	return &replica{
		byKey:      map[string]*record{},
		byID:       map[string]*record{},
		byParent:   map[spiffeid.ID]recordSet{},
		bySPIFFEID: map[spiffeid.ID]recordSet{},
	}
}

func compareKey(rec *record, key string) int { return strings.Compare(rec.key, key) }

// put adds a record whose key is not in the replica.
func (r *replica) put(rec *record) {
	r.byKey[rec.key], r.byID[rec.entry.ID] = rec, rec
	add(r.byParent, rec.entry.ParentID, rec)
	add(r.bySPIFFEID, rec.entry.SPIFFEID, rec)
	at, _ := slices.BinarySearchFunc(r.ordered, rec.key, compareKey)
	r.ordered = slices.Insert(r.ordered, at, rec)
}

func (r *replica) remove(rec *record) {
	delete(r.byKey, rec.key)
	delete(r.byID, rec.entry.ID)
	drop(r.byParent, rec.entry.ParentID, rec)
	drop(r.bySPIFFEID, rec.entry.SPIFFEID, rec)
	if at, ok := slices.BinarySearchFunc(r.ordered, rec.key, compareKey); ok {
		r.ordered = slices.Delete(r.ordered, at, at+1)
	}
}

// similar returns the oldest entry with the same identity, parent and set of selectors.
func (r *replica) similar(e *selectors.Entry) *selectors.Entry {
	among := r.bySPIFFEID[e.SPIFFEID]
	if below := r.byParent[e.ParentID]; len(below) < len(among) {
		among = below
	}
	set := e.SelectorSet()
	var oldest *record
	for rec := range among {
		if sameKind(rec.entry, e, set) && (oldest == nil || rec.key < oldest.key) {
			oldest = rec
		}
	}
	if oldest == nil {
		return nil
	}
	return oldest.entry
}

// sameKind reports whether two entries are similar; set is b's.
func sameKind(a, b *selectors.Entry, set selectors.Set) bool {
	return a.SPIFFEID == b.SPIFFEID && a.ParentID == b.ParentID && a.SelectorSet().Equal(set)
}

func add(m map[spiffeid.ID]recordSet, id spiffeid.ID, rec *record) {
	if m[id] == nil {
		m[id] = recordSet{}
	}
	m[id][rec] = struct{}{}
}

func drop(m map[spiffeid.ID]recordSet, id spiffeid.ID, rec *record) {
	delete(m[id], rec)
	if len(m[id]) == 0 {
		delete(m, id)
	}
}

func (s recordSet) inOrder() []*selectors.Entry {
	recs := make([]*record, 0, len(s))
	for rec := range s {
		recs = append(recs, rec)
	}
	slices.SortFunc(recs, func(a, b *record) int { return strings.Compare(a.key, b.key) })
	out := make([]*selectors.Entry, len(recs))
	for i, rec := range recs {
		out[i] = rec.entry
	}
	return out
}
