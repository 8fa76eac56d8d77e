// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// Status is how the store on this machine is.
type Status struct {
	// Members as Members lists them.
	Members []Member
	// Revision of the last change that this machine's member has, and Term, which rises with every election.
	Revision int64
	Term     uint64
	// Behind is how many of the log's records this machine's member has not applied yet.
	Behind uint64
	// DatabaseBytes on this machine's disk, UsedBytes of them, and LimitBytes at which nothing is written any more: the
	// quota of the configuration and an eighth.
	DatabaseBytes, UsedBytes, LimitBytes int64
	// Alarms of members that stopped all writing, in words.
	Alarms []string
}

// Look asks the member on this machine, which may be cut off from the others.
func Look(ctx context.Context, c Config) (Status, error) {
	client, err := c.connect()
	if err != nil {
		return Status{}, err
	}
	defer client.Close()
	members, err := c.members(ctx, client)
	if err != nil {
		return Status{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	st, err := client.Status(ctx, client.Endpoints()[0])
	if err != nil {
		return Status{}, fmt.Errorf("ask the store's member on this machine: %w", err)
	}
	s := Status{
		Members: members, Revision: st.Header.Revision, Term: st.RaftTerm, Behind: st.RaftIndex - min(st.RaftAppliedIndex, st.RaftIndex),
		DatabaseBytes: st.DbSize, UsedBytes: st.DbSizeInUse, LimitBytes: st.DbSizeQuota,
	}
	alarms, err := client.AlarmList(ctx)
	if err != nil { // it takes a majority
		s.Alarms = []string{"not known: " + explain(err).Error()}
		return s, nil
	}
	for _, a := range alarms.Alarms {
		name := fmt.Sprintf("%x", a.MemberID)
		for _, m := range members {
			if m.ID == a.MemberID {
				name = m.Name
			}
		}
		switch a.Alarm {
		case etcdserverpb.AlarmType_NOSPACE:
			s.Alarms = append(s.Alarms, name+" has reached its limit; deletes make room")
		case etcdserverpb.AlarmType_CORRUPT:
			s.Alarms = append(s.Alarms, name+" has other data than the rest: replace it")
		}
	}
	return s, nil
}
