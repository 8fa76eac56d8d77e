// SPDX-License-Identifier: Apache-2.0

package replica_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/entries/replica"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func id(path string) spiffeid.ID { return spiffeid.RequireFromPath(td, path) }

// model is the replica as one would write it down.
type model map[replica.Key]*selectors.Entry

func (m model) authorized(agent spiffeid.ID, node selectors.Set) (ids []string) {
	parents := map[spiffeid.ID]bool{agent: true}
	for _, e := range m {
		if set := e.SelectorSet(); e.ParentID == id("/spire/server") && len(set) > 0 && set.SubsetOf(node) {
			parents[e.SPIFFEID] = true
		}
	}
	for n := -1; n != len(parents); {
		n = len(parents)
		for _, e := range m {
			if parents[e.ParentID] {
				parents[e.SPIFFEID] = true
			}
		}
	}
	for _, e := range m {
		if parents[e.ParentID] {
			ids = append(ids, e.ID)
		}
	}
	slices.Sort(ids)
	return ids
}

func (m model) similar(e *selectors.Entry) string {
	oldest := ""
	for key, o := range m {
		if o.SPIFFEID == e.SPIFFEID && o.ParentID == e.ParentID && o.SelectorSet().Equal(e.SelectorSet()) && (oldest == "" || key.String() < oldest) {
			oldest = key.String()
		}
	}
	return oldest
}

func randomSet(rng *rand.Rand, n int) (ss []selectors.Selector) {
	for range n {
		ss = append(ss, selectors.Selector{Type: string(rune('a' + rng.IntN(2))), Value: fmt.Sprint(rng.IntN(4))})
	}
	return ss
}

func randomEntry(rng *rand.Rand, key replica.Key) *selectors.Entry {
	parents := []string{"/spire/server", "/agent/1", "/agent/2", "/a", "/b", "/c", "/d"}
	e := &selectors.Entry{
		ID: key.String(), ParentID: id(parents[rng.IntN(len(parents))]), SPIFFEID: id(parents[3+rng.IntN(4)]),
		Selectors: randomSet(rng, 1+rng.IntN(3)), CreatedAt: time.Unix(rng.Int64N(1e9), 0).UTC(), Revision: rng.Int64N(9),
	}
	if rng.IntN(4) == 0 {
		e.ID, e.Hint, e.DNSNames = "custom-"+e.ID, fmt.Sprint("hint", rng.IntN(3)), []string{"x", fmt.Sprint(rng.IntN(100))}
		e.ExpiresAt, e.Attributes = time.Unix(rng.Int64N(1e9), 7).UTC(), &selectors.EntryAttributes{JWTSVIDIncludeJTI: true}
	}
	if rng.IntN(4) == 0 {
		e.Options = selectors.EntryOptions{PerProcess: rng.IntN(2) == 0, Prefetch: rng.IntN(2) == 0, KeyType: selectors.KeyType(rng.IntN(5)), Grace: time.Duration(rng.IntN(3)) * time.Minute}
	}
	return e
}

// TestAgainstModel: many random changes; after each batch of them the replica and the model agree
// on everything, and at the end an emptied replica holds nothing.
func TestAgainstModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 11))
	r, m := replica.New(td), model{}
	var keys []replica.Key
	for step := range 6000 {
		switch {
		case len(keys) == 0 || rng.IntN(10) < 4 && len(keys) < 600:
			key := replica.Key{byte(rng.IntN(256)), byte(rng.IntN(256)), 6: byte(rng.IntN(256)), 15: byte(step), 14: byte(step >> 8)}
			keys = append(keys, key)
			m[key] = randomEntry(rng, key)
			r.Put(key, int64(step), m[key])
		case rng.IntN(2) == 0:
			key := keys[rng.IntN(len(keys))]
			e := randomEntry(rng, key)
			e.ID = m[key].ID
			m[key] = e
			if before := r.Find(key); r.Put(key, int64(step), e) != before {
				t.Fatal("a replaced record has another number")
			}
		default:
			at := rng.IntN(len(keys))
			n := r.Find(keys[at])
			r.Remove(n)
			if r.ID(n) != m[keys[at]].ID {
				t.Fatal("a removed record has lost its id")
			}
			r.Free(n)
			delete(m, keys[at])
			keys = slices.Delete(keys, at, at+1)
		}
		if step%50 == 0 {
			agree(t, rng, r, m)
		}
	}
	agree(t, rng, r, m)
	for _, key := range keys {
		n := r.Find(key)
		r.Remove(n)
		r.Free(n)
	}
	agree(t, rng, r, model{})
	if kept := r.Held(); kept != 1 {
		t.Errorf("an empty replica holds %d places, selectors, lists and rests; want only the place of /spire/server", kept)
	}
}

func agree(t *testing.T, rng *rand.Rand, r *replica.Replica, m model) {
	t.Helper()
	if r.Len() != len(m) {
		t.Fatalf("%d records, want %d", r.Len(), len(m))
	}
	var keys []string
	for key, e := range m {
		keys = append(keys, key.String())
		n := r.Find(key)
		if n == 0 || r.ByID(e.ID) != n || r.Key(n) != key {
			t.Fatalf("entry %s is not found", e.ID)
		}
		if got := r.Entry(n); !reflect.DeepEqual(got, e) {
			t.Fatalf("got  %+v\nwant %+v", got, e)
		}
		if n := r.Similar(e); r.Key(n).String() != m.similar(e) {
			t.Fatalf("similar to %s is %s, want %s", key, r.Key(n), m.similar(e))
		}
	}
	slices.Sort(keys)
	var order []string
	for n := range r.After(replica.Key{}) {
		order = append(order, r.Key(n).String())
	}
	if !slices.Equal(order, keys) {
		t.Fatalf("order of %d, want %d", len(order), len(keys))
	}
	for range 4 {
		node, agent := selectors.NewSet(randomSet(rng, rng.IntN(7))...), id(fmt.Sprintf("/agent/%d", 1+rng.IntN(2)))
		want := m.authorized(agent, node)
		var got []string
		for _, n := range r.Authorized(agent, node) {
			got = append(got, r.ID(n))
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Fatalf("%s with %v may hold %v, want %v", agent, node, got, want)
		}
		for _, e := range m {
			if r.MayHold(agent, node, r.ByID(e.ID)) != slices.Contains(want, e.ID) {
				t.Fatalf("upwards, %s with %v may hold %s: %t", agent, node, e.ID, !slices.Contains(want, e.ID))
			}
		}
	}
}

// TestJSON: entries of before 2026-11-22 are read.
func TestJSON(t *testing.T) {
	key := uuid.Must(uuid.NewV7())
	e := randomEntry(rand.New(rand.NewPCG(1, 1)), key)
	value, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := replica.Decode(td, key, value); err != nil || !reflect.DeepEqual(got, e) {
		t.Errorf("got %+v, %v, want %+v", got, err, e)
	}
	foreign := strings.ReplaceAll(string(value), "example.org", "other.org")
	if got, err := replica.Decode(td, key, []byte(foreign)); err == nil {
		t.Errorf("an entry of another trust domain is read: %+v", got)
	}
}

// FuzzDecode: no value makes Decode fail in another way than by an error, and what it reads is
// written and read the same.
func FuzzDecode(f *testing.F) {
	key := replica.Key{1: 1}
	rng := rand.New(rand.NewPCG(3, 4))
	for range 5 {
		f.Add(replica.Encode(key, randomEntry(rng, key)))
	}
	f.Add([]byte(`{"id":"x","spiffe_id":"spiffe://example.org/a","parent_id":"spiffe://example.org/b","created_at":"2026-01-01T00:00:00Z"}`))
	f.Fuzz(func(t *testing.T, value []byte) {
		e, err := replica.Decode(td, key, value)
		if err != nil {
			return
		}
		if !e.SPIFFEID.MemberOf(td) || !e.ParentID.MemberOf(td) || e.ID == "" {
			t.Fatalf("read %+v", e)
		}
		if value[0] == '{' {
			return // its times have fractions and zones
		}
		again, err := replica.Decode(td, key, replica.Encode(key, e))
		if err != nil || !reflect.DeepEqual(again, e) {
			t.Fatalf("read   %+v\nagain  %+v, %v", e, again, err)
		}
	})
}

// million are entries as of a large installation: 10,000 agents, 20,000 services, three or four
// selectors.
func million(i int) *selectors.Entry {
	service := i * 7919 % 20_000
	e := &selectors.Entry{
		SPIFFEID: id(fmt.Sprintf("/ns/namespace-%d/sa/service-%d", service%200, service)),
		ParentID: id(fmt.Sprintf("/spire/agent/tpm/%064x", i%10_000)),
		Selectors: []selectors.Selector{
			{Type: "unix", Value: fmt.Sprintf("uid:%d", 1000+service%3000)},
			{Type: "unix", Value: fmt.Sprintf("sha256:%064x", service)},
			{Type: "evidence", Value: "tier:t2"},
		},
		X509SVIDTTL: time.Hour, CreatedAt: time.Unix(1_800_000_000, 0).UTC(),
	}
	if i%3 == 0 {
		e.Selectors = append(e.Selectors, selectors.Selector{Type: "container", Value: fmt.Sprintf("name:app-%d", i%177)})
	}
	return e
}

// BenchmarkMillion fills a replica with 1,000,000 entries and says what it takes.
func BenchmarkMillion(b *testing.B) {
	const n = 1_000_000
	for b.Loop() {
		values := make([][]byte, n)
		keys := make([]replica.Key, n)
		for i := range values {
			keys[i] = uuid.Must(uuid.NewV7())
			e := million(i)
			e.ID = keys[i].String()
			values[i] = replica.Encode(keys[i], e)
		}
		before := heap()
		r := replica.New(td)
		started := time.Now()
		for i, value := range values {
			e, err := replica.Decode(td, keys[i], value)
			if err != nil {
				b.Fatal(err)
			}
			r.Put(keys[i], int64(i), e)
		}
		took := time.Since(started)
		b.ReportMetric(float64(heap()-before)/n, "B/entry")
		b.ReportMetric(float64(len(values[1])), "stored-B/entry")
		b.ReportMetric(took.Seconds(), "s-to-build")
		started = time.Now()
		runtime.GC()
		b.ReportMetric(time.Since(started).Seconds(), "s-of-GC")
		runtime.KeepAlive(values)
		runtime.KeepAlive(r)
	}
}

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkAuthorized: 10,000 agents in 1,000 groups of one alias each; the agent asked for has
// 1,000 entries, half of them by its group.
func BenchmarkAuthorized(b *testing.B) {
	r := replica.New(td)
	put := func(parent, path, sel string) {
		key := uuid.Must(uuid.NewV7())
		r.Put(key, 1, &selectors.Entry{ID: key.String(), ParentID: id(parent), SPIFFEID: id(path), Selectors: []selectors.Selector{{Type: "unix", Value: sel}, {Type: "evidence", Value: "tier:t2"}}})
	}
	for i := range 10_000 {
		key := uuid.Must(uuid.NewV7())
		group := []selectors.Selector{{Type: "tpm", Value: "secure-boot:on"}, {Type: "tpm", Value: fmt.Sprintf("group:%d", i)}}
		r.Put(key, 1, &selectors.Entry{ID: key.String(), ParentID: id("/spire/server"), SPIFFEID: id(fmt.Sprintf("/group/%d", i)), Selectors: group})
	}
	for i := range 500 {
		put("/agent/1", fmt.Sprintf("/own/%d", i), fmt.Sprintf("uid:%d", i))
		put("/group/7", fmt.Sprintf("/shared/%d", i), fmt.Sprintf("uid:%d", i))
	}
	node := selectors.NewSet(selectors.Selector{Type: "tpm", Value: "secure-boot:on"}, selectors.Selector{Type: "tpm", Value: "group:7"})
	for b.Loop() {
		if got := r.InOrder(r.Authorized(id("/agent/1"), node)); len(got) != 1000 {
			b.Fatal(len(got))
		}
	}
}
