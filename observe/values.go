// SPDX-License-Identifier: Apache-2.0

package observe

import "github.com/prometheus/client_golang/prometheus"

// Values are metrics that are read at a scrape, all from one snapshot.
type Values[S any] struct {
	read    func() S
	metrics []value[S]
}

type value[S any] struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
	emit func(s *S, emit func(v float64, labels ...string))
}

// NewValues returns some of which there are none yet. Each scrape reads one snapshot.
func NewValues[S any](read func() S) *Values[S] { return &Values[S]{read: read} }

// Gauge adds one; get may leave it out of a scrape by returning false.
func (v *Values[S]) Gauge(name, help string, get func(s *S) (float64, bool)) {
	v.add(prometheus.GaugeValue, name, help, nil, single(get))
}

// Counter adds one that only rises while the daemon runs.
func (v *Values[S]) Counter(name, help string, get func(s *S) (float64, bool)) {
	v.add(prometheus.CounterValue, name, help, nil, single(get))
}

// Gauges adds several with labels.
func (v *Values[S]) Gauges(name, help string, labels []string, each func(s *S, emit func(v float64, labels ...string))) {
	v.add(prometheus.GaugeValue, name, help, labels, each)
}

func single[S any](get func(s *S) (float64, bool)) func(*S, func(float64, ...string)) {
	return func(s *S, emit func(float64, ...string)) {
		if n, ok := get(s); ok {
			emit(n)
		}
	}
}

func (v *Values[S]) add(kind prometheus.ValueType, name, help string, labels []string, emit func(*S, func(float64, ...string))) {
	v.metrics = append(v.metrics, value[S]{prometheus.NewDesc(name, help, labels, nil), kind, emit})
}

// Describe is prometheus.Collector's.
func (v *Values[S]) Describe(out chan<- *prometheus.Desc) {
	for _, m := range v.metrics {
		out <- m.desc
	}
}

// Collect is prometheus.Collector's.
func (v *Values[S]) Collect(out chan<- prometheus.Metric) {
	s := v.read()
	for _, m := range v.metrics {
		m.emit(&s, func(n float64, labels ...string) { out <- prometheus.MustNewConstMetric(m.desc, m.kind, n, labels...) })
	}
}
