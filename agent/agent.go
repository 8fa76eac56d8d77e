// SPDX-License-Identifier: Apache-2.0

// Package agent wires the parts of the agent together and runs them; it decides nothing.
//
//	bpf ─▶ caller ─▶ attest ─▶ workloadapi ─▶ workloads      (T3: no bpf)
//	                              ▲
//	tpm/device ─▶ upstream ◀──▶ svids
package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/agent/attest"
	"github.com/assay-id/assay/agent/caller"
	"github.com/assay-id/assay/agent/clock"
	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/history"
	"github.com/assay-id/assay/agent/keep"
	"github.com/assay-id/assay/agent/limits"
	"github.com/assay-id/assay/agent/metrics"
	"github.com/assay-id/assay/agent/operate"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/upstream"
	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/observe"
	adminpb "github.com/assay-id/assay/proto/agentadmin"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/device"
)

// Agent is one node's agent. Make one with New, run it once.
type Agent struct {
	conf    *prepared
	version string
	log     *slog.Logger
	level   slog.LevelVar

	evidence evidence
	sensor   *bpf.Sensor // nil at T3, and blind says why
	blind    error
	attestor *attest.Attestor
	server   *upstream.Client
	svids    *svids.Manager
	tpm      *device.Device // nil: none is used
	offline  *keep.Keeper   // nil: nothing is kept over a restart
	history  *history.Log
	memory   *delivery.Memory
	streams  atomic.Int32
	turns    *limits.Turns // of attestations
	registry *prometheus.Registry
	metrics  *metrics.Instruments
	tracing  *observe.Tracing // nil: off
	onReady  func()
}

// evidence is where facts about processes come from: the sensor, or caller.Peers at T3.
type evidence interface {
	caller.Binder
	attest.Sensor
}

// New checks the configuration. version is the agent's own, for the server to know; logs go
// to out, in lines.
func New(c Config, version string, out io.Writer) (*Agent, error) {
	p, err := c.prepare()
	if err != nil {
		return nil, err
	}
	a := &Agent{conf: p, version: version, onReady: func() {}, memory: delivery.NewMemory()}
	a.level.Set(p.level)
	a.log = observe.NewLogger(out, p.LogFormat, &a.level)
	return a, a.instrument()
}

// OnReady has f called when workloads can connect, whether or not the server can be reached. Call it before Run.
func (a *Agent) OnReady(f func()) { a.onReady = f }

// Alive answers as long as no part of a ready agent hangs.
func (a *Agent) Alive(ctx context.Context) error {
	_, err := (&adminServer{a: a}).Status(ctx, nil)
	return err
}

// Run runs the agent until ctx ends. The sensor's records stay in the kernel for the next run.
func (a *Agent) Run(ctx context.Context) (err error) {
	defer a.tracing.Close()
	if err := os.MkdirAll(a.conf.DataDir, 0o700); err != nil {
		return fmt.Errorf("data_dir: %w", err)
	}
	if err := a.findEvidence(); err != nil {
		return err
	}
	if a.sensor != nil {
		defer func() { err = errors.Join(err, a.sensor.Close()) }()
	}

	if a.history, err = history.Open(a.conf.DataDir, a.log); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, a.history.Close()) }()

	attestor, closeTPM, err := a.nodeAttestor(ctx)
	if err != nil {
		return err
	}
	defer closeTPM()
	a.server = upstream.New(upstream.Config{
		Servers: a.conf.servers, TrustDomain: a.conf.trustDomain, Bootstrap: a.conf.bootstrap, Rebootstrap: a.conf.rebootstrap,
		Attestor: attestor, History: a.history, Version: a.version, DataDir: a.conf.DataDir, Logger: a.log, Now: time.Now,
	})
	a.svids = svids.New(svids.Config{Signer: countedSigner{a.server, a.metrics.Signed}, KeyType: a.conf.keyType, Alive: a.runs, Connected: a.server.Connected, Logger: a.log, Now: time.Now})
	a.server.SetSink(a.svids)
	a.attestor = attest.New(a.evidence, a.log)
	defer func() { err = errors.Join(err, a.attestor.Close()) }()

	if err := a.openOffline(); err != nil {
		return err
	}
	faces, err := a.listen(ctx)
	if err != nil {
		return err
	}
	others, err := a.listenOthers(ctx)
	if err != nil {
		return errors.Join(err, closeFaces(faces))
	}
	http, err := a.listenHTTP()
	if err != nil {
		return errors.Join(err, closeFaces(faces), closeServed(others))
	}
	return a.serve(ctx, faces, others, http)
}

// findEvidence loads the sensor. Without one it goes on at T3 where minimum_tier allows that by name.
func (a *Agent) findEvidence() (err error) {
	a.sensor, err = bpf.Load(a.conf.sensor(a.log))
	if err == nil {
		a.evidence = a.sensor
		a.log.Info("kernel sensor is on", "tier", a.sensor.Tier())
		return nil
	}
	if a.conf.tier > selectors.TierT3 {
		return err
	}
	peers, errPeers := caller.NewPeers()
	if errPeers != nil {
		return errors.Join(err, errPeers)
	}
	a.sensor, a.blind, a.evidence = nil, err, peers
	a.log.Warn("there is no kernel sensor; going on with what /proc tells, as minimum_tier allows", "tier", peers.Tier(), "because", err)
	return nil
}

// listenOthers opens what is not for workloads: the admin socket, for root alone, and what brokers reach.
func (a *Agent) listenOthers(ctx context.Context) ([]served, error) {
	admin, err := listenUnix("admin_socket_path", a.conf.AdminSocketPath, 0o700, nil)
	if err != nil {
		return nil, err
	}
	operators := grpc.NewServer()
	adminpb.RegisterAgentAdminServer(operators, &adminServer{a: a})
	operate.Register(operators, operate.Config{Identity: a.server, Counts: a.svids.Counts, Started: time.Now(), Level: &a.level, Launch: a.conf.level, Logger: a.log, Now: time.Now})
	list := []served{{operators, admin}}
	brokers, err := a.listenBrokers(ctx)
	if err != nil {
		return nil, errors.Join(err, closeServed(list))
	}
	return append(list, brokers...), nil
}

func (a *Agent) serve(ctx context.Context, faces []*face, servers []served, http *observe.Endpoints) error {
	for _, f := range faces {
		servers = append(servers, served{f.server, f.listener})
	}

	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return a.server.Run(ctx) })
	if a.offline != nil {
		group.Go(func() error { return a.offline.Run(ctx) })
	}
	group.Go(func() error { return http.Serve(ctx) })
	group.Go(func() error {
		return clock.Watch(ctx, func() {
			a.server.ClockSet()
			a.svids.ClockSet()
		})
	})
	if a.sensor != nil {
		group.Go(func() error { return a.followEvents(ctx, faces) })
	}
	for _, s := range servers {
		group.Go(func() error { return s.server.Serve(s.listener) })
		group.Go(func() error {
			<-ctx.Done()
			s.server.Stop()
			return nil
		})
	}
	a.onReady()
	if err := group.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func (a *Agent) followEvents(ctx context.Context, faces []*face) error {
	refused := refusals{tasks: a.sensor, log: a.log, now: time.Now}
	early := a.prefetch(ctx)
	return a.sensor.Events(ctx, func(e record.Event) {
		switch e.Kind {
		case record.EventRefused:
			refused.report(e)
			return
		case record.EventExec:
			early(e.Process)
		}
		for _, f := range faces {
			f.listener.Notify(e)
		}
	})
}
