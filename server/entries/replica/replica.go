// SPDX-License-Identifier: Apache-2.0

// Package replica holds registration entries in memory, a million of them in some 200 MB, and
// answers which of them an agent may hold.
//
//	record ──┬── place: SPIFFE ID ──┐ each place chains the records with that SPIFFE ID,
//	(no      ├── place: parent    ──┘ and those whose parent it is
//	pointers)├── list of selectors ── canonical list of the same set
//	         └── rest: hint, DNS names, … as bytes
//
// Places, lists, selectors and rests are there once however many entries share them, and are gone
// with the last of these. An entry as selectors.Entry is made when it is asked for.
//
// A Replica is not safe for concurrent use with a writer.
package replica

import (
	"bytes"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"hash/maphash"
	"iter"
	"slices"
	"strings"
	"time"
	"unique"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// Key of an entry in the store. Keys ascend in the order of creation (UUIDv7).
type Key = uuid.UUID

// Number names a record until Free; 0 is none.
type Number = uint32

// What a place chains.
const (
	below = iota // the records whose parent it is
	named        // the records whose SPIFFE ID it is
	axes
)

type record struct {
	key      Key
	revision int64 // of the store
	created  int64 // Unix seconds
	version  int64 // of the entry (selectors.Entry.Revision)
	chains   [axes]struct{ next, prev uint32 }
	places   [axes]uint32
	list     uint32
	rest     uint32
}

type place struct {
	id   spiffeid.ID
	head [axes]uint32
	len  [axes]uint32
}

// Replica is a set of entries.
type Replica struct {
	td     spiffeid.TrustDomain
	server uint32 // the place that aliases are below; always there

	records pool[record]
	byKey   table
	byKind  table // by SPIFFE ID, parent and set of selectors
	custom  map[string]Number
	order   order
	len     int

	places  pool[place]
	byID    table
	lists   lists
	rests   interner[string]
	aliases aliases
}

// New returns an empty replica of a trust domain's entries.
func New(td spiffeid.TrustDomain) *Replica {
	r := &Replica{td: td, custom: map[string]Number{}, aliases: newAliases()}
	r.server = r.places.take()
	r.places.at(r.server).id = spiffeid.RequireFromPath(td, "/spire/server")
	r.byID.add(hashID(r.places.at(r.server).id), r.server)
	return r
}

// Len is the number of entries.
func (r *Replica) Len() int { return r.len }

// Put adds an entry, or replaces the one under the key, whose number stays.
func (r *Replica) Put(key Key, revision int64, e *selectors.Entry) Number {
	n := r.Find(key)
	if n == 0 {
		n = r.records.take()
		r.records.at(n).key = key
		r.byKey.add(hashKey(key), n)
		r.insert(key, n)
		r.len++
	} else {
		r.unlink(n)
		r.forgetRest(n)
	}
	rec := r.records.at(n)
	rec.revision, rec.created, rec.version = revision, e.CreatedAt.Unix(), e.Revision
	rec.places[named], rec.places[below] = r.place(e.SPIFFEID), r.place(e.ParentID)
	rec.list = r.lists.take(e.Selectors)
	if rest := appendRest(nil, key, e); len(rest) > 0 {
		rec.rest = r.rests.take(string(rest), func(s string) string { return s })
		if e.ID != key.String() {
			r.custom[e.ID] = n
		}
	}
	for axis := range rec.places {
		r.chain(axis, n)
	}
	r.byKind.add(r.kind(rec), n)
	if rec.places[below] == r.server {
		r.aliases.add(n, r.lists.members(rec.list))
	}
	return n
}

// Remove takes a record out. Until Free, its number has an ID and is given to no other.
func (r *Replica) Remove(n Number) {
	r.unlink(n)
	key := r.records.at(n).key
	r.byKey.remove(hashKey(key), n)
	r.cut(key)
	r.len--
}

// Free ends the number of a record that was removed.
func (r *Replica) Free(n Number) {
	r.forgetRest(n)
	r.records.give(n)
}

func (r *Replica) unlink(n Number) {
	rec := r.records.at(n)
	if rec.places[below] == r.server {
		r.aliases.remove(n)
	}
	r.byKind.remove(r.kind(rec), n)
	for axis := range rec.places {
		r.unchain(axis, n)
	}
	for _, p := range rec.places {
		r.leave(p)
	}
	r.lists.give(rec.list)
	if rec.rest != 0 {
		if id := r.ID(n); r.custom[id] == n {
			delete(r.custom, id)
		}
	}
}

func (r *Replica) forgetRest(n Number) {
	if rec := r.records.at(n); rec.rest != 0 {
		r.rests.give(rec.rest)
		rec.rest = 0
	}
}

func (r *Replica) kind(rec *record) uint32 {
	return hashNumbers(rec.places[named], rec.places[below], r.lists.set(rec.list))
}

func (r *Replica) chain(axis int, n Number) {
	rec := r.records.at(n)
	p := r.places.at(rec.places[axis])
	rec.chains[axis].next, rec.chains[axis].prev = p.head[axis], 0
	if p.head[axis] != 0 {
		r.records.at(p.head[axis]).chains[axis].prev = n
	}
	p.head[axis] = n
	p.len[axis]++
}

func (r *Replica) unchain(axis int, n Number) {
	rec := r.records.at(n)
	p, c := r.places.at(rec.places[axis]), rec.chains[axis]
	if c.prev == 0 {
		p.head[axis] = c.next
	} else {
		r.records.at(c.prev).chains[axis].next = c.next
	}
	if c.next != 0 {
		r.records.at(c.next).chains[axis].prev = c.prev
	}
	p.len[axis]--
}

func (r *Replica) along(axis int, p uint32) iter.Seq[Number] {
	return func(yield func(Number) bool) {
		for n := r.places.at(p).head[axis]; n != 0; n = r.records.at(n).chains[axis].next {
			if !yield(n) {
				return
			}
		}
	}
}

// findPlace returns the place of an ID, or 0, which is an empty place.
func (r *Replica) findPlace(id spiffeid.ID) uint32 {
	return r.byID.find(hashID(id), func(n uint32) bool { return r.places.at(n).id == id })
}

func (r *Replica) place(id spiffeid.ID) uint32 {
	p := r.findPlace(id)
	if p == 0 {
		p = r.places.take()
		r.places.at(p).id = id
		r.byID.add(hashID(id), p)
	}
	return p
}

// leave forgets a place that no record is at.
func (r *Replica) leave(n uint32) {
	if p := r.places.at(n); p.len == [axes]uint32{} && n != r.server && !p.id.IsZero() {
		r.byID.remove(hashID(p.id), n)
		r.places.give(n)
	}
}

// Find returns the record under the key.
func (r *Replica) Find(key Key) Number {
	return r.byKey.find(hashKey(key), func(n uint32) bool { return r.records.at(n).key == key })
}

// ByID returns the record of the entry with the id.
func (r *Replica) ByID(id string) Number {
	if n := r.custom[id]; n != 0 {
		return n
	}
	key, err := uuid.Parse(id)
	if err != nil || key.String() != id {
		return 0
	}
	if n := r.Find(key); n != 0 && r.ID(n) == id {
		return n
	}
	return 0
}

// Similar returns the oldest record with the entry's SPIFFE ID, parent and set of selectors.
func (r *Replica) Similar(e *selectors.Entry) (oldest Number) {
	name, parent, set := r.findPlace(e.SPIFFEID), r.findPlace(e.ParentID), r.lists.find(e.SelectorSet())
	if name == 0 || parent == 0 || set == 0 {
		return 0
	}
	r.byKind.find(hashNumbers(name, parent, set), func(n uint32) bool {
		rec := r.records.at(n)
		if rec.places[named] == name && rec.places[below] == parent && r.lists.set(rec.list) == set &&
			(oldest == 0 || r.compare(n, oldest) < 0) {
			oldest = n
		}
		return false
	})
	return oldest
}

func (r *Replica) compare(a, b Number) int {
	return bytes.Compare(r.records.at(a).key[:], r.records.at(b).key[:])
}

// InOrder sorts records by creation and makes their entries.
func (r *Replica) InOrder(ns []Number) []*selectors.Entry {
	slices.SortFunc(ns, r.compare)
	out := make([]*selectors.Entry, len(ns))
	for i, n := range ns {
		out[i] = r.Entry(n)
	}
	return out
}

// After yields the records whose keys are above key, in the order of creation.
func (r *Replica) After(key Key) iter.Seq[Number] {
	return func(yield func(Number) bool) {
		block, at := r.seek(key)
		for ; block < len(r.order.blocks); block++ {
			for _, n := range r.order.blocks[block][at:] {
				if r.records.at(n).key != key && !yield(n) {
					return
				}
			}
			at = 0
		}
	}
}

// Below yields the records with the parent, in no order, and says how many they are.
func (r *Replica) Below(parent spiffeid.ID) (iter.Seq[Number], int) {
	return r.at(below, parent)
}

// Named yields the records with the SPIFFE ID, in no order, and says how many they are.
func (r *Replica) Named(id spiffeid.ID) (iter.Seq[Number], int) {
	return r.at(named, id)
}

func (r *Replica) at(axis int, id spiffeid.ID) (iter.Seq[Number], int) {
	p := r.findPlace(id)
	if p == 0 {
		return func(func(Number) bool) {}, 0
	}
	return r.along(axis, p), int(r.places.at(p).len[axis])
}

// State is the sum, modulo 2 by bit, of a hash of each record's key and revision: the order of
// records does not matter, and it is equal on every server.
func (r *Replica) State(ns []Number) []byte {
	sum := make([]byte, sha256.Size)
	for _, n := range ns {
		rec := r.records.at(n)
		h := sha256.Sum256(binary.BigEndian.AppendUint64(rec.key[:len(rec.key):len(rec.key)], uint64(rec.revision)))
		subtle.XORBytes(sum, sum, h[:])
	}
	return sum
}

// Key, Revision (of the store), SPIFFEID and ParentID of a record.
func (r *Replica) Key(n Number) Key        { return r.records.at(n).key }
func (r *Replica) Revision(n Number) int64 { return r.records.at(n).revision }
func (r *Replica) SPIFFEID(n Number) spiffeid.ID {
	return r.places.at(r.records.at(n).places[named]).id
}
func (r *Replica) ParentID(n Number) spiffeid.ID {
	return r.places.at(r.records.at(n).places[below]).id
}

// ID of the entry, also of one that was removed.
func (r *Replica) ID(n Number) string { return r.Rest(n).ID }

// Plain reports whether Rest would hold nothing but an ID.
func (r *Replica) Plain(n Number) bool { return r.records.at(n).rest == 0 }

// Rest returns an entry with its ID and what few entries have: everything but SPIFFE ID, parent,
// selectors, times of creation and revision.
func (r *Replica) Rest(n Number) *selectors.Entry {
	e := new(selectors.Entry)
	r.rest(r.records.at(n), e)
	return e
}

func (r *Replica) rest(rec *record, e *selectors.Entry) {
	d := decoder{}
	if rec.rest != 0 {
		d.b = []byte(r.rests.value(rec.rest))
	}
	d.rest(rec.key, e)
}

// Entry makes the entry of a record.
func (r *Replica) Entry(n Number) *selectors.Entry {
	rec := r.records.at(n)
	e := &selectors.Entry{
		SPIFFEID:  r.places.at(rec.places[named]).id,
		ParentID:  r.places.at(rec.places[below]).id,
		Selectors: r.lists.decode(rec.list),
		CreatedAt: time.Unix(rec.created, 0).UTC(),
		Revision:  rec.version,
	}
	r.rest(rec, e)
	return e
}

// Common says how many selectors an entry's set and the pattern share, and how many the set has.
func (r *Replica) Common(n Number, p Pattern) (shared, size int) {
	members := r.lists.members(r.records.at(n).list)
	for _, s := range members {
		if _, ok := slices.BinarySearch(p, s); ok {
			shared++
		}
	}
	return shared, len(members)
}

// Pattern is a set of selectors in numbers; those that no entry has are not in it.
type Pattern []uint32

// Pattern is valid until the replica changes.
func (r *Replica) Pattern(set selectors.Set) Pattern {
	p := make(Pattern, 0, len(set))
	for _, s := range set {
		if n := r.lists.selectors.find(s); n != 0 {
			p = append(p, n)
		}
	}
	slices.Sort(p)
	return p
}

func hashKey(key Key) uint32       { return uint32(maphash.Bytes(seed, key[:])) }
func hashID(id spiffeid.ID) uint32 { return uint32(maphash.String(seed, id.String())) }

// ownSelector keeps no bytes of the message that a selector came in. Types are few.
func ownSelector(s selectors.Selector) selectors.Selector {
	return selectors.Selector{Type: unique.Make(s.Type).Value(), Value: strings.Clone(s.Value)}
}
