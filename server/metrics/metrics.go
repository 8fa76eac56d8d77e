// SPDX-License-Identifier: Apache-2.0

// Package metrics is what the server shows of itself; docs/metrics.md is the reference. What happens is counted where it
// happens (Instruments); what is, is read at a scrape (Register).
//
// No label's value comes from a caller: their number is bounded by the code and the configuration.
package metrics

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/assay-id/assay/observe"
)

// Namespace is what all names begin with.
const Namespace = "assay_server"

// Outcomes.
const (
	OK      = "ok"
	Refused = "refused" // a verdict
	Failed  = "failed"  // a fault, which may pass
)

// Kinds of what is signed.
const (
	Workload     = "x509"
	Agent        = "agent"
	JWT          = "jwt"
	WIT          = "wit"
	Intermediate = "downstream_ca"
)

// Instruments count what happens. They are safe for concurrent use.
type Instruments struct {
	Calls *observe.Calls

	signed       *prometheus.CounterVec
	signing      *prometheus.HistogramVec
	attestations *prometheus.CounterVec
	attesting    *prometheus.HistogramVec
	requotes     *prometheus.CounterVec
}

// New returns Instruments whose metrics are in the registry. attestors are the types that the configuration has.
func New(r prometheus.Registerer, attestors []string) *Instruments {
	i := &Instruments{
		Calls: observe.NewCalls(r, Namespace),
		signed: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: Namespace, Name: "signatures_total",
			Help: "What was to be signed, by kind and outcome."}, []string{"kind", "outcome"}),
		signing: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: Namespace, Name: "signing_duration_seconds",
			Help: "How long signing took, without waiting for a turn.", Buckets: observe.Buckets}, []string{"kind"}),
		attestations: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: Namespace, Name: "attestations_total",
			Help: "Attestations of nodes, by the attestor's type and outcome."}, []string{"type", "outcome"}),
		attesting: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: Namespace, Name: "attestation_duration_seconds",
			Help: "How long attestations took, waiting for the node included.", Buckets: observe.Buckets}, []string{"type"}),
		requotes: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: Namespace, Name: "requotes_total",
			Help: "Questions to TPMs of admitted nodes: answered, or failed for a fault; refused are the verdicts against a node."}, []string{"outcome"}),
	}
	r.MustRegister(i.signed, i.signing, i.attestations, i.attesting, i.requotes)
	for _, kind := range []string{Workload, Agent, JWT, WIT, Intermediate} {
		i.signing.WithLabelValues(kind)
		i.signed.WithLabelValues(kind, OK)
		i.signed.WithLabelValues(kind, Failed)
	}
	for _, outcome := range []string{OK, Refused, Failed} {
		i.requotes.WithLabelValues(outcome)
	}
	for _, t := range attestors {
		i.attesting.WithLabelValues(t)
		i.attestations.WithLabelValues(t, OK)
		i.attestations.WithLabelValues(t, Refused)
	}
	return i
}

// Signed counts what was to be signed.
func (i *Instruments) Signed(kind string, err error, took time.Duration) {
	outcome := OK
	if err != nil {
		outcome = Failed
	}
	i.signed.WithLabelValues(kind, outcome).Inc()
	i.signing.WithLabelValues(kind).Observe(took.Seconds())
}

// Attested counts an attestation.
func (i *Instruments) Attested(attestor string, err error, took time.Duration) {
	outcome := OK
	if err != nil {
		outcome = Refused
	}
	i.attestations.WithLabelValues(attestor, outcome).Inc()
	i.attesting.WithLabelValues(attestor).Observe(took.Seconds())
}

// Requoted counts a question to a TPM, or a verdict.
func (i *Instruments) Requoted(outcome string) { i.requotes.WithLabelValues(outcome).Inc() }
