// SPDX-License-Identifier: Apache-2.0

// Package server wires the parts of the server together and runs them; it decides nothing.
//
//	agents ──TCP──┐                   ┌─▶ nodes ────┐
//	              ├─▶ gate ─▶ api ────┼─▶ entries ──┼─▶ store ─▶ etcd (a child process, or elsewhere)
//	operators ────┘ unix              └─▶ ca ───────┘
package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sync/errgroup"

	"github.com/assay-id/assay/observe"
	"github.com/assay-id/assay/server/api"
	"github.com/assay-id/assay/server/attest"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/keys"
	"github.com/assay-id/assay/server/metrics"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/revocation"
	"github.com/assay-id/assay/server/store"
)

// Server is one server of a trust domain. Make one with New, run it once.
type Server struct {
	conf     *prepared
	log      *slog.Logger
	level    slog.LevelVar // of log
	version  string
	registry *prometheus.Registry
	metrics  *metrics.Instruments
	tracing  *observe.Tracing // nil: off

	streams *api.Streams
	store   *store.Store
	keys    keys.Manager
	ca      *ca.CA
	entries *entries.Registry
	// federation is nil until open has come to it, and then for good.
	federation *federation.Registry
	nodes      *nodes.Registry
	devices    *nodes.Inventory
	svid       *ownSVID
	// revocations are what is revoked, and what this server signed.
	revocations *revocation.Registry
	policies    api.Policies
	api         *api.Server
	onReady     func()
	// continuous asks nodes with a TPM again.
	continuous *attest.Continuous
}

// New checks the configuration. Logs go to out, in lines.
func New(c Config, version string, out io.Writer) (*Server, error) {
	p, err := c.prepare()
	if err != nil {
		return nil, err
	}
	s := &Server{conf: p, version: version, streams: api.NewStreams()}
	s.level.Set(p.level)
	s.onReady = func() {}
	s.log = observe.NewLogger(out, p.LogFormat, &s.level)
	if err := s.instrument(); err != nil {
		return nil, err
	}
	return s, nil
}

// OnReady has f called when agents and operators can connect. Call it before Run.
func (s *Server) OnReady(f func()) { s.onReady = f }

// Alive answers as long as no part of a ready server hangs. A store that can not be reached is no reason to start
// anew: signing goes on without it.
func (s *Server) Alive(context.Context) error {
	s.store.Health()
	s.entries.Revision()
	return nil
}

// openTimeout bounds the start of the store and the reading of everything in it.
const openTimeout = 2 * time.Minute

// Run runs the server until ctx ends.
func (s *Server) Run(ctx context.Context) (err error) {
	defer s.tracing.Close()
	if err := os.MkdirAll(s.conf.DataDir, 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	closeAll, err := s.openAll(ctx)
	defer closeAll()
	if err != nil {
		return err
	}
	tcp, err := net.Listen("tcp", net.JoinHostPort(s.conf.BindAddress, strconv.Itoa(s.conf.BindPort)))
	if errors.Is(err, syscall.EADDRINUSE) {
		return fmt.Errorf("bind_address, bind_port: %w; stop the other program or set another bind_port", err)
	} else if err != nil {
		return fmt.Errorf("bind_address, bind_port: %w", err)
	}
	admin, err := listenAdmin(s.conf.SocketPath)
	if err != nil {
		return errors.Join(err, tcp.Close())
	}
	web, err := s.listenWeb()
	if err != nil {
		return errors.Join(err, tcp.Close(), admin.Close())
	}
	http, err := s.listenHTTP()
	if err != nil {
		return errors.Join(err, tcp.Close(), admin.Close(), closeWeb(web))
	}
	s.log.Info("server is ready", "version", s.version, "trust_domain", s.conf.trustDomain.Name(), "address", tcp.Addr(),
		"admin_socket", s.conf.SocketPath, "allow_without_evidence", s.conf.AllowWithoutEvidence)

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return s.api.Serve(ctx, tcp, admin) })
	group.Go(func() error { return http.Serve(ctx) })
	group.Go(func() error { s.ca.Run(ctx); return nil })
	group.Go(func() error { s.svid.run(ctx, s.log); return nil })
	group.Go(func() error { s.followAuthorities(ctx); return nil })
	for _, l := range web {
		group.Go(func() error { return l.serve(ctx, s) })
	}
	group.Go(func() error { s.federation.Run(ctx); return nil })
	group.Go(func() error { s.watchStore(ctx); return nil })
	group.Go(func() error { s.prune(ctx); return nil })
	group.Go(func() error { s.runPolicies(ctx); return nil })
	s.onReady()
	return group.Wait()
}

// openAll is open, again when the store goes away meanwhile: another server's member that is restarted is
// no reason to end.
func (s *Server) openAll(ctx context.Context) (closeAll func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	for {
		closeAll, err = s.open(ctx)
		if s.store == nil || !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrNewerSchema) {
			return closeAll, err
		}
		s.log.Warn("the store went away during the start; starting again", "reason", err)
		select {
		case <-ctx.Done():
			return closeAll, err
		case <-time.After(healthEvery):
			closeAll()
			s.store = nil
		}
	}
}

// open starts the parts from the bottom up; closeAll ends those that were started.
func (s *Server) open(ctx context.Context) (closeAll func(), err error) {
	var closers []func()
	closeAll = func() {
		for i := len(closers) - 1; i >= 0; i-- {
			closers[i]()
		}
	}
	c := s.conf
	storeConf := c.storeConfig()
	storeConf.Logger = s.log
	s.store, err = store.Open(ctx, storeConf)
	if err != nil {
		return closeAll, err
	}
	closers = append(closers, s.store.Close)
	if err := s.claimStore(ctx); err != nil {
		return closeAll, err
	}
	if err := s.store.Migrate(ctx, migrations); err != nil {
		return closeAll, err
	}
	if err := s.openCA(ctx); err != nil {
		return closeAll, err
	}
	closers = append(closers, s.closeCA)
	if err := s.openRevocations(ctx); err != nil {
		return closeAll, err
	}
	closers = append(closers, s.revocations.Close)
	s.entries, err = entries.Open(ctx, entries.Config{
		Store: s.store, TrustDomain: c.trustDomain, Logger: s.log,
		HasBundle: func(td spiffeid.TrustDomain) bool { return s.federation.HasBundle(td) }, ForeignSelectors: c.ForeignSelectors,
	})
	if err != nil {
		return closeAll, err
	}
	closers = append(closers, s.entries.Close)
	if err := s.openFederation(ctx); err != nil {
		return closeAll, err
	}
	closers = append(closers, s.federation.Close)
	s.nodes, err = nodes.Open(ctx, nodes.Config{Store: s.store, Logger: s.log, ReadmitByAttestation: c.TPM != nil && c.TPM.Readmit == "attestation"})
	if err != nil {
		return closeAll, err
	}
	closers = append(closers, s.nodes.Close)
	if s.devices, err = nodes.OpenInventory(ctx, s.store, s.log, time.Now); err != nil {
		return closeAll, err
	}
	closers = append(closers, s.devices.Close)
	if s.svid, err = newOwnSVID(s.ca); err != nil {
		return closeAll, err
	}
	s.continuous = &attest.Continuous{
		Nodes: s.nodes, Rules: &attest.Rules{Groups: c.groups, Devices: s.devices}, Interval: c.requoteInterval, Memory: attest.NewMemory(c.imaMemory),
		Now: time.Now, Rand: rand.Reader, Logger: s.log,
	}
	if s.policies, err = s.openPolicies(); err != nil {
		return closeAll, err
	}
	s.api = api.New(api.Config{
		TrustDomain: c.trustDomain, Entries: s.entries, Signer: countedSigner{s.ca, s.metrics.Signed}, Federation: s.federation, Revocations: s.revocations, Nodes: s.nodes, Inventory: s.devices, Continuous: countedContinuous{s.continuous, s.metrics.Requoted}, EKRoots: c.ekRoots, Attestors: s.attestors(),
		AllowWithoutEvidence: c.AllowWithoutEvidence, ServerSVID: s.svid.get, Streams: s.streams, AdminIDs: c.adminIDs, Roles: c.roles, Limits: c.limits, Options: append(s.tracing.Server(true), s.metrics.Calls.Options()...), Policies: s.policies, Logger: s.log, Level: &s.level,
	})
	closers = append(closers, s.nodes.OnChange(func(agent spiffeid.ID) {
		s.entries.NodeChanged(agent)
		s.streams.NodeChanged(agent)
		s.revokeOf(agent)
	}))
	return closeAll, s.revokeRefused()
}

// claimStore refuses a store with another trust domain's entries.
func (s *Server) claimStore(ctx context.Context) error {
	const key = "m/trust_domain"
	name := s.conf.trustDomain.Name()
	_, err := s.store.Commit(ctx, store.Txn{Compares: []store.Compare{store.Unchanged(key, 0)}, Puts: []store.KV{{Key: key, Value: []byte(name)}}, Essential: true})
	if err == nil || !errors.Is(err, store.ErrConflict) {
		return err
	}
	kvs, _, err := s.store.Snapshot(ctx, key)
	if err != nil {
		return err
	}
	if len(kvs) != 1 || string(kvs[0].Value) != name {
		return fmt.Errorf("the store is not of trust domain %s: correct trust_domain, or choose another data_dir or store prefix", name)
	}
	return nil
}

func (s *Server) attestors() []api.Attestor {
	var as []api.Attestor
	if s.conf.tpm != nil {
		policy := *s.conf.tpm
		policy.Inventory, policy.Pending = s.devices, s.conf.TPM.Pending
		as = append(as, &attest.TPM{TrustDomain: s.conf.trustDomain, Policy: &policy, Rules: s.continuous.Rules, Continuous: s.continuous, Memory: s.continuous.Memory, Now: time.Now, Rand: rand.Reader})
	}
	if s.conf.devid != nil {
		as = append(as, s.conf.devid)
	}
	if s.conf.x509pop != nil {
		as = append(as, s.conf.x509pop)
	}
	if s.conf.JoinToken != nil {
		as = append(as, &attest.JoinToken{TrustDomain: s.conf.trustDomain, Tokens: s.nodes})
	}
	for i, a := range as {
		as[i] = countedAttestor{a, s.metrics.Attested}
	}
	return as
}

const (
	healthEvery = time.Second
	pruneEvery  = 30 * time.Second
)

// watchStore tells the log and the health service when the store comes and goes.
func (s *Server) watchStore(ctx context.Context) {
	last := ""
	for {
		h := s.store.Health()
		s.api.SetHealth("store", h.Ready)
		switch {
		case h.Reason == last:
		case h.Reason == "":
			s.log.Info("the store is well again")
		default:
			s.log.Warn("the store has trouble", "reason", h.Reason, "age", h.Age.Round(time.Second), "max_replica_age", s.conf.maxAge)
		}
		last = h.Reason
		select {
		case <-ctx.Done():
			return
		case <-time.After(healthEvery):
		}
	}
}

// prune removes expired entries and join tokens.
func (s *Server) prune(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pruneEvery):
		}
		n, err := s.entries.Prune(ctx)
		tokens, tokenErr := s.nodes.PruneJoinTokens(ctx)
		pending, pendingErr := s.nodes.PrunePending(ctx)
		if err := errors.Join(err, tokenErr, pendingErr); err != nil {
			s.log.Warn("can not remove what has expired; trying again", "error", err)
		}
		if n+tokens+pending > 0 {
			s.log.Info("removed what has expired", "entries", n, "join_tokens", tokens, "pending_nodes", pending)
		}
	}
}

// listenAdmin opens the operators' socket. A file that an earlier run left is replaced.
func listenAdmin(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return nil, fmt.Errorf("socket_path: %w", err)
	}
	if st, err := os.Lstat(path); err == nil && st.Mode().Type() == os.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("socket_path: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("socket_path: %w", err)
	}
	if err := os.Chmod(path, 0o770); err != nil {
		return nil, errors.Join(fmt.Errorf("socket_path: %w", err), l.Close())
	}
	return l, nil
}
