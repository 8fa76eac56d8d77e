// SPDX-License-Identifier: Apache-2.0

package keep

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/life"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
)

// far is the conversation with a server.
type far struct{ state life.State }

func (f *far) Connected() bool    { return f.state == life.Following }
func (f *far) State() life.Status { return life.Status{State: f.state} }
func (f *far) Identity() (spiffeid.ID, time.Time, bool) {
	return agent, time.Time{}, f.state != life.Attesting
}

// run is one life of an agent.
type run struct {
	*Keeper
	far     far
	manager *svids.Manager
	logs    bytes.Buffer
}

func begin(dir string, former error) *run {
	r := &run{far: far{life.Attesting}}
	log := slog.New(slog.NewTextHandler(&r.logs, nil))
	r.manager = svids.New(svids.Config{Logger: log, Now: time.Now})
	r.Keeper = NewKeeper(New(Config{Dir: dir, MaxAge: time.Hour, Now: time.Now}), r.manager, &r.far, log)
	r.Restore(agent, former)
	return r
}

// follow makes the server say what it does of the sample.
func (r *run) follow(t *testing.T) {
	t.Helper()
	r.far.state = life.Following
	k := sample(t, time.Now())
	r.Trust(trust.Change{Full: true, Own: k.Own})
	r.Entries(true, k.Entries, nil, 1)
}

func (r *run) serves() bool {
	select {
	case <-r.manager.Ready():
		return r.manager.State().Entries > 0
	default:
		return false
	}
}

// looks passes time, with a look each second.
func (r *run) looks(d time.Duration) {
	for range d / time.Second {
		time.Sleep(time.Second)
		r.look(pause)
	}
}

func exists(t *testing.T, dir string) bool {
	t.Helper()
	_, err := os.Stat(filepath.Join(dir, "keep.bin"))
	return err == nil
}

// last is a folder as a run left it that the server answered.
func last(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	r := begin(dir, nil)
	if r.serves() || r.Status() != "" {
		t.Fatalf("a first run: %q", r.Status())
	}
	r.looks(10 * time.Second)
	if exists(t, dir) {
		t.Fatal("something was kept before the server was heard")
	}
	r.follow(t)
	r.looks(2 * time.Second)
	if !exists(t, dir) {
		t.Fatal("nothing was kept")
	}
	return dir
}

func TestKeeper(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := last(t)
		r := begin(dir, nil)
		r.looks(patience - time.Second)
		if r.serves() || r.Status() != "" {
			t.Fatalf("before it is known that the server is away: %q", r.Status())
		}
		r.looks(time.Second)
		if !r.serves() || !strings.Contains(r.Status(), "kept over the restart") {
			t.Fatalf("%q", r.Status())
		}
		r.looks(30 * time.Minute)
		if !r.serves() || !exists(t, dir) {
			t.Error("after half an hour they are gone")
		}
		r.follow(t)
		r.looks(time.Second)
		if !r.serves() || r.Status() != "" {
			t.Errorf("the server is heard: %q", r.Status())
		}
		r.looks(20 * time.Minute)
		again := begin(dir, nil)
		if age := time.Since(again.kept.Heard); age > refresh+2*time.Second {
			t.Errorf("with the server there, the file says that it was last heard %s ago", age)
		}
		r.far.state = life.Disconnected
		r.looks(2 * time.Hour) // in memory nothing ends
		if !r.serves() {
			t.Error("an agent that did not restart lost what it knew")
		}
		late := begin(dir, nil)
		late.looks(2 * patience)
		if late.serves() || !strings.Contains(late.Status(), "offline_max_age") {
			t.Errorf("two hours later: %q", late.Status())
		}
	})
}

func TestKeeperEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := last(t)
		r := begin(dir, nil)
		r.looks(59 * time.Minute)
		if !r.serves() {
			t.Fatal("before its time")
		}
		r.looks(2 * time.Minute)
		if r.serves() || exists(t, dir) || r.Status() != "" {
			t.Errorf("after offline_max_age: %q", r.Status())
		}
		r.follow(t)
		r.looks(6 * time.Second)
		if !r.serves() || !exists(t, dir) {
			t.Error("after the server came back nothing is kept")
		}
		r.Entries(true, nil, nil, 2)
		r.looks(6 * time.Second)
		if exists(t, dir) {
			t.Error("without entries there is a file")
		}
	})
}

func TestKeeperRefused(t *testing.T) {
	for _, state := range []life.State{life.Pending, life.Suspended, life.Refused, life.Banned} {
		synctest.Test(t, func(t *testing.T) {
			dir := last(t)
			r := begin(dir, nil)
			r.far.state = state
			r.looks(time.Second)
			if exists(t, dir) || r.Status() != "" {
				t.Errorf("%s: %q", state, r.Status())
			}
			again := begin(dir, nil)
			again.looks(2 * patience)
			if r.serves() || again.serves() {
				t.Errorf("%s: served, or after another restart", state)
			}
		})
	}
}

// The server took the node's identity back.
func TestKeeperWithoutIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for want, err := range map[string]error{"": fmt.Errorf("agent.json: %w", fs.ErrNotExist), "another way": errors.New("another way")} {
			dir := last(t)
			r := begin(dir, err)
			r.looks(2 * patience)
			if r.serves() || exists(t, dir) || !strings.Contains(r.Status(), want) || want == "" && r.Status() != "" {
				t.Errorf("%v: %q", err, r.Status())
			}
		}
	})
}

func TestKeeperFaults(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := last(t)
		path := filepath.Join(dir, "keep.bin")
		if err := os.WriteFile(path, []byte("something else"), 0o600); err != nil {
			t.Fatal(err)
		}
		r := begin(dir, nil)
		r.looks(2 * patience)
		if r.serves() || !strings.Contains(r.Status(), "no kept identities are served") {
			t.Errorf("a broken file: %q", r.Status())
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(path, 0o700); err != nil { // where the file is to be
			t.Fatal(err)
		}
		r.follow(t)
		r.looks(time.Minute)
		if !strings.Contains(r.Status(), "nothing is kept for a restart") {
			t.Errorf("no file can be written: %q", r.Status())
		}
		if n := strings.Count(r.logs.String(), "nothing is kept"); n != 1 {
			t.Errorf("said %d times", n)
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		r.looks(10 * time.Second)
		again := begin(dir, nil)
		again.far.state = life.Waiting
		again.looks(time.Second)
		if r.Status() != "" || !again.serves() {
			t.Errorf("after it could be written again: %q", r.Status())
		}
	})
}

// The server's word stands, whatever the Keeper thought a moment before.
func TestKeeperAfterTheServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := last(t)
		r := begin(dir, nil)
		r.Entries(true, nil, nil, 9)
		r.far.state = life.Disconnected
		r.serve()
		r.looks(time.Minute)
		if r.serves() || r.manager.State().Revision != 9 || exists(t, dir) {
			t.Error("what was kept replaced what the server said")
		}
	})
}
