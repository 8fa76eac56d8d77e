// SPDX-License-Identifier: Apache-2.0

package bundle

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/assay-id/assay/server/store"
)

// ErrRefused: the bundle can not have that authority.
var ErrRefused = errors.New("refused by the trust bundle")

// AddCert plans for a root that the bundle lacks. id is its subject key id in hex.
func (b Bundle) AddCert(txn *store.Txn, id string, cert *x509.Certificate) {
	put(txn, b.place(id, cert), b, cert.Raw)
}

// place is where a root belongs: b/x509/<subject key id>, and a second certificate with the same at
// b/x509/<subject key id>.<digest>.
func (b Bundle) place(id string, cert *x509.Certificate) string {
	key := Key(X509, id)
	if e, have := b.elements[key]; have && !bytes.Equal(e.Cert.Raw, cert.Raw) {
		sum := sha256.Sum256(cert.Raw)
		key += "." + hex.EncodeToString(sum[:8])
	}
	return key
}

func put(txn *store.Txn, key string, b Bundle, value []byte) {
	if _, have := b.elements[key]; have {
		return
	}
	for _, p := range txn.Puts {
		if p.Key == key {
			return
		}
	}
	txn.Puts = append(txn.Puts, store.KV{Key: key, Value: value})
}

// AddKey plans for a token's authority that the bundle lacks. No `kid` names two keys, not even one
// of each kind (WIT-SVID §6.1): ErrRefused.
func (b Bundle) AddKey(txn *store.Txn, k Kind, a KeyAuthority) error {
	if a.ID == "" {
		return fmt.Errorf("%w: missing key ID", ErrRefused)
	}
	for _, other := range []Kind{JWT, WIT} {
		e, have := b.elements[Key(other, a.ID)]
		if have && (other != k || !equal(e.Key.PublicKey, a.PublicKey)) {
			return fmt.Errorf("%w: key ID %q is taken by another key; choose another", ErrRefused, a.ID)
		}
	}
	public, err := x509.MarshalPKIXPublicKey(a.PublicKey)
	if err != nil {
		return fmt.Errorf("%w: key %q: %w", ErrRefused, a.ID, err)
	}
	value, err := json.Marshal(keyFile{public, a.ExpiresAt})
	if err != nil {
		return fmt.Errorf("encode key authority %s: %w", a.ID, err)
	}
	put(txn, Key(k, a.ID), b, value)
	return nil
}

func equal(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// taintFile is the value of a taint, JSON: for people.
type taintFile struct {
	At time.Time `json:"at"`
	By string    `json:"by"` // a server's id
}

// Taint plans for tainting the authorities with this id, if they are not; ErrRefused if there are none.
func (b Bundle) Taint(txn *store.Txn, k Kind, id, by string, now time.Time) error {
	found := b.KeysOf(k, id)
	if len(found) == 0 {
		return fmt.Errorf("%w: it has no such authority", ErrRefused)
	}
	if b.Tainted(k, id) {
		return nil
	}
	value, err := json.Marshal(taintFile{now.UTC(), by})
	if err != nil {
		return fmt.Errorf("encode a taint: %w", err)
	}
	txn.Puts = append(txn.Puts, store.KV{Key: TaintKey(k, id), Value: value})
	return nil
}

// ErrUntainted: SPIRE's sentence.
var ErrUntainted = errors.New("it is not possible to revoke an untainted authority; taint it first")

// Revoke plans for removing the tainted authorities with this id. ErrRefused if there are none,
// ErrUntainted.
func (b Bundle) Revoke(txn *store.Txn, k Kind, id string) error {
	found := b.KeysOf(k, id)
	switch {
	case len(found) == 0:
		return fmt.Errorf("%w: it has no such authority", ErrRefused)
	case !b.Tainted(k, id):
		return ErrUntainted
	}
	txn.Deletes = append(append(txn.Deletes, found...), TaintKey(k, id))
	return nil
}

const pruneAfter = 24 * time.Hour

// Prune plans for removing what expired a day ago, but never the last authority of its kind.
func (b Bundle) Prune(txn *store.Txn, now time.Time) {
	left, same := map[Kind]int{}, map[string]int{} // by kind, and by what a taint is for
	for _, e := range b.elements {
		left[e.Kind]++
		same[TaintKey(e.Kind, e.ID)]++
	}
	for key, e := range b.elements {
		end := e.ExpiresAt()
		if end.IsZero() || !now.After(end.Add(pruneAfter)) || left[e.Kind] == 1 {
			continue
		}
		left[e.Kind]--
		txn.Deletes = append(txn.Deletes, key)
		taint := TaintKey(e.Kind, e.ID)
		if same[taint]--; same[taint] == 0 && b.taints[taint] {
			txn.Deletes = append(txn.Deletes, taint)
		}
	}
}
