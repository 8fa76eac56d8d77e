// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/assay-id/assay/agent/caller"
	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/life"
	"github.com/assay-id/assay/agent/metrics"
	"github.com/assay-id/assay/agent/svids"
	"github.com/assay-id/assay/agent/trust"
	"github.com/assay-id/assay/observe"
	"github.com/assay-id/assay/selectors"
)

// instrument makes what counts, before anything happens.
func (a *Agent) instrument() (err error) {
	a.registry = observe.NewRegistry(metrics.Namespace, a.version)
	kinds := []string{svids.X509.String(), svids.JWT.String(), svids.WIT.String()}
	reasons := []string{delivery.NoEntry, delivery.ByServer, delivery.NoFacts}
	for _, r := range caller.Reasons() {
		reasons = append(reasons, string(r))
	}
	a.metrics = metrics.New(a.registry, kinds, reasons)
	a.memory.OnDenial(a.metrics.CallerRefused)
	a.tracing, err = observe.NewTracing(a.conf.Tracing, "assay-agent", a.version, a.log)
	a.conf.servers.Use(a.tracing.Client()...)
	return err
}

// listenHTTP opens what operators and their tools look at. All that a scrape reads is there by now.
func (a *Agent) listenHTTP() (*observe.Endpoints, error) {
	metrics.Register(a.registry, a.state)
	return observe.Listen(observe.Config{
		Metrics: a.conf.Metrics, Health: a.conf.Health, Socket: observe.SocketBeside(a.conf.AdminSocketPath), Registry: a.registry,
		Checks: observe.Checks{Live: a.Alive, Ready: a.parts}, Logger: a.log,
	})
}

// state is what a scrape reads.
func (a *Agent) state() metrics.State {
	known := a.svids.State()
	s := metrics.State{
		Tier: a.evidence.Tier().String(), Connected: a.server.Connected(), Conversation: string(a.server.State().State), FailingSince: known.Failing.Since,
		Entries: known.Entries, SVIDs: known.SVIDs, Subscriptions: known.Subscriptions, Streams: int(a.streams.Load()),
		Revision: known.Revision, Synced: known.Synced, FirstSVIDEnds: a.svids.FirstEnd(),
	}
	for _, state := range life.States() {
		s.States = append(s.States, string(state))
	}
	if _, until, ok := a.server.Identity(); ok {
		s.NodeSVIDEnds = until
	}
	if a.sensor != nil {
		s.Sensor = &metrics.Sensor{LostEvents: a.sensor.Lost(), Refused: a.sensor.Refused(), Hooks: map[string]int{}}
		for _, h := range a.sensor.Hooks() {
			s.Sensor.Hooks[string(h.State)]++
		}
	}
	return s
}

// parts tell how the agent is. It works as long as it can answer workloads, the server's presence or not.
func (a *Agent) parts(context.Context) map[string]observe.Part {
	p := map[string]observe.Part{"workload_api": {}, "server": {}, "renewal": {}, "sensor": {}}
	select {
	case <-a.svids.Ready():
	default:
		p["workload_api"] = observe.Part{Fault: errors.New("the agent has no entries and bundle from the server yet"), Hinders: true}
	}
	if now := a.server.State(); now.State != life.Following {
		p["server"] = observe.Part{Fault: fmt.Errorf("the agent is %s, and not following the server: %s", now.State, cmp.Or(now.Reason, "it has just begun"))}
	}
	if f := a.svids.State().Failing; !f.Since.IsZero() {
		p["renewal"] = observe.Part{Fault: fmt.Errorf("SVIDs are not renewed since %s: %s", f.Since.UTC().Format(time.RFC3339), f.Error)}
	}
	if a.sensor == nil {
		p["sensor"] = observe.Part{Fault: a.blind}
	}
	return p
}

// countedSigner counts what the server is asked to sign.
type countedSigner struct {
	svids.Signer
	count func(kind, outcome string, took time.Duration)
}

func (c countedSigner) SignX509SVID(ctx context.Context, e *selectors.Entry, csr []byte, f *selectors.Facts) (chain []*x509.Certificate, perProcess bool, err error) {
	defer c.counted(svids.X509, time.Now(), &err)
	return c.Signer.SignX509SVID(ctx, e, csr, f)
}

func (c countedSigner) SignJWTSVID(ctx context.Context, e *selectors.Entry, audience []string, f *selectors.Facts) (t trust.Token, err error) {
	defer c.counted(svids.JWT, time.Now(), &err)
	return c.Signer.SignJWTSVID(ctx, e, audience, f)
}

func (c countedSigner) SignWITSVID(ctx context.Context, e *selectors.Entry, publicKey []byte, algorithm string, f *selectors.Facts) (t trust.Token, err error) {
	defer c.counted(svids.WIT, time.Now(), &err)
	return c.Signer.SignWITSVID(ctx, e, publicKey, algorithm, f)
}

func (c countedSigner) counted(kind svids.Kind, began time.Time, err *error) {
	outcome := metrics.Issued
	var verdict interface{ Refused() bool }
	switch {
	case *err == nil:
	case errors.As(*err, &verdict) && verdict.Refused():
		outcome = metrics.Refused
	default:
		outcome = metrics.Failed
	}
	c.count(kind.String(), outcome, time.Since(began))
}
