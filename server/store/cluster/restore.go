// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/server/store/member"
)

// revisionsAhead is how far a restored store is ahead of its backup: further than the store
// that was lost can have come since, so that no revision means two things. Whoever resumes from
// one of the lost revisions is told that it is gone, and reads everything again.
const revisionsAhead = 1_000_000_000

// Restore makes a store from a backup on a machine that has none. It is alone at first: Init
// and Invite make a cluster of it again. It refuses a backup of another trust domain.
func Restore(c Config, path string) error {
	if err := member.MakeDirs(c.Dir); err != nil {
		return err
	}
	lock, err := member.LockServer(c.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	final := member.DataDir(c.Dir)
	if _, err := os.Stat(final); !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s holds a store already: move it away first", c.Dir)
	}
	if _, err := member.ReadAuthority(c.Dir); err == nil {
		return fmt.Errorf("%s is of a member of a cluster: move it away first", c.Dir)
	}
	building := final + ".restoring" // what a crash leaves is no store, and is made anew
	if err := os.RemoveAll(building); err != nil {
		return err
	}
	defer os.RemoveAll(building)
	if err := c.build(building, path); err != nil {
		return fmt.Errorf("restore %s: %w", path, err)
	}
	if err := os.Rename(building, final); err != nil {
		return err
	}
	return member.SyncDir(c.Dir)
}

// build makes etcd's folder: the database, and a log that begins after it. So a member that
// joins later is sent the database, which the log says nothing of.
func (c Config) build(dir, backup string) error {
	snaps := filepath.Join(dir, "member", "snap")
	if err := os.MkdirAll(snaps, 0o700); err != nil {
		return err
	}
	path := filepath.Join(snaps, "db")
	if err := copyDatabase(backup, path); err != nil {
		return err
	}
	m, cluster, err := newMember()
	if err != nil {
		return err
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType})
	if err != nil {
		return fmt.Errorf("open its database: %w", err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		if err := c.sameTrustDomain(tx); err != nil {
			return err
		}
		return rewrite(tx, m)
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	return writeLog(filepath.Join(dir, "member", "wal"), m, cluster)
}

// newMember is the only one of a new cluster, which members of the lost one can not be mistaken
// for: its ids are new.
func newMember() (*membership.Member, *membership.RaftCluster, error) {
	urls, err := types.NewURLsMap(member.AloneName + "=" + member.Spec{}.PeerURL())
	if err != nil {
		return nil, nil, err
	}
	token := "assay-" + rand.Text()
	cl, err := membership.NewClusterFromURLsMap(zap.NewNop(), token, urls)
	if err != nil {
		return nil, nil, err
	}
	return cl.MemberByName(member.AloneName), cl, nil
}

// sameTrustDomain looks for the newest value of the key that names it.
func (c Config) sameTrustDomain(tx *bbolt.Tx) error {
	keys := tx.Bucket(schema.Key.Name())
	if keys == nil {
		return errNotBackup
	}
	found := ""
	err := keys.ForEach(func(_, v []byte) error {
		var kv mvccpb.KeyValue
		if err := proto.Unmarshal(v, &kv); err != nil {
			return fmt.Errorf("read its database: %w", err)
		}
		if string(kv.Key) == c.Prefix+"m/trust_domain" {
			found = string(kv.Value)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if found != c.TrustDomain {
		return fmt.Errorf("it is of trust domain %q and this server of %q", found, c.TrustDomain)
	}
	return nil
}

// rewrite forgets the cluster that the database was of, and moves its revision ahead.
func rewrite(tx *bbolt.Tx, m *membership.Member) error {
	for _, bucket := range [][]byte{schema.Members.Name(), schema.MembersRemoved.Name(), schema.Alarm.Name()} {
		if err := tx.DeleteBucket(bucket); err != nil && !errors.Is(err, bolterrors.ErrBucketNotFound) {
			return err
		}
		if _, err := tx.CreateBucket(bucket); err != nil {
			return err
		}
	}
	self, err := json.Marshal(m)
	if err != nil {
		return err
	}
	if err := tx.Bucket(schema.Members.Name()).Put(schema.BackendMemberKey(m.ID), self); err != nil {
		return err
	}
	meta := tx.Bucket(schema.Meta.Name())
	last, _ := tx.Bucket(schema.Key.Name()).Cursor().Last()
	if meta == nil || len(last) < len(mvcc.NewRevBytes()) {
		return errNotBackup
	}
	ahead := mvcc.BytesToRev(last).Main + revisionsAhead
	if scheduled := meta.Get(schema.ScheduledCompactKeyName); scheduled != nil {
		ahead = max(ahead, mvcc.BytesToRev(scheduled).Main+revisionsAhead)
	}
	state, err := json.Marshal(&raftpb.ConfState{Voters: []uint64{uint64(m.ID)}})
	if err != nil {
		return err
	}
	one := []byte{0, 0, 0, 0, 0, 0, 0, 1} // index and term of the log's first entry
	return errors.Join(
		meta.Put(schema.MetaConsistentIndexKeyName, one),
		meta.Put(schema.MetaTermKeyName, one),
		meta.Put(schema.MetaConfStateName, state),
		// etcd takes up at this revision, and drops the history before it.
		meta.Put(schema.ScheduledCompactKeyName, mvcc.RevToBytes(mvcc.Revision{Main: ahead}, mvcc.NewRevBytes())),
	)
}

// writeLog begins the log with the member itself, and says that the database includes that.
func writeLog(dir string, m *membership.Member, cluster *membership.RaftCluster) error {
	id := uint64(m.ID)
	metadata, err := proto.Marshal(&etcdserverpb.Metadata{NodeID: &id, ClusterID: new(uint64(cluster.ID()))})
	if err != nil {
		return err
	}
	self, err := json.Marshal(m)
	if err != nil {
		return err
	}
	change, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: &id, Context: self})
	if err != nil {
		return err
	}
	w, err := wal.Create(zap.NewNop(), dir, metadata)
	if err != nil {
		return fmt.Errorf("begin a log: %w", err)
	}
	one := new(uint64(1))
	err = w.Save(&raftpb.HardState{Term: one, Vote: &id, Commit: one},
		[]*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Term: one, Index: one, Data: change}})
	if err == nil {
		err = w.SaveSnapshot(&walpb.Snapshot{Index: one, Term: one, ConfState: &raftpb.ConfState{Voters: []uint64{id}}})
	}
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("begin a log: %w", err)
	}
	return nil
}
