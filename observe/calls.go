// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
)

// Calls counts the gRPC calls that a daemon answers. Its labels are methods, which gRPC servers know beforehand, and
// codes: no caller makes a series.
type Calls struct {
	finished *prometheus.CounterVec
	took     *prometheus.HistogramVec
	open     *prometheus.GaugeVec
}

// Buckets of latencies in seconds, from a cached answer to one that had to wait for another machine.
var Buckets = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// NewCalls returns one whose metrics are in the registry.
func NewCalls(r prometheus.Registerer, namespace string) *Calls {
	c := &Calls{
		finished: prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: "requests_total",
			Help: "Calls and streams that ended, by gRPC method and code."}, []string{"method", "code"}),
		took: prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: "request_duration_seconds",
			Help: "How long calls took that are no streams.", Buckets: Buckets}, []string{"method"}),
		open: prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "open_streams",
			Help: "Streams that are open now, by gRPC method."}, []string{"method"}),
	}
	r.MustRegister(c.finished, c.took, c.open)
	return c
}

// Options have a gRPC server count its calls. Put them first: what other interceptors refuse counts, too.
func (c *Calls) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			began, method := time.Now(), strings.TrimPrefix(info.FullMethod, "/")
			resp, err := h(ctx, req)
			c.took.WithLabelValues(method).Observe(time.Since(began).Seconds())
			c.finished.WithLabelValues(method, status.Code(err).String()).Inc()
			return resp, err
		}),
		grpc.ChainStreamInterceptor(func(srv any, st grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			method := strings.TrimPrefix(info.FullMethod, "/")
			open := c.open.WithLabelValues(method)
			open.Inc()
			defer open.Dec()
			err := h(srv, st)
			c.finished.WithLabelValues(method, status.Code(err).String()).Inc()
			return err
		}),
	}
}
