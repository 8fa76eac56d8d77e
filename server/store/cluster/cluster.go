// SPDX-License-Identifier: Apache-2.0

// Package cluster is what operators do to a store's members: make a cluster, let a member in,
// replace or remove one, see them, back up and restore. It works on the folder of the store on
// this machine, and through its member's socket while the server runs.
package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/assay-id/assay/server/store/member"
)

// Config is the store on this machine.
type Config struct {
	// Dir, absolute, and Prefix as in store.Config.
	Dir, Prefix string
	// TrustDomain that the server serves.
	TrustDomain string
	// Name and Address of this member as in store.Cluster; empty if it is alone.
	Name, Address string
}

// Init makes the store on this machine, with all that is in it, the first member of a cluster.
// The server must be stopped.
func Init(c Config, now time.Time) error {
	if err := c.needCluster(); err != nil {
		return err
	}
	if err := member.MakeDirs(c.Dir); err != nil {
		return err
	}
	lock, err := member.LockServer(c.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	_, err = member.ReadAuthority(c.Dir)
	switch {
	case err == nil:
		return fmt.Errorf("the store in %s is in a cluster already; see `assay-server store members`", c.Dir)
	case !errors.Is(err, os.ErrNotExist):
		return err
	}
	a, err := member.NewAuthority(c.TrustDomain, now)
	if err != nil {
		return fmt.Errorf("make the authority of the store's members: %w", err)
	}
	return a.Write(c.Dir)
}

func (c Config) needCluster() error {
	if c.Name == "" {
		return errors.New(`the configuration has no block cluster { name = "a"  address = "10.0.0.1:8082" }: add it first`)
	}
	return nil
}

// connect reaches the member of the server that runs on this machine.
func (c Config) connect() (*clientv3.Client, error) {
	socket := member.Socket(c.Dir)
	if _, err := os.Stat(socket); err != nil {
		return nil, fmt.Errorf("no assay-server runs with the store in %s (%w): start it first", c.Dir, err)
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"unix://" + filepath.ToSlash(socket)}, Logger: zap.NewNop(), MaxCallRecvMsgSize: math.MaxInt32,
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the store: %w", err)
	}
	return client, nil
}

const callTimeout = 10 * time.Second

// Roles of a member.
const (
	Leader  = "leader"
	Voter   = "voter"
	Learner = "learner" // receives the content; votes by itself once it has all of it
	Invited = "invited" // has not been started yet
)

// Member is one of the store's.
type Member struct {
	ID            uint64
	Name, Address string
	Role          string
	// Self is on this machine.
	Self bool
	// Trouble is why this machine does not reach it; "" if it does.
	Trouble string
}

// Members lists them by name, and asks each whether it answers.
func Members(ctx context.Context, c Config) ([]Member, error) {
	client, err := c.connect()
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return c.members(ctx, client)
}

func (c Config) members(ctx context.Context, client *clientv3.Client) ([]Member, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	st, err := client.Status(ctx, client.Endpoints()[0])
	if err != nil {
		return nil, fmt.Errorf("ask the store's member on this machine: %w", err)
	}
	// Also without a majority, when it is most needed.
	list, err := client.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return nil, fmt.Errorf("list the store's members: %w", explain(err))
	}
	var all []Member
	for _, m := range list.Members {
		all = append(all, describe(m, st))
	}
	c.reach(ctx, all)
	slices.SortFunc(all, func(a, b Member) int { return strings.Compare(a.Name+" "+a.Address, b.Name+" "+b.Address) })
	return all, nil
}

func describe(m *etcdserverpb.Member, st *clientv3.StatusResponse) Member {
	d := Member{ID: m.ID, Name: m.Name, Role: Voter, Self: m.ID == st.Header.MemberId}
	for _, u := range m.PeerURLs {
		d.Address = strings.TrimPrefix(u, "https://")
	}
	switch {
	case m.Name == "":
		d.Role = Invited
	case m.IsLearner:
		d.Role = Learner
	case m.ID == st.Leader:
		d.Role = Leader
	}
	return d
}

// reach fills in Trouble.
func (c Config) reach(ctx context.Context, all []Member) {
	tlsConfig, err := member.PeerTLS(c.Dir, c.TrustDomain)
	if err != nil { // alone: there is no other
		return
	}
	done := make(chan struct{})
	for i := range all {
		m := &all[i]
		go func() {
			defer func() { done <- struct{}{} }()
			if !m.Self {
				m.Trouble = ask(ctx, m.Address, tlsConfig)
			}
		}()
	}
	for range all {
		<-done
	}
}

func ask(ctx context.Context, address string, tlsConfig *tls.Config) string {
	transport := &http.Transport{TLSClientConfig: tlsConfig, DisableKeepAlives: true}
	client := &http.Client{Transport: transport, Timeout: 2 * time.Second}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+address+"/version", nil)
	if err != nil {
		return err.Error()
	}
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	_ = resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return resp.Status
	}
	return ""
}

// Remove takes a member, by name or address, out of the cluster for good. The others must be a
// majority without it.
func Remove(ctx context.Context, c Config, name string) error {
	client, err := c.connect()
	if err != nil {
		return err
	}
	defer client.Close()
	all, err := c.members(ctx, client)
	if err != nil {
		return err
	}
	m, err := find(all, name)
	if err != nil {
		return err
	}
	if m.Self {
		return fmt.Errorf("%s is the member on this machine: remove it from another one", name)
	}
	return remove(ctx, client, m)
}

func find(all []Member, name string) (Member, error) {
	for _, m := range all {
		if m.Name == name || m.Address == name {
			return m, nil
		}
	}
	return Member{}, fmt.Errorf("the store has no member %q; see `assay-server store members`", name)
}

func remove(ctx context.Context, client *clientv3.Client, m Member) error {
	err := change(ctx, func(ctx context.Context) error {
		_, err := client.MemberRemove(ctx, m.ID)
		return err
	})
	if err != nil {
		return fmt.Errorf("remove the store's member %s: %w", m.Name, explain(err))
	}
	return nil
}

// settling is how long etcd refuses to change a cluster whose members have only just met (5 s),
// and some.
const settling = 12 * time.Second

// change changes the membership; it waits until members that have just started are trusted.
func change(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout+settling)
	defer cancel()
	for deadline := time.Now().Add(settling); ; {
		err := f(ctx)
		if !errors.Is(err, rpctypes.ErrUnhealthy) || time.Now().After(deadline) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// explain adds what to do to etcd's refusals.
func explain(err error) error {
	switch {
	case errors.Is(err, rpctypes.ErrUnhealthy), errors.Is(err, rpctypes.ErrMemberNotEnoughStarted):
		return fmt.Errorf("%w: too few of the other members are there; see `assay-server store members`, and start those that are down", err)
	case errors.Is(err, rpctypes.ErrTooManyLearners):
		return fmt.Errorf("%w: another member is still joining; wait until it votes, or remove it", err)
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%w: the store has no majority; start the members that are down, or restore a backup", err)
	}
	return err
}
