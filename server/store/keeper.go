// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	keepEvery   = 5 * time.Second
	keepTimeout = 5 * time.Minute // of a defragmentation on a slow disk

	defaultQuota = 7 << 30
	// worthDefrag is the least that is worth stopping a member for, unless room is short.
	worthDefrag = 128 << 20
	// compactAgain is how often the history is dropped while room is short.
	compactAgain = 10 * time.Second
	// patience with members that do not clear their alarms themselves.
	patience = 2 * time.Minute
)

// reserve is what a database may grow beyond its quota by deletes and Essential writes; only
// then etcd itself refuses every put. It is more than can be written before its size is known.
func reserve(quota int64) int64 { return max(quota/8, 64<<20) }

// keeper looks after our own member: its certificate, its place in the cluster, its room.
type keeper struct {
	clustered bool
	quota     int64
	wake      chan struct{}

	bytes   atomic.Int64 // the database's size on disk
	written atomic.Int64 // since then, through this server
	alarmed atomic.Bool  // etcd refuses every write, on some member

	// Used by keep only.
	compacted   int64 // revision
	compactedAt time.Time
	alarmedAt   time.Time
	lastErr     string
}

func newKeeper(cfg Config) keeper {
	return keeper{clustered: cfg.Cluster != nil, quota: cfg.Quota, wake: make(chan struct{}, 1)}
}

func (k *keeper) size() (bytes, quota int64) { return k.bytes.Load(), k.quota }

// wrote counts, so that the size is never known so late that the reserve is used up.
func (s *Store) wrote(txn *Txn) {
	n := 0
	for _, p := range txn.Puts {
		n += len(p.Key) + len(p.Value)
	}
	if s.keeper.written.Add(int64(n)) > reserve(s.keeper.quota)/8 {
		s.wakeKeeper()
	}
}

// wakeKeeper has it look now.
func (s *Store) wakeKeeper() {
	select {
	case s.keeper.wake <- struct{}{}:
	default:
	}
}

// overQuota says why growth is refused, or "".
func (s *Store) overQuota() string {
	k := &s.keeper
	if k.alarmed.Load() || s.member != nil && k.bytes.Load() >= k.quota {
		return s.fullSentence()
	}
	return ""
}

func (s *Store) fullSentence() string {
	if s.member == nil {
		return "the etcd at the store's endpoints has reached its quota: delete entries, then compact and defragment it and disarm its alarm (etcdctl)"
	}
	bytes, quota := s.keeper.size()
	return fmt.Sprintf("its database takes %d of %d MiB; delete entries (this still works), and it shrinks and takes new ones by itself; or raise quota_mib in the block store", bytes>>20, quota>>20)
}

// keep runs until ctx ends.
func (s *Store) keep(ctx context.Context) {
	for {
		bounded, cancel := context.WithTimeout(ctx, keepTimeout)
		err := s.keepOnce(bounded)
		cancel()
		s.tellOnce(ctx, err)
		select {
		case <-ctx.Done():
			return
		case <-s.keeper.wake:
		case <-time.After(keepEvery):
		}
	}
}

// tellOnce logs a trouble when it is new. What Health says already is not said here.
func (s *Store) tellOnce(ctx context.Context, err error) {
	text := ""
	if err != nil {
		text = err.Error()
	}
	if text != s.keeper.lastErr && text != "" && ctx.Err() == nil && s.trouble() == nil {
		s.log.Warn("looking after the store", "error", text)
	}
	s.keeper.lastErr = text
}

func (s *Store) keepOnce(ctx context.Context) error {
	var renewal error
	if s.keeper.clustered {
		var renewed bool
		if renewed, renewal = s.member.spec.RenewLeaf(s.member.dir, s.now()); renewed {
			s.log.Info("renewed the certificate of the store's member")
		}
	}
	s.keeper.written.Store(0)
	st, err := s.client.Status(ctx, s.endpoint())
	if err != nil {
		return errors.Join(renewal, err)
	}
	s.keeper.bytes.Store(st.DbSize)
	return errors.Join(renewal, s.keepPlace(ctx, st), s.keepRoom(ctx, st))
}

// keepPlace has the cluster know our address, and new members vote once they know everything.
func (s *Store) keepPlace(ctx context.Context, st *clientv3.StatusResponse) error {
	if !s.keeper.clustered || st.IsLearner {
		return nil
	}
	members, err := s.client.MemberList(ctx)
	if err != nil {
		return err
	}
	url := s.member.spec.PeerURL()
	if me := self(members); me != nil && (len(me.PeerURLs) != 1 || me.PeerURLs[0] != url) {
		if _, err := s.client.MemberUpdate(ctx, me.ID, []string{url}); err != nil {
			return fmt.Errorf("tell the store's members of the address %s: %w", s.member.spec.Address, err)
		}
		s.log.Info("the store's member has a new address", "address", s.member.spec.Address)
	}
	if st.Leader != st.Header.MemberId {
		return nil
	}
	for _, m := range members.Members {
		if !m.IsLearner || m.Name == "" {
			continue
		}
		if _, err := s.client.MemberPromote(ctx, m.ID); err == nil {
			s.log.Info("a new member of the store has everything and votes now", "member", m.Name)
		} else if !errors.Is(err, rpctypes.ErrMemberLearnerNotReady) {
			return fmt.Errorf("let the store's member %s vote: %w", m.Name, err)
		}
	}
	return nil
}

// keepRoom gives back what deleted keys and old revisions take, when that pays, and lets etcd
// write again when there is room.
func (s *Store) keepRoom(ctx context.Context, st *clientv3.StatusResponse) error {
	k := &s.keeper
	alarms, err := s.alarms(ctx)
	if err != nil {
		return err
	}
	k.alarmed.Store(len(alarms) > 0)
	short := len(alarms) > 0 || st.DbSize >= k.quota
	if short && st.Header.Revision > k.compacted && s.now().Sub(k.compactedAt) >= compactAgain {
		if err := s.compact(ctx, st.Header.Revision); err != nil {
			return err
		}
		if st, err = s.client.Status(ctx, s.endpoint()); err != nil {
			return err
		}
	}
	free := st.DbSize - st.DbSizeInUse
	if free >= worthDefrag && free > st.DbSizeInUse || short && free > st.DbSize/8 {
		if st, err = s.defragment(ctx, st, alarms); err != nil || st == nil {
			return err
		}
	}
	k.bytes.Store(st.DbSize)
	return s.disarm(ctx, st, alarms)
}

func (s *Store) compact(ctx context.Context, revision int64) error {
	s.keeper.compactedAt = s.now()
	_, err := s.client.Compact(ctx, revision, clientv3.WithCompactPhysical())
	if err != nil && !errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("drop the store's history: %w", err)
	}
	s.keeper.compacted = revision
	return nil
}

// defragment rewrites our own member's database, while no other member does; it returns nil
// if it is not our turn. The member answers nothing meanwhile, so it does not lead then.
func (s *Store) defragment(ctx context.Context, before *clientv3.StatusResponse, alarms []*etcdserverpb.AlarmMember) (after *clientv3.StatusResponse, err error) {
	work := func(ctx context.Context) error {
		if err := s.yieldLead(ctx, before); err != nil {
			return err
		}
		if _, err := s.client.Defragment(ctx, s.endpoint()); err != nil {
			return fmt.Errorf("defragment the store: %w", err)
		}
		after, err = s.client.Status(ctx, s.endpoint())
		if err == nil {
			s.log.Info("defragmented the store", "mib_before", before.DbSize>>20, "mib_after", after.DbSize>>20)
		}
		return err
	}
	if len(alarms) > 0 { // no lock can be written; the alarms are the queue
		if alarms[0].MemberID != before.Header.MemberId && s.now().Sub(s.keeper.alarmedAt) < patience {
			return nil, nil
		}
		err = work(ctx)
		return after, err
	}
	err = s.locked(ctx, "defragment", false, work)
	if errors.Is(err, errLocked) {
		return nil, nil
	}
	return after, err
}

// yieldLead lets another voter lead, if there is one.
func (s *Store) yieldLead(ctx context.Context, st *clientv3.StatusResponse) error {
	if st.Leader != st.Header.MemberId || !s.keeper.clustered {
		return nil
	}
	members, err := s.client.MemberList(ctx)
	if err != nil {
		return err
	}
	for _, m := range members.Members {
		if m.ID == st.Leader || m.IsLearner {
			continue
		}
		if _, err = s.client.MoveLeader(ctx, m.ID); err == nil {
			return nil
		}
	}
	return err
}

// alarms are those of members without room, the lowest id first.
func (s *Store) alarms(ctx context.Context) ([]*etcdserverpb.AlarmMember, error) {
	list, err := s.client.AlarmList(ctx)
	if err != nil {
		return nil, err
	}
	var full []*etcdserverpb.AlarmMember
	for _, a := range list.Alarms {
		switch a.Alarm {
		case etcdserverpb.AlarmType_NOSPACE:
			full = append(full, a)
		case etcdserverpb.AlarmType_CORRUPT:
			return nil, fmt.Errorf("the data of the store's member %x differs from the others': replace it (`assay-server store replace TICKET`)", a.MemberID)
		}
	}
	return full, nil
}

// disarm ends our own alarm once there is room, and others' if they do not.
func (s *Store) disarm(ctx context.Context, st *clientv3.StatusResponse, alarms []*etcdserverpb.AlarmMember) error {
	k := &s.keeper
	switch {
	case len(alarms) == 0:
		k.alarmedAt = time.Time{}
		return nil
	case k.alarmedAt.IsZero():
		k.alarmedAt = s.now()
	}
	if st.DbSize >= k.quota {
		return nil
	}
	left := len(alarms)
	for _, a := range alarms {
		mine := a.MemberID == st.Header.MemberId
		if !mine && (st.Leader != st.Header.MemberId || s.now().Sub(k.alarmedAt) < patience) {
			continue
		}
		if _, err := s.client.AlarmDisarm(ctx, (*clientv3.AlarmMember)(a)); err != nil {
			return fmt.Errorf("let the store write again: %w", err)
		}
		left--
	}
	k.alarmed.Store(left > 0)
	return nil
}
