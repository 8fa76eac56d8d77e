// SPDX-License-Identifier: Apache-2.0

// Package bundle is the trust bundle of our trust domain: in the store, in every server's memory,
// and who has seen which one. The bundle is the union of what all servers publish.
package bundle

import (
	"cmp"
	"crypto"
	"crypto/x509"
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/assay-id/assay/server/store"
)

// Kind of an authority: what it signs.
type Kind int

// The kinds.
const (
	X509 Kind = iota
	JWT
	WIT
	Kinds // how many there are
)

var kindNames = [Kinds]string{"x509", "jwt", "wit"}

func (k Kind) String() string { return kindNames[k] }

// KindOf reads what String writes.
func KindOf(name string) (Kind, bool) {
	i := slices.Index(kindNames[:], name)
	return Kind(i), i >= 0
}

// Keys in the store. An authority there never changes: tainting adds another key.
const (
	prefix      = "b/" // + kind + "/" + id
	taintPrefix = prefix + "tainted/"
	sequenceKey = prefix + "sequence"
)

// Key is where the store has an authority.
func Key(k Kind, id string) string { return prefix + k.String() + "/" + id }

// TaintKey is where the store says that the authorities with this id are tainted.
func TaintKey(k Kind, id string) string { return taintPrefix + k.String() + "/" + id }

// X509Authority is a root of the trust domain.
type X509Authority struct {
	Cert *x509.Certificate
	// Tainted: SVIDs below it must be replaced; it is still in the bundle until it is revoked.
	Tainted bool
}

// KeyAuthority is a key that signs tokens.
type KeyAuthority struct {
	// ID is the `kid`.
	ID        string
	PublicKey crypto.PublicKey
	// ExpiresAt is zero if the key is for ever.
	ExpiresAt time.Time
	Tainted   bool
}

// Trusted is all that an upstream authority trusts.
type Trusted struct {
	X509     []X509Authority
	JWT, WIT []KeyAuthority
}

// Bundle is the trust bundle (SPIFFE Trust Domain and Bundle §4). Nobody changes one.
type Bundle struct {
	// X509 authorities in the order in which they were added; stable between changes.
	X509 []X509Authority
	// JWT and WIT authorities, likewise.
	JWT, WIT []KeyAuthority
	// Sequence starts at 0 and rises by one with every effective change.
	Sequence uint64

	sequenceRevision int64 // 0: there is no bundle yet
	elements         map[string]Element
	taints           map[string]bool // by keys in the store
}

// Element is an authority as the store has it.
type Element struct {
	Kind Kind
	// ID is a subject key id in hex, which several certificates may have, or a `kid`.
	ID       string
	Cert     *x509.Certificate // of X509
	Key      KeyAuthority      // of the others
	Revision int64
}

// ExpiresAt is zero if the authority is for ever.
func (e Element) ExpiresAt() time.Time {
	if e.Cert != nil {
		return e.Cert.NotAfter
	}
	return e.Key.ExpiresAt
}

// Roots are the certificates of X509.
func (b Bundle) Roots() []*x509.Certificate {
	roots := make([]*x509.Certificate, 0, len(b.X509))
	for _, a := range b.X509 {
		roots = append(roots, a.Cert)
	}
	return roots
}

// Exists reports whether anything was ever published.
func (b Bundle) Exists() bool { return b.sequenceRevision != 0 }

// Next is the sequence number of the bundle after this one.
func (b Bundle) Next() uint64 {
	if !b.Exists() {
		return 0
	}
	return b.Sequence + 1
}

// Elements are all authorities by their keys in the store.
func (b Bundle) Elements() map[string]Element { return b.elements }

// Tainted reports whether the authorities with this id are.
func (b Bundle) Tainted(k Kind, id string) bool { return b.taints[TaintKey(k, id)] }

// Vouches reports whether who has the bundle accepts the authority at that key, now and later.
func (b Bundle) Vouches(key string) bool {
	e, ok := b.elements[key]
	return ok && !b.Tainted(e.Kind, e.ID)
}

// KeysOf returns the keys in the store of the authorities with this id.
func (b Bundle) KeysOf(k Kind, id string) (found []string) {
	for key, e := range b.elements {
		if e.Kind == k && e.ID == id {
			found = append(found, key)
		}
	}
	return found
}

// with is the bundle after the changes, which are all there is if whole is set, and what of them
// can not be read.
func (b Bundle) with(whole bool, changes []store.Change) (next Bundle, unread map[string]error) {
	next = Bundle{elements: map[string]Element{}, taints: map[string]bool{}}
	if !whole {
		next = Bundle{Sequence: b.Sequence, sequenceRevision: b.sequenceRevision, elements: maps.Clone(b.elements), taints: maps.Clone(b.taints)}
	}
	unread = map[string]error{}
	for _, ch := range changes {
		if err := next.apply(ch); err != nil {
			unread[ch.Key] = err
		}
	}
	next.order()
	return next, unread
}

func (b *Bundle) apply(ch store.Change) error {
	kindName, id, _ := strings.Cut(strings.TrimPrefix(ch.Key, prefix), "/")
	kind, known := KindOf(kindName)
	switch {
	case ch.Key == sequenceKey:
		b.Sequence, _ = strconv.ParseUint(string(ch.Value), 10, 64)
		b.sequenceRevision = ch.Revision
	case strings.HasPrefix(ch.Key, taintPrefix) && ch.Value == nil:
		delete(b.taints, ch.Key)
	case strings.HasPrefix(ch.Key, taintPrefix):
		b.taints[ch.Key] = true
	case !known: // of a later version
	case ch.Value == nil:
		delete(b.elements, ch.Key)
	default:
		e, err := readElement(kind, id, ch.Value)
		if err != nil {
			return err
		}
		e.Revision = ch.Revision
		b.elements[ch.Key] = e
	}
	return nil
}

// keyFile is the value of a JWT or WIT authority in the store, JSON.
type keyFile struct {
	PublicKey []byte    `json:"public_key"` // PKIX
	ExpiresAt time.Time `json:"expires_at,omitzero"`
}

func readElement(k Kind, id string, value []byte) (Element, error) {
	if k == X509 {
		cert, err := x509.ParseCertificate(value)
		id, _, _ = strings.Cut(id, ".") // see place
		return Element{Kind: k, ID: id, Cert: cert}, err
	}
	var file keyFile
	if err := json.Unmarshal(value, &file); err != nil {
		return Element{}, err
	}
	public, err := x509.ParsePKIXPublicKey(file.PublicKey)
	return Element{Kind: k, ID: id, Key: KeyAuthority{ID: id, PublicKey: public, ExpiresAt: file.ExpiresAt}}, err
}

// order fills in the lists.
func (b *Bundle) order() {
	keys := slices.SortedFunc(maps.Keys(b.elements), func(x, y string) int {
		return cmp.Or(cmp.Compare(b.elements[x].Revision, b.elements[y].Revision), strings.Compare(x, y))
	})
	for _, key := range keys {
		e := b.elements[key]
		e.Key.Tainted = b.Tainted(e.Kind, e.ID)
		switch e.Kind {
		case X509:
			b.X509 = append(b.X509, X509Authority{e.Cert, e.Key.Tainted})
		case JWT:
			b.JWT = append(b.JWT, e.Key)
		case WIT:
			b.WIT = append(b.WIT, e.Key)
		}
	}
}
