// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/assay-id/assay/server/store"
)

const (
	prefix        = "r/"
	askedPrefix   = prefix + "asked/"
	donePrefix    = prefix + "done/"
	revokedPrefix = prefix + "revoked/"
	listPrefix    = prefix + "crl/"
)

// Revocation is one SVID that is revoked.
type Revocation struct {
	Record
	At time.Time `json:"at"`
	// Reason is that of RFC 5280 §5.3.1.
	Reason int `json:"reason,omitempty"`
	// Why is a sentence for people, By who asked for it.
	Why string `json:"why,omitempty"`
	By  string `json:"by,omitempty"`
}

func (r *Revocation) key() string { return revokedPrefix + r.Authority + "/" + r.Serial }

// Request asks all servers to revoke what they signed.
type Request struct {
	Scope  Scope     `json:"scope"`
	Reason int       `json:"reason,omitempty"`
	Why    string    `json:"why,omitempty"`
	By     string    `json:"by,omitempty"`
	At     time.Time `json:"at"`
}

// Answer is what one server did about a request.
type Answer struct {
	Revoked int    `json:"revoked"`
	Error   string `json:"error,omitempty"`
}

// listFile is a list in the store.
type listFile struct {
	DER []byte `json:"der"`
	// NotAfter is when its authority ends.
	NotAfter time.Time `json:"not_after"`
}

// list is a listFile that was read.
type list struct {
	list     *x509.RevocationList
	serials  map[string]bool // decimal
	notAfter time.Time
	revision int64
}

// view is all that the store says.
type view struct {
	revision int64
	revoked  map[string]map[string]*Revocation // by authority and serial
	asked    map[string]Request
	done     map[string]map[string]Answer // by request and server
	lists    map[string]*list             // by authority
}

func newView() *view {
	return &view{revoked: map[string]map[string]*Revocation{}, asked: map[string]Request{}, done: map[string]map[string]Answer{}, lists: map[string]*list{}}
}

// apply takes over one change. It returns a revocation that is new, and whether a list is.
func (v *view) apply(ch store.Change) (fresh *Revocation, listed bool, err error) {
	kind, rest, _ := strings.Cut(strings.TrimPrefix(ch.Key, prefix), "/")
	one, two, _ := strings.Cut(rest, "/")
	switch prefix + kind + "/" {
	case askedPrefix:
		return nil, false, set(v.asked, one, ch.Value)
	case donePrefix:
		return nil, false, set(inner(v.done, one), two, ch.Value)
	case revokedPrefix:
		fresh, err = v.applyRevoked(ch, one, two)
		return fresh, false, err
	case listPrefix:
		if ch.Value == nil {
			delete(v.lists, one)
			return nil, true, nil
		}
		l, err := readList(one, ch.Value)
		if err != nil {
			return nil, false, err
		}
		l.revision = ch.Revision
		v.lists[one] = l
		return nil, true, nil
	}
	return nil, false, nil // of a later version
}

func (v *view) applyRevoked(ch store.Change, authority, serial string) (*Revocation, error) {
	all := inner(v.revoked, authority)
	if ch.Value == nil {
		delete(all, serial)
		if len(all) == 0 {
			delete(v.revoked, authority)
		}
		return nil, nil
	}
	rev, err := readRevocation(ch.Key, ch.Value)
	if err != nil {
		return nil, err
	}
	_, known := all[serial]
	all[serial] = rev
	if known {
		return nil, nil
	}
	return rev, nil
}

func inner[V any](m map[string]map[string]V, key string) map[string]V {
	if m[key] == nil {
		m[key] = map[string]V{}
	}
	return m[key]
}

// set reads a value into a map, or removes it.
func set[V any](m map[string]V, key string, value []byte) error {
	if value == nil {
		delete(m, key)
		return nil
	}
	var v V
	if err := json.Unmarshal(value, &v); err != nil {
		return err
	}
	m[key] = v
	return nil
}

func readRevocation(key string, value []byte) (*Revocation, error) {
	var rev Revocation
	if err := json.Unmarshal(value, &rev); err != nil {
		return nil, err
	}
	if _, ok := readSerial(rev.Serial); !ok || rev.key() != key {
		return nil, fmt.Errorf("it is about serial %q of authority %q", rev.Serial, rev.Authority)
	}
	return &rev, nil
}

// readSerial reads a serial number of at most 20 octets (RFC 5280 §4.1.2.2) as String writes it.
func readSerial(text string) (*big.Int, bool) {
	if len(text) > 50 {
		return nil, false
	}
	n, ok := new(big.Int).SetString(text, 10)
	return n, ok && n.Sign() > 0 && n.BitLen() <= 160 && n.String() == text
}

func readList(authority string, value []byte) (*list, error) {
	var file listFile
	if err := json.Unmarshal(value, &file); err != nil {
		return nil, err
	}
	parsed, err := x509.ParseRevocationList(file.DER)
	if err != nil {
		return nil, err
	}
	if parsed.Number == nil || hex.EncodeToString(parsed.AuthorityKeyId) != authority {
		return nil, errors.New("it is the list of another authority, or has no number")
	}
	l := &list{list: parsed, serials: make(map[string]bool, len(parsed.RevokedCertificateEntries)), notAfter: file.NotAfter}
	for _, e := range parsed.RevokedCertificateEntries {
		l.serials[e.SerialNumber.String()] = true
	}
	return l, nil
}

// settled is how long a request that all servers have answered is kept.
const settled = time.Minute

// expired are the keys of what no longer matters.
func (v *view) expired(now time.Time, listTTL, life time.Duration, servers []string) (keys []string) {
	for _, all := range v.revoked {
		for _, rev := range all {
			if now.After(rev.NotAfter.Add(listTTL)) {
				keys = append(keys, rev.key())
			}
		}
	}
	for id, req := range v.asked {
		if age := now.Sub(req.At); age > life+listTTL || age > settled && len(waiting(servers, v.done[id])) == 0 {
			keys = append(keys, askedPrefix+id)
		}
	}
	for id, answers := range v.done {
		if _, open := v.asked[id]; open {
			continue
		}
		for server := range answers {
			keys = append(keys, donePrefix+id+"/"+server)
		}
	}
	for authority, l := range v.lists {
		if now.After(l.notAfter) {
			keys = append(keys, listPrefix+authority)
		}
	}
	return keys
}

// waiting names in order the servers that have not answered a request.
func waiting(servers []string, done map[string]Answer) []string {
	return slices.DeleteFunc(slices.Sorted(slices.Values(servers)), func(id string) bool { _, ok := done[id]; return ok })
}
