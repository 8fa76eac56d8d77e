// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"slices"
	"strings"
	"unique"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// record is one stored entry; neither it nor its entry changes.
type record struct {
	key      string
	revision int64 // of the store
	entry    *selectors.Entry
}

// records are in no order; a slice because most are short and a million maps are not.
type records []*record

// replica is all entries as of one revision of the store. The registry's lock guards it.
type replica struct {
	revision   int64
	byID       map[string]*record
	byParent   map[spiffeid.ID]records
	bySPIFFEID map[spiffeid.ID]records
	ordered    []*record // by key: creation order
}

func newReplica() *replica {
	return &replica{
		byID:       map[string]*record{},
		byParent:   map[spiffeid.ID]records{},
		bySPIFFEID: map[spiffeid.ID]records{},
	}
}

// find returns where the key is, or would be, in the order.
func (r *replica) find(key string) (at int, found bool) {
	return slices.BinarySearchFunc(r.ordered, key, func(rec *record, key string) int { return strings.Compare(rec.key, key) })
}

// byKey returns the record with the key, or nil.
func (r *replica) byKey(key string) *record {
	if at, ok := r.find(key); ok {
		return r.ordered[at]
	}
	return nil
}

// put adds a record whose key is not in the replica.
func (r *replica) put(rec *record) {
	r.byID[rec.entry.ID] = rec
	r.byParent[rec.entry.ParentID] = append(r.byParent[rec.entry.ParentID], rec)
	r.bySPIFFEID[rec.entry.SPIFFEID] = append(r.bySPIFFEID[rec.entry.SPIFFEID], rec)
	at, _ := r.find(rec.key)
	r.ordered = slices.Insert(r.ordered, at, rec)
}

func (r *replica) remove(rec *record) {
	delete(r.byID, rec.entry.ID)
	drop(r.byParent, rec.entry.ParentID, rec)
	drop(r.bySPIFFEID, rec.entry.SPIFFEID, rec)
	if at, ok := r.find(rec.key); ok {
		r.ordered = slices.Delete(r.ordered, at, at+1)
	}
}

// intern makes an entry that was just read share its texts with those that are there: few
// parents, SPIFFE IDs and selectors are unlike all others.
func (r *replica) intern(e *selectors.Entry) {
	if same := r.byParent[e.ParentID]; len(same) > 0 {
		e.ParentID = same[0].entry.ParentID
	}
	if same := r.bySPIFFEID[e.SPIFFEID]; len(same) > 0 {
		e.SPIFFEID = same[0].entry.SPIFFEID
	}
	for i, s := range e.Selectors {
		e.Selectors[i] = selectors.Selector{Type: unique.Make(s.Type).Value(), Value: unique.Make(s.Value).Value()}
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
	for _, rec := range among {
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

func drop(m map[spiffeid.ID]records, id spiffeid.ID, rec *record) {
	rest := slices.DeleteFunc(m[id], func(o *record) bool { return o == rec })
	if len(rest) == 0 {
		delete(m, id)
	} else {
		m[id] = rest
	}
}

// inOrder returns the entries in creation order; it does not change s.
func (s records) inOrder() []*selectors.Entry {
	sorted := slices.SortedFunc(slices.Values(s), func(a, b *record) int { return strings.Compare(a.key, b.key) })
	out := make([]*selectors.Entry, len(sorted))
	for i, rec := range sorted {
		out[i] = rec.entry
	}
	return out
}
