// SPDX-License-Identifier: Apache-2.0

package svids

import (
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"hash/maphash"
	"math/rand/v2"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/keys"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

// Kept is what a Manager knows and may know again after a restart (agent/keep): not the tokens, nor what is for one process.
type Kept struct {
	Revision int64              `json:"revision"`
	Synced   time.Time          `json:"synced"`
	Entries  []*selectors.Entry `json:"entries"`
	Own      *trust.Bundle      `json:"own"`
	Foreign  []*trust.Bundle    `json:"foreign"`
	SVIDs    []KeptSVID         `json:"svids"`
}

// KeptSVID is an X.509-SVID with its private key.
type KeptSVID struct {
	EntryID  string      `json:"entry"`
	Revision int64       `json:"revision"` // the entry's
	ID       spiffeid.ID `json:"id"`
	Chain    []byte      `json:"chain"` // DER, leaf first
	Key      []byte      `json:"key"`   // PKCS#8 DER
}

// Mark is comparable: it differs when Kept would.
type Mark struct {
	synced       time.Time
	bundles, sum uint64
}

var markSeed = maphash.MakeSeed()

// Mark tells cheaply whether anything has changed.
func (m *Manager) Mark() Mark {
	m.mu.Lock()
	defer m.mu.Unlock()
	mark := Mark{synced: m.synced, bundles: m.version}
	for key, s := range m.cache {
		if s.svid != nil && m.keeps(key) {
			mark.sum += maphash.String(markSeed, key.entry+"\x00"+s.svid.Serial)
		}
	}
	return mark
}

// keeps reports whether the slot is one that Kept has. With mu held.
func (m *Manager) keeps(key slotKey) bool {
	e := m.index.Get(key.entry)
	return e != nil && key.kind == X509 && key == key.shared() && !m.alone(e, X509)
}

// Kept returns it. The keys are the Manager's own memory. Own is nil before the first bundle.
func (m *Manager) Kept() Kept {
	m.mu.Lock()
	defer m.mu.Unlock()
	k := Kept{Revision: m.revision, Synced: m.synced, Own: m.own}
	for e := range m.index.All {
		k.Entries = append(k.Entries, e)
	}
	for _, b := range m.foreign {
		if !b.Empty() {
			k.Foreign = append(k.Foreign, b)
		}
	}
	now := m.now()
	for key, s := range m.cache {
		if v := s.svid; v != nil && !s.stale && now.Before(v.NotAfter) && m.keeps(key) {
			k.SVIDs = append(k.SVIDs, KeptSVID{EntryID: v.EntryID, Revision: v.EntryRevision, ID: v.ID, Chain: v.Chain, Key: v.Key})
		}
	}
	return k
}

// Restore has a Manager that knows nothing begin with what is kept: SVIDs that are valid now by the kept bundle, for the entries
// as they are kept. It takes over the keys. The returned function, for when the server is heard again, has all of them
// signed anew.
func (m *Manager) Restore(k Kept) (served int, renew func(), _ error) {
	if k.Own == nil {
		return 0, nil, errors.New("what is kept has no bundle")
	}
	var restored []*SVID
	entries := make(map[string]*selectors.Entry, len(k.Entries))
	for _, e := range k.Entries {
		if e == nil {
			return 0, nil, errors.New("what is kept has an entry that is none")
		}
		entries[e.ID] = e
	}
	for _, b := range k.Foreign {
		if b == nil {
			return 0, nil, errors.New("what is kept has a bundle that is none")
		}
	}
	for _, kept := range k.SVIDs {
		s, err := m.revive(kept, entries[kept.EntryID], k.Own)
		if err != nil {
			m.log.Warn("a kept SVID is not served", "spiffe_id", kept.ID, "entry", kept.EntryID, "reason", err)
			continue
		}
		restored = append(restored, s)
	}
	m.Trust(trust.Change{Full: true, Own: k.Own, Foreign: k.Foreign})
	m.Entries(true, k.Entries, nil, k.Revision)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.synced = k.Synced
	for _, v := range restored {
		s := m.slot(slotKey{kind: X509, entry: v.EntryID})
		s.svid, s.used = v, m.now()
		m.schedule(s, half(v).Add(rand.N(v.NotAfter.Sub(v.NotBefore)/20+1)))
	}
	return len(restored), func() { m.replace(restored) }, nil
}

// revive checks a kept SVID as if the server had just sent it.
func (m *Manager) revive(k KeptSVID, e *selectors.Entry, own *trust.Bundle) (*SVID, error) {
	switch {
	case e == nil:
		return nil, errors.New("its entry is not kept")
	case e.SPIFFEID != k.ID || e.Revision != k.Revision || e.Options.PerProcess:
		return nil, errors.New("it is not of the entry as that was last")
	}
	chain, err := x509.ParseCertificates(k.Chain)
	if err != nil || len(chain) == 0 {
		return nil, fmt.Errorf("its certificates can not be read: %w", errors.Join(err))
	}
	key, err := x509.ParsePKCS8PrivateKey(k.Key)
	if err != nil {
		return nil, fmt.Errorf("its key can not be read: %w", err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("its key is a %T", key)
	}
	now := m.now()
	if err := trust.CheckX509(chain, own.SPIFFE(), k.ID, signer.Public(), now); err != nil {
		return nil, err
	}
	if own.TaintsChain(chain) {
		return nil, errors.New("its authority is tainted, or it is revoked")
	}
	leaf := chain[0]
	return &SVID{Kind: X509, EntryID: k.EntryID, EntryRevision: k.Revision, ID: k.ID, Chain: k.Chain, Key: keys.Secret(k.Key),
		Serial: leaf.SerialNumber.String(), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter}, nil
}

// replace has those of the SVIDs made anew that are still there.
func (m *Manager) replace(old []*SVID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, v := range old {
		if s := m.cache[slotKey{kind: X509, entry: v.EntryID}]; s != nil && s.svid == v {
			s.stale = true
			m.schedule(s, m.now().Add(rand.N(taintSpread)))
		}
	}
}
