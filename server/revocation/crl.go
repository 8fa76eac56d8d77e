// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/assay-id/assay/server/store"
)

// backdate lets readers with a slow clock accept a new list (as SVIDs are).
const backdate = 10 * time.Second

// publish signs the lists of this server's authorities that are not what they should be, or at half of their time.
func (r *Registry) publish(ctx context.Context) error {
	now := r.cfg.Now()
	for id, ends := range r.cfg.Authorities.CRLSigners() {
		next, revision := r.nextList(id, now)
		if next == nil {
			continue
		}
		if err := r.pause(ctx); err != nil {
			return err
		}
		if later, again := r.nextList(id, now); later != nil {
			next, revision = later, again
		}
		next.ThisUpdate, next.NextUpdate = now.Add(-backdate), now.Add(r.cfg.ListTTL)
		der, err := r.cfg.Authorities.SignCRL(id, next)
		r.note(id, err)
		if err != nil {
			continue // an answer says so, and the other lists are made
		}
		if err := r.putList(ctx, id, revision, listFile{DER: der, NotAfter: ends.UTC()}); err != nil {
			return err
		}
		r.published = time.Now()
		r.cfg.Logger.Info("signed a revocation list", "authority_id", id, "number", next.Number, "revoked", len(next.RevokedCertificateEntries))
	}
	return nil
}

func (r *Registry) putList(ctx context.Context, id string, revision int64, file listFile) error {
	kv, err := put(listPrefix+id, file)
	if err != nil {
		return err
	}
	// One server has the key; a write of its last run may still be on its way.
	at, err := r.cfg.Store.Commit(ctx, store.Txn{Compares: []store.Compare{store.Unchanged(kv.Key, revision)}, Puts: []store.KV{kv}, Essential: true})
	if conflict, ok := errors.AsType[*store.ConflictError](err); ok {
		return errors.Join(fmt.Errorf("publish the list of authority %s: %w", id, err), r.seen(ctx, conflict.Revision))
	} else if err != nil {
		return fmt.Errorf("publish the list of authority %s: %w", id, err)
	}
	return r.seen(ctx, at)
}

// nextList is the list that an authority should have instead of the present one, which has the revision; nil: none.
func (r *Registry) nextList(id string, now time.Time) (*x509.RevocationList, int64) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	next := &x509.RevocationList{Number: big.NewInt(1)}
	have := r.view.lists[id]
	same := true
	for _, serial := range sortedKeys(r.view.revoked[id]) {
		rev := r.view.revoked[id][serial]
		if now.After(rev.NotAfter.Add(r.cfg.ListTTL)) {
			continue // it was in a list after its end (RFC 5280 §5)
		}
		n, _ := readSerial(serial)
		next.RevokedCertificateEntries = append(next.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: n, RevocationTime: rev.At, ReasonCode: rev.Reason})
		same = same && have != nil && have.serials[serial]
	}
	n := len(next.RevokedCertificateEntries)
	if have == nil {
		if n == 0 && !r.cfg.Always {
			return nil, 0
		}
		return next, 0
	}
	if same && n == len(have.serials) && now.Before(halfOf(have.list)) {
		return nil, 0
	}
	next.Number.Add(have.list.Number, big.NewInt(1))
	return next, have.revision
}

// halfOf is when a list is signed anew.
func halfOf(l *x509.RevocationList) time.Time {
	return l.ThisUpdate.Add(l.NextUpdate.Sub(l.ThisUpdate) / 2)
}

// pause keeps publications apart.
func (r *Registry) pause(ctx context.Context) error {
	rest := apart - time.Since(r.published)
	if rest <= 0 {
		return nil
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(rest):
		return nil
	}
}

// note remembers why a list can not be signed, and says so once.
func (r *Registry) note(id string, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	r.mu.Lock()
	known := r.unsigned[id] == text
	r.unsigned[id] = text
	r.mu.Unlock()
	if !known && err != nil {
		r.cfg.Logger.Error("a revocation list can not be signed", "authority_id", id, "error", err)
	}
}

// Handler serves the lists of all authorities as /<authority id>.crl (RFC 5280 §4.2.1.13, RFC 2585), for anyone. A reader may
// keep one until it is signed anew.
func (r *Registry) Handler() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method != http.MethodGet && req.Method != http.MethodHead {
			w.Header().Set("Allow", "GET, HEAD")
			http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
			return
		}
		id, ok := strings.CutSuffix(strings.TrimPrefix(req.URL.Path, "/"), ".crl")
		r.mu.RLock()
		l := r.view.lists[id]
		r.mu.RUnlock()
		if !ok || l == nil {
			http.NotFound(w, req)
			return
		}
		age := max(0, int(halfOf(l.list).Sub(r.cfg.Now())/time.Second))
		h := w.Header()
		h.Set("Content-Type", "application/pkix-crl")
		h.Set("Cache-Control", fmt.Sprintf("public, max-age=%d", age))
		h.Set("ETag", strconv.Quote(l.list.Number.String()))
		http.ServeContent(w, req, "", l.list.ThisUpdate, bytes.NewReader(l.list.Raw))
	})
}
