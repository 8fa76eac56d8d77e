// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/observe"
	"github.com/assay-id/assay/server/api"
	"github.com/assay-id/assay/server/attest"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/entries"
	"github.com/assay-id/assay/server/metrics"
	"github.com/assay-id/assay/server/nodes"
)

// instrument makes what counts, before anything happens.
func (s *Server) instrument() (err error) {
	s.registry = observe.NewRegistry(metrics.Namespace, s.version)
	var types []string
	for name, on := range map[string]bool{"tpm": s.conf.tpm != nil, "tpm_devid": s.conf.devid != nil, "x509pop": s.conf.x509pop != nil, "join_token": s.conf.JoinToken != nil} {
		if on {
			types = append(types, name)
		}
	}
	s.metrics = metrics.New(s.registry, types)
	s.tracing, err = observe.NewTracing(s.conf.Tracing, "assay-server", s.version, s.log)
	return err
}

// listenHTTP opens what operators and their tools look at. All that a scrape reads is there by now.
func (s *Server) listenHTTP() (*observe.Endpoints, error) {
	metrics.Register(s.registry, s.state)
	return observe.Listen(observe.Config{
		Metrics: s.conf.Metrics, Health: s.conf.Health, Socket: observe.SocketBeside(s.conf.SocketPath), Registry: s.registry,
		Checks: observe.Checks{Live: s.Alive, Ready: s.parts}, Logger: s.log,
	})
}

// state is what a scrape reads.
func (s *Server) state() metrics.State {
	bundle, _ := s.ca.Bundle()
	h, load := s.store.Health(), s.api.Load()
	st := metrics.State{
		Entries: s.entries.Count(entries.Filter{}), EntriesRevision: s.entries.Revision(), FederatedBundles: s.federation.CountBundles(), Revoked: len(s.revocations.List()),
		Nodes: s.nodes.Standings(), Authorities: s.authorities(), BundleSequence: bundle.Sequence,
		SigningMean: load.Mean, WaitingCalls: load.Calls, WaitingSignatures: load.Signatures,
		Store: metrics.Store{Ready: h.Ready, Age: h.Age, Write: h.Write, Revision: h.Revision, Restarts: h.Restarts, Own: h.QuotaBytes > 0,
			FreeBytes: float64(h.FreeBytes), MinFreeBytes: float64(h.MinFreeBytes), DatabaseBytes: float64(h.DatabaseBytes), QuotaBytes: float64(h.QuotaBytes)},
	}
	st.Agents, st.Feeds, st.Behind = s.streams.Count(bundle.Sequence)
	if cert, err := s.svid.get(); err == nil {
		st.SVIDEnds = cert.Leaf.NotAfter
	}
	return st
}

func (s *Server) authorities() (out []metrics.Authority) {
	for name, kind := range map[string]ca.Kind{"x509": ca.X509, "jwt": ca.JWT, "wit": ca.WIT} {
		state, err := s.ca.State(kind)
		if err != nil {
			continue // there is none yet
		}
		for slot, a := range map[string]*ca.Authority{"active": state.Active, "prepared": state.Prepared, "old": state.Old} {
			if a != nil {
				out = append(out, metrics.Authority{Kind: name, State: slot, Ends: a.ExpiresAt})
			}
		}
	}
	return out
}

// parts tell how the server is. It works as long as it may sign, the store's presence or not.
func (s *Server) parts(context.Context) map[string]observe.Part {
	p := map[string]observe.Part{"store": {}, "authorities": {}, "signing": {}}
	h := s.store.Health()
	if h.Reason != "" {
		p["store"] = observe.Part{Fault: errors.New(h.Reason)}
	}
	if h.Age > s.conf.maxAge {
		p["signing"] = observe.Part{Fault: fmt.Errorf("nothing is signed: the store was last reachable %s ago, and max_replica_age is %s", h.Age.Round(time.Second), s.conf.maxAge), Hinders: true}
	}
	for name, kind := range map[string]ca.Kind{"X.509": ca.X509, "JWT": ca.JWT, "WIT": ca.WIT} {
		state, err := s.ca.State(kind)
		switch {
		case err != nil:
			p["authorities"] = observe.Part{Fault: err, Hinders: true}
		case state.Active == nil || !time.Now().Before(state.Active.ExpiresAt):
			p["authorities"] = observe.Part{Fault: fmt.Errorf("there is no valid %s authority", name), Hinders: true}
		}
	}
	return p
}

// countedSigner counts what is signed.
type countedSigner struct {
	api.Signer
	count func(kind string, err error, took time.Duration)
}

func (c countedSigner) SignWorkload(req ca.Request) (chain []*x509.Certificate, err error) {
	defer c.counted(metrics.Workload, time.Now(), &err)
	return c.Signer.SignWorkload(req)
}

func (c countedSigner) SignAgent(id spiffeid.ID, key crypto.PublicKey) (chain []*x509.Certificate, err error) {
	defer c.counted(metrics.Agent, time.Now(), &err)
	return c.Signer.SignAgent(id, key)
}

func (c countedSigner) SignJWT(req ca.JWTRequest) (t ca.Token, err error) {
	defer c.counted(metrics.JWT, time.Now(), &err)
	return c.Signer.SignJWT(req)
}

func (c countedSigner) SignWIT(req ca.WITRequest) (t ca.Token, err error) {
	defer c.counted(metrics.WIT, time.Now(), &err)
	return c.Signer.SignWIT(req)
}

func (c countedSigner) SignDownstream(req ca.DownstreamRequest) (chain []*x509.Certificate, err error) {
	defer c.counted(metrics.Intermediate, time.Now(), &err)
	return c.Signer.SignDownstream(req)
}

func (c countedSigner) counted(kind string, began time.Time, err *error) {
	c.count(kind, *err, time.Since(began))
}

// countedAttestor counts attestations of one type.
type countedAttestor struct {
	api.Attestor
	count func(attestor string, err error, took time.Duration)
}

func (c countedAttestor) Attest(ctx context.Context, payload []byte, csrKey crypto.PublicKey, binding []byte, challenge func(context.Context, []byte) ([]byte, error)) (nodes.Attestation, error) {
	began := time.Now()
	a, err := c.Attestor.Attest(ctx, payload, csrKey, binding, challenge)
	c.count(c.Type(), err, time.Since(began))
	return a, err
}

// countedContinuous counts the questions to TPMs and the verdicts.
type countedContinuous struct {
	*attest.Continuous
	count func(outcome string)
}

func (c countedContinuous) Run(ctx context.Context, id spiffeid.ID, spki, binding []byte, ask func(context.Context, []byte) ([]byte, error)) error {
	err := c.Continuous.Run(ctx, id, spki, binding, func(ctx context.Context, question []byte) ([]byte, error) {
		answer, err := ask(ctx, question)
		if err != nil {
			c.count(metrics.Failed)
		} else {
			c.count(metrics.OK)
		}
		return answer, err
	})
	if _, denied := errors.AsType[*nodes.DeniedError](err); denied {
		c.count(metrics.Refused)
	}
	return err
}
