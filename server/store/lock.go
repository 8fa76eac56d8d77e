// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"
)

// lockTTL is how long a lock outlives the server that held it.
const lockTTL = 15 * time.Second

// errLocked: another server holds the lock.
var errLocked = errors.New("another server is at it")

// locked runs f while no other server runs one under the same name; f's context ends if the
// lock is lost. Without wait it returns errLocked at once if the lock is held.
func (s *Store) locked(ctx context.Context, name string, wait bool, f func(context.Context) error) error {
	lease, err := s.client.Grant(ctx, int64(lockTTL/time.Second))
	if err != nil {
		return fmt.Errorf("lock %q: %w", name, s.unavailable(err))
	}
	session, err := concurrency.NewSession(s.client, concurrency.WithLease(lease.ID), concurrency.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("lock %q: %w", name, s.unavailable(err))
	}
	defer func() { // without waiting for a store that is gone: the lease ends by itself
		session.Orphan()
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		_, _ = s.client.Revoke(bounded, lease.ID)
	}()
	mutex := concurrency.NewMutex(session, s.prefix+"lock/"+name)
	take := mutex.Lock
	if !wait {
		take = mutex.TryLock
	}
	err = take(ctx)
	switch {
	case errors.Is(err, concurrency.ErrLocked):
		return errLocked
	case err != nil:
		return fmt.Errorf("lock %q: %w", name, s.unavailable(err))
	}
	held, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-session.Done():
			cancel()
		case <-held.Done():
		}
	}()
	return f(held)
}

// endpoint of our own member, for what concerns one member and not the cluster.
func (s *Store) endpoint() string { return s.client.Endpoints()[0] }

// self is our own member as the cluster knows it.
func self(members *clientv3.MemberListResponse) *clientv3.Member {
	for _, m := range members.Members {
		if m.ID == members.Header.MemberId {
			return (*clientv3.Member)(m)
		}
	}
	return nil
}
