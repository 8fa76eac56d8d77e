// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Change is one key's new value; Value is nil when the key was deleted.
type Change struct {
	Key      string
	Value    []byte
	Revision int64
}

// Batch is everything that changed under the prefix since the batch before, in order. It never
// splits a revision. The last batch of a failed watch has Err set and no changes.
type Batch struct {
	Revision int64
	Changes  []Change
	Err      error
}

// Snapshot returns all keys with the prefix in ascending order, as of one revision. To follow
// them from there, Watch after that revision.
func (s *Store) Snapshot(ctx context.Context, prefix string) ([]KV, int64, error) {
	var all []KV
	revision, err := s.Scan(ctx, prefix, func(part []KV) { all = append(all, part...) })
	if err != nil {
		return nil, 0, err
	}
	return all, revision, nil
}

// Scan is Snapshot in parts: it calls each with some keys after the other. When it fails, the
// parts are worth nothing.
func (s *Store) Scan(ctx context.Context, prefix string, each func([]KV)) (int64, error) {
	if err := s.trouble(); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(ctx, snapshotTimeout)
	defer cancel()
	revision, err := s.present(ctx)
	if err != nil {
		return 0, s.unavailable(err)
	}
	// Paging with a limit would make etcd count to the end of the range on every page.
	err = s.stream(ctx, prefix, revision, each)
	if status.Code(err) == codes.Unimplemented { // an external etcd before 3.7
		err = s.whole(ctx, prefix, revision, each)
	}
	if err != nil {
		return 0, s.unavailable(err)
	}
	return revision, nil
}

const (
	snapshotTimeout = 2 * time.Minute // of a million keys on a slow disk
	presentTimeout  = 10 * time.Second
)

// present returns the store's present revision; it is a linearizable read.
func (s *Store) present(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, presentTimeout)
	defer cancel()
	got, err := s.client.Get(ctx, s.prefix, clientv3.WithCountOnly())
	if err != nil {
		return 0, err
	}
	return got.Header.Revision, nil
}

func (s *Store) stream(ctx context.Context, prefix string, revision int64, each func([]KV)) error {
	chunks, err := s.client.GetStream(ctx, s.prefix+prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	if err != nil {
		return err
	}
	for chunk := range chunks {
		if chunk.Err() != nil {
			err = chunk.Err()
			continue // it is the last one
		}
		each(s.kvs(chunk.Kvs))
	}
	return err
}

func (s *Store) whole(ctx context.Context, prefix string, revision int64, each func([]KV)) error {
	got, err := s.client.Get(ctx, s.prefix+prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
	if err != nil {
		return err
	}
	each(s.kvs(got.Kvs))
	return nil
}

func (s *Store) kvs(kvs []*mvccpb.KeyValue) []KV {
	out := make([]KV, len(kvs))
	for i, kv := range kvs {
		out[i] = KV{strings.TrimPrefix(string(kv.Key), s.prefix), kv.Value, kv.ModRevision}
	}
	return out
}

// Watch delivers every change under the prefix after the given revision, until the context
// ends or a batch with Err has been delivered; then the channel is closed. It outlives
// restarts of the store. The reader must keep reading.
func (s *Store) Watch(ctx context.Context, prefix string, after int64) <-chan Batch {
	out := make(chan Batch)
	go func() {
		defer close(out)
		for ctx.Err() == nil {
			var err error
			after, err = s.watchFrom(ctx, prefix, after, out)
			if errors.Is(err, ErrCompacted) {
				send(ctx, out, Batch{Revision: after, Err: err})
				return
			}
			select {
			case <-ctx.Done():
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return out
}

// watchFrom runs one watch of etcd's and returns how far it got.
func (s *Store) watchFrom(ctx context.Context, prefix string, after int64, out chan<- Batch) (int64, error) {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range s.client.Watch(ctx, s.prefix+prefix, clientv3.WithPrefix(), clientv3.WithRev(after+1)) {
		if resp.CompactRevision != 0 || errors.Is(resp.Err(), rpctypes.ErrCompacted) {
			return after, fmt.Errorf("watch %q after revision %d: %w", prefix, after, ErrCompacted)
		}
		if err := resp.Err(); err != nil {
			return after, err
		}
		if len(resp.Events) == 0 {
			continue
		}
		batch := Batch{Changes: make([]Change, 0, len(resp.Events))}
		for _, ev := range resp.Events {
			c := Change{Key: strings.TrimPrefix(string(ev.Kv.Key), s.prefix), Revision: ev.Kv.ModRevision}
			if ev.Type == clientv3.EventTypePut {
				c.Value = append([]byte{}, ev.Kv.Value...)
			}
			batch.Changes = append(batch.Changes, c)
			batch.Revision = max(batch.Revision, c.Revision)
		}
		if !send(ctx, out, batch) {
			return after, ctx.Err()
		}
		after = batch.Revision
	}
	return after, ctx.Err()
}

func send(ctx context.Context, out chan<- Batch, b Batch) bool {
	select {
	case out <- b:
		return true
	case <-ctx.Done():
		return false
	}
}
