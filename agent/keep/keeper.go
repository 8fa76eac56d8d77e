// SPDX-License-Identifier: Apache-2.0

package keep

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/life"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/selectors"
)

const (
	// lookEvery is how soon a change is seen, and a refusal of the node.
	lookEvery = time.Second
	// pause is between two writes at least.
	pause = 5 * time.Second
	// refresh is how old Kept.Heard becomes in the file while the server is there, at most; a tenth of a short MaxAge.
	refresh = 5 * time.Minute
	// patience is how long a server may take to answer before what is kept is served, if no try has failed before. Calls of
	// workloads wait for twice that (agent/delivery).
	patience = 5 * time.Second
)

// Server is the conversation with the server (agent/upstream).
type Server interface {
	Connected() bool
	State() life.Status
	Identity() (id spiffeid.ID, notAfter time.Time, ok bool)
}

// Keeper keeps what a Manager knows in a Store while the server is there, and gives a new Manager what the last run kept
// when it is not. It stands between the server and the Manager: a word of the server is never replaced by what is kept.
type Keeper struct {
	store   *Store
	manager *svids.Manager
	server  Server
	log     *slog.Logger

	word   sync.Mutex // held while the Manager is told anything
	spoken bool       // the server said something in this run

	mu    sync.Mutex
	since time.Time // since when kept identities are served; zero: they are not
	heard time.Time // when the server was last heard
	fault string    // why there are none, or none were written

	// Run's own:
	began time.Time
	kept  *Kept      // of the last run, until it is served or of no use any more
	renew func()     // of what is kept; nil when that was done
	gone  bool       // the file was removed
	mark  svids.Mark // of what was written, at saved
	saved time.Time
}

// NewKeeper returns a Keeper, before the Manager knows anything.
func NewKeeper(store *Store, m *svids.Manager, server Server, log *slog.Logger) *Keeper {
	return &Keeper{store: store, manager: m, server: server, log: log}
}

// Entries is Manager.Entries, for the server.
func (k *Keeper) Entries(full bool, changed []*selectors.Entry, removed []string, revision int64) {
	k.word.Lock()
	defer k.word.Unlock()
	k.hear()
	k.manager.Entries(full, changed, removed, revision)
}

// Trust is Manager.Trust, for the server.
func (k *Keeper) Trust(c trust.Change) (settled <-chan struct{}) {
	k.word.Lock()
	defer k.word.Unlock()
	k.hear()
	return k.manager.Trust(c)
}

// hear notes that the server said something. With word held.
func (k *Keeper) hear() {
	k.spoken = true
	k.mu.Lock()
	k.heard = k.store.cfg.Now()
	k.mu.Unlock()
}

// Restore reads what the last run kept, if it was the agent former; err says why that is not known. Run serves it once no server
// can be reached. Whatever is wrong, the Manager begins empty, and Status and log say why. Call it before Run.
func (k *Keeper) Restore(former spiffeid.ID, err error) {
	if err != nil { // the server took it back, for one
		if !errors.Is(err, fs.ErrNotExist) {
			k.fail("no kept identities are served", err)
		}
		k.remove()
		return
	}
	kept, err := k.store.Load(former)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err != nil {
		k.fail("no kept identities are served", err)
		return
	}
	k.began, k.kept = k.store.cfg.Now(), &kept
}

// serve gives the Manager what is kept, if the server has not said anything.
func (k *Keeper) serve() {
	k.word.Lock()
	defer k.word.Unlock()
	if k.spoken {
		return
	}
	kept := k.kept
	k.kept = nil
	served, renew, err := k.manager.Restore(kept.Kept)
	if err != nil {
		k.fail("no kept identities are served", err)
		return
	}
	k.renew = renew
	k.mu.Lock()
	k.since, k.heard = k.store.cfg.Now(), kept.Heard
	k.mu.Unlock()
	k.log.Warn("serving what was kept over the restart, until the server is heard", "entries", len(kept.Entries), "svids", served,
		"server_heard", kept.Heard.UTC(), "until", kept.Heard.Add(k.store.cfg.MaxAge).UTC())
}

// Status tells operators what of this matters now; empty is nothing.
func (k *Keeper) Status() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.since.IsZero() {
		return fmt.Sprintf("serving identities that were kept over the restart since %s: the server was last heard at %s, and they end at %s at the latest",
			k.since.UTC().Format(time.RFC3339), k.heard.UTC().Format(time.RFC3339), k.heard.Add(k.store.cfg.MaxAge).UTC().Format(time.RFC3339))
	}
	return k.fault
}

// Run keeps until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			k.look(0)
			return nil
		case <-tick.C:
			k.look(pause)
		}
	}
}

// look does what is to be done now; pause is since the last write.
func (k *Keeper) look(pause time.Duration) {
	now, connected := k.store.cfg.Now(), k.server.Connected()
	switch state := k.server.State().State; {
	case state == life.Pending || state == life.Suspended || state == life.Refused || state == life.Banned:
		k.end("the server refuses this node")
		k.remove()
		return
	case k.heardNow(now, connected):
	case k.kept != nil && (state == life.Waiting || state == life.Disconnected || now.Sub(k.began) >= patience):
		k.serve()
		return
	default:
		k.expire(now)
		return
	}
	mark := k.manager.Mark()
	if now.Sub(k.saved) < pause || mark == k.mark && !(connected && now.Sub(k.saved) >= min(refresh, k.store.cfg.MaxAge/10)) {
		return
	}
	k.save(now, mark)
}

// heardNow reports whether the server was heard in this run. Then its word replaces what was kept.
func (k *Keeper) heardNow(now time.Time, connected bool) bool {
	k.word.Lock()
	defer k.word.Unlock()
	if !k.spoken {
		return false
	}
	if connected {
		k.mu.Lock()
		k.heard = now
		k.mu.Unlock()
	}
	if k.renew != nil {
		k.renew()
	}
	k.end("the server is heard, and replaces it")
	return true
}

// expire ends the serving of what is kept when its time is over.
func (k *Keeper) expire(now time.Time) {
	k.word.Lock()
	defer k.word.Unlock()
	k.mu.Lock()
	over := !k.since.IsZero() && (now.Sub(k.heard) > k.store.cfg.MaxAge || k.heard.After(now.Add(maxAhead)))
	k.mu.Unlock()
	if !over || k.spoken {
		return
	}
	k.manager.Entries(true, nil, nil, 0)
	k.end("the server was not heard for offline_max_age")
	k.remove()
}

// end is the end of serving what was kept.
func (k *Keeper) end(reason string) {
	if k.kept != nil {
		for _, s := range k.kept.SVIDs {
			clear(s.Key)
		}
	}
	k.renew, k.kept = nil, nil
	k.mu.Lock()
	since := k.since
	k.since = time.Time{}
	k.mu.Unlock()
	if !since.IsZero() {
		k.log.Info("no longer serving what was kept over the restart", "reason", reason)
	}
}

func (k *Keeper) save(now time.Time, mark svids.Mark) {
	id, _, ok := k.server.Identity()
	kept := k.manager.Kept()
	switch {
	case kept.Own == nil || len(kept.Entries) == 0:
		k.remove()
		k.mark, k.saved = mark, now
		return
	case !ok:
		return
	}
	k.saved = now
	if err := k.store.Save(Kept{Agent: id, Heard: k.heard, Kept: kept}); err != nil {
		k.fail("nothing is kept for a restart", err)
		return
	}
	k.mark, k.gone = mark, false
	k.mu.Lock()
	k.fault = ""
	k.mu.Unlock()
}

func (k *Keeper) remove() {
	if k.gone {
		return
	}
	if err := k.store.Remove(); err != nil {
		k.fail("kept identities are still on disk", err)
		return
	}
	k.gone = true
}

// fail is said once, and in Status until it is over.
func (k *Keeper) fail(what string, err error) {
	text := what + ": " + err.Error()
	k.mu.Lock()
	said := k.fault == text
	k.fault = text
	k.mu.Unlock()
	if !said {
		k.log.Warn(what, "error", err)
	}
}
