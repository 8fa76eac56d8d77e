// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/assay-id/assay/server/store/member"
)

// MaxOps is how many puts and deletes one Txn may hold.
const MaxOps = member.MaxOps

const commitTimeout = 10 * time.Second

// Txn is written as a whole or not at all. A key may appear once among Puts and Deletes.
type Txn struct {
	Compares []Compare
	Puts     []KV // Revision is ignored
	Deletes  []string
	// Essential writes go on below the disk floor: what keeps admitted agents and signing
	// alive. So do transactions that delete.
	Essential bool
}

// Compare is a condition on a key's revision; make one with Unchanged or NotAfter.
type Compare struct {
	key      string
	revision int64
	op       string
}

// Unchanged holds if the key's last change is exactly revision; 0 means that the key must
// not exist.
func Unchanged(key string, revision int64) Compare { return Compare{key, revision, "="} }

// NotAfter holds if the key has not been written after revision, or does not exist.
func NotAfter(key string, revision int64) Compare { return Compare{key, revision + 1, "<"} }

// ConflictError says how far a replica must have come to see what was in the way.
type ConflictError struct {
	// Revision of the newest change among the compared keys; 0 if they are all deleted.
	Revision int64
}

func (e *ConflictError) Error() string {
	return fmt.Sprintf("%v (revision %d)", ErrConflict, e.Revision)
}

// Is makes errors.Is(err, ErrConflict) hold.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// Commit writes the transaction durably and returns the revision of the change. Errors:
// *ConflictError, ErrUnavailable, ErrFull, ErrNewerSchema.
func (s *Store) Commit(ctx context.Context, txn Txn) (int64, error) {
	revision, verdicts, err := s.CommitEach(ctx, nil, []Txn{txn})
	if err == nil {
		err = verdicts[0]
	}
	if err != nil {
		return 0, err
	}
	return revision, nil
}

// CommitEach writes transactions that share no key, each on its own merits, in one step, if what they have
// in common holds. It returns the revision of the change, and for each transaction nil, its *ConflictError,
// or why it was refused beforehand (ErrFull). Other errors are of all of them; a *ConflictError is of common.
func (s *Store) CommitEach(ctx context.Context, common []Compare, txns []Txn) (revision int64, verdicts []error, err error) {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	all := slices.Clone(common)
	schema := s.schema.Load()
	if schema != 0 {
		all = append(all, Unchanged(schemaKey, schema))
	}
	var each []clientv3.Op
	var number []int // in txns
	verdicts = make([]error, len(txns))
	room := sync.OnceValue(s.room)
	for i := range txns {
		if verdicts[i] = s.admit(&txns[i], room); verdicts[i] == nil {
			conds, reads := s.compares(txns[i].Compares)
			each = append(each, clientv3.OpTxn(conds, s.operations(&txns[i]), reads))
			number = append(number, i)
		}
	}
	if len(each) == 0 {
		return 0, verdicts, nil
	}
	conds, reads := s.compares(all)
	began := s.now()
	resp, err := s.client.Txn(ctx).If(conds...).Then(each...).Else(reads...).Commit()
	if err == nil {
		s.pace.took(s.now().Sub(began), s.now())
	}
	switch {
	case errors.Is(err, rpctypes.ErrNoSpace):
		s.wakeKeeper()
		return 0, nil, fmt.Errorf("%w: %s", ErrFull, s.fullSentence())
	case err != nil:
		return 0, nil, s.unavailable(err)
	case !resp.Succeeded && conflict(resp.Responses[len(common):]).Revision == schema:
		return 0, nil, conflict(resp.Responses[:len(common)])
	case !resp.Succeeded:
		return 0, nil, fmt.Errorf("%w: %w: a newer assay-server has brought it further; upgrade this one", ErrUnavailable, ErrNewerSchema)
	}
	for i, r := range resp.Responses {
		if one := r.GetResponseTxn(); !one.Succeeded {
			verdicts[number[i]] = conflict(one.Responses)
		} else {
			s.wrote(&txns[number[i]])
		}
	}
	return resp.Header.Revision, verdicts, nil
}

// admit refuses early what can only fail.
func (s *Store) admit(txn *Txn, room func() error) error {
	if n := len(txn.Puts) + len(txn.Deletes); n > MaxOps {
		return fmt.Errorf("transaction of %d operations: the most is %d", n, MaxOps)
	}
	if err := s.trouble(); err != nil {
		return err
	}
	if txn.Essential || len(txn.Deletes) > 0 {
		return nil
	}
	return room()
}

// room reports whether there is any for writes that are not Essential and free nothing.
func (s *Store) room() error {
	if why := s.overQuota(); why != "" {
		return fmt.Errorf("%w: %s", ErrFull, why)
	}
	if s.disk == nil {
		return nil
	}
	free, floor, err := s.disk.room()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if free < floor {
		return fmt.Errorf("%w: %s", ErrFull, s.disk.sentence(free, floor))
	}
	return nil
}

func (s *Store) compares(cs []Compare) (conds []clientv3.Cmp, reads []clientv3.Op) {
	for _, c := range cs {
		key := s.prefix + c.key
		conds = append(conds, clientv3.Compare(clientv3.ModRevision(key), c.op, c.revision))
		reads = append(reads, clientv3.OpGet(key, clientv3.WithKeysOnly()))
	}
	return conds, reads
}

func (s *Store) operations(txn *Txn) []clientv3.Op {
	ops := make([]clientv3.Op, 0, len(txn.Puts)+len(txn.Deletes))
	for _, p := range txn.Puts {
		ops = append(ops, clientv3.OpPut(s.prefix+p.Key, string(p.Value)))
	}
	for _, key := range txn.Deletes {
		ops = append(ops, clientv3.OpDelete(s.prefix+key))
	}
	return ops
}

func conflict(reads []*etcdserverpb.ResponseOp) *ConflictError {
	e := &ConflictError{}
	for _, r := range reads {
		for _, kv := range r.GetResponseRange().GetKvs() {
			e.Revision = max(e.Revision, kv.ModRevision)
		}
	}
	return e
}
