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
)

const (
	// lookEvery is how soon a change is seen, and a refusal of the node.
	lookEvery = time.Second
	// pause is between two writes at least.
	pause = 5 * time.Second
	// refresh is how old Kept.Heard becomes in the file while the server is there, at most; a tenth of a short MaxAge.
	refresh = 5 * time.Minute
)

// Server is the conversation with the server (agent/upstream).
type Server interface {
	Connected() bool
	State() life.Status
	Identity() (id spiffeid.ID, notAfter time.Time, ok bool)
}

// Keeper keeps what a Manager knows in a Store while the server is there, and gives a new Manager what the last run kept
// until it is.
type Keeper struct {
	store   *Store
	manager *svids.Manager
	server  Server
	log     *slog.Logger

	mu    sync.Mutex
	since time.Time // since when kept identities are served; zero: they are not
	heard time.Time // when the server was last heard
	fault string    // why there are none, or none were written

	// Run's own:
	renew func()     // of what is kept; nil when that was done
	met   bool       // the server was heard in this run
	gone  bool       // the file was removed
	mark  svids.Mark // of what was written, at saved
	saved time.Time
}

// NewKeeper returns a Keeper, before the Manager knows anything.
func NewKeeper(store *Store, m *svids.Manager, server Server, log *slog.Logger) *Keeper {
	return &Keeper{store: store, manager: m, server: server, log: log}
}

// Restore gives the Manager what the last run kept, if it was the agent former; err says why that is not known. Whatever is
// wrong, the Manager begins empty, and Status and log say why.
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
	var served int
	if err == nil {
		served, k.renew, err = k.manager.Restore(kept.Kept)
	}
	if err != nil {
		k.fail("no kept identities are served", err)
		return
	}
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
	case connected:
		k.contact(now)
	case k.over(now):
		k.manager.Entries(true, nil, nil, 0)
		k.end("the server was not heard for offline_max_age")
		k.remove()
		return
	}
	if !k.met {
		return
	}
	mark := k.manager.Mark()
	if now.Sub(k.saved) < pause || mark == k.mark && !(connected && now.Sub(k.saved) >= min(refresh, k.store.cfg.MaxAge/10)) {
		return
	}
	k.save(now, mark)
}

// contact notes that the server is heard: its word replaces what was kept.
func (k *Keeper) contact(now time.Time) {
	k.met = true
	k.mu.Lock()
	k.heard = now
	k.mu.Unlock()
	if k.renew != nil {
		k.renew()
	}
	k.end("the server is heard, and replaces them")
}

// over reports whether kept identities are served, and must not be any more.
func (k *Keeper) over(now time.Time) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.since.IsZero() && (now.Sub(k.heard) > k.store.cfg.MaxAge || k.heard.After(now.Add(maxAhead)))
}

// end is the end of serving what was kept.
func (k *Keeper) end(reason string) {
	k.renew = nil
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
