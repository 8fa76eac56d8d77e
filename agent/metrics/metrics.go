// SPDX-License-Identifier: Apache-2.0

// Package metrics is what the agent shows of itself; docs/metrics.md is the reference. What happens is counted where it
// happens (Instruments); what is, is read at a scrape (Register).
//
// No label's value comes from a caller: their number is bounded by the code.
package metrics

import (
	"encoding/binary"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/assay-id/assay/observe"
)

// Namespace is what all names begin with.
const Namespace = "assay_agent"

// Outcomes of asking the server for an SVID.
const (
	Issued  = "issued"
	Refused = "refused" // a verdict of the server
	Failed  = "failed"  // a fault, which may pass
)

// Instruments count what happens. They are safe for concurrent use.
type Instruments struct {
	Calls *observe.Calls

	refusals *prometheus.CounterVec
	signed   *prometheus.CounterVec
	signing  *prometheus.HistogramVec
	attested *prometheus.HistogramVec
	tpm      *prometheus.HistogramVec
}

// New returns Instruments whose metrics are in the registry. kinds are of SVIDs, reasons those for which callers are refused.
func New(r prometheus.Registerer, kinds, reasons []string) *Instruments {
	i := &Instruments{
		Calls: observe.NewCalls(r, Namespace),
		refusals: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: Namespace, Name: "refusals_total",
			Help: "Callers who were given nothing, by the kind of reason."}, []string{"reason"}),
		signed: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: Namespace, Name: "svids_total",
			Help: "SVIDs that the server was asked for, first ones and renewals, by kind and outcome."}, []string{"kind", "outcome"}),
		signing: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: Namespace, Name: "svid_signing_duration_seconds",
			Help: "How long the server took to sign an SVID, its refusals included.", Buckets: observe.Buckets}, []string{"kind"}),
		attested: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: Namespace, Name: "attestation_duration_seconds",
			Help: "How long it took to find out who a caller is.", Buckets: observe.Buckets}, []string{"outcome"}),
		tpm: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: Namespace, Name: "tpm_command_duration_seconds",
			Help: "How long the TPM took for a command, waiting until it is ready included.", Buckets: []float64{.001, .005, .01, .05, .1, .25, .5, 1, 2.5, 5, 10, 30}}, []string{"command"}),
	}
	r.MustRegister(i.refusals, i.signed, i.signing, i.attested, i.tpm)
	for _, reason := range reasons {
		i.refusals.WithLabelValues(reason)
	}
	for _, kind := range kinds {
		i.signing.WithLabelValues(kind)
		for _, outcome := range []string{Issued, Refused, Failed} {
			i.signed.WithLabelValues(kind, outcome)
		}
	}
	for _, outcome := range []string{attestedOK, attestedNot} {
		i.attested.WithLabelValues(outcome)
	}
	return i
}

// CallerRefused counts a caller who was given nothing.
func (i *Instruments) CallerRefused(reason string) { i.refusals.WithLabelValues(reason).Inc() }

// Signed counts an SVID that the server was asked for.
func (i *Instruments) Signed(kind, outcome string, took time.Duration) {
	i.signed.WithLabelValues(kind, outcome).Inc()
	i.signing.WithLabelValues(kind).Observe(took.Seconds())
}

const (
	attestedOK  = "attested"
	attestedNot = "refused"
)

// Attested counts a caller who was looked at.
func (i *Instruments) Attested(err error, took time.Duration) {
	outcome := attestedOK
	if err != nil {
		outcome = attestedNot
	}
	i.attested.WithLabelValues(outcome).Observe(took.Seconds())
}

// commands are those that the agent sends, by their codes (TPM 2.0 Part 2, 6.5.2).
var commands = map[uint32]string{
	0x131: "CreatePrimary", 0x144: "Startup", 0x147: "ActivateCredential", 0x148: "Certify", 0x14e: "NV_Read", 0x151: "PolicySecret", 0x153: "Create", 0x157: "Load",
	0x158: "Quote", 0x15d: "Sign", 0x161: "ContextLoad", 0x162: "ContextSave", 0x165: "FlushContext", 0x169: "NV_ReadPublic", 0x173: "ReadPublic",
	0x176: "StartAuthSession", 0x17a: "GetCapability", 0x17b: "GetRandom", 0x17d: "Hash", 0x17e: "PCR_Read",
}

// TPM counts a command, which is one by its header (TPM 2.0 Part 1, 18.1).
func (i *Instruments) TPM(command []byte, took time.Duration) {
	name := "other"
	if len(command) >= 10 {
		if known, ok := commands[binary.BigEndian.Uint32(command[6:])]; ok {
			name = known
		}
	}
	i.tpm.WithLabelValues(name).Observe(took.Seconds())
}
