// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"google.golang.org/grpc"
)

// TracingConfig is the block `tracing`.
type TracingConfig struct {
	// OTLP is host:port of an OpenTelemetry collector that speaks OTLP over gRPC in plain text: one on this machine.
	OTLP string `hcl:"otlp"`
	// Ratio of requests that are traced (default 0.01).
	Ratio *float64 `hcl:"ratio,optional"`
}

// Validate reports in one sentence what can not work. The block may be nil.
func (c *TracingConfig) Validate() error {
	if c == nil {
		return nil
	}
	if _, _, err := net.SplitHostPort(c.OTLP); err != nil {
		return fmt.Errorf("block tracing: otlp %q: write host:port, for example \"127.0.0.1:4317\"", c.OTLP)
	}
	if c.Ratio != nil && (*c.Ratio <= 0 || *c.Ratio > 1) {
		return fmt.Errorf("block tracing: ratio %v: write a number above 0 and up to 1", *c.Ratio)
	}
	return nil
}

// Tracing sends traces of gRPC calls to a collector. A nil one does nothing, and costs nothing.
type Tracing struct {
	provider *sdktrace.TracerProvider
	log      *slog.Logger
}

// NewTracing returns nil without a configuration. The collector need not be there: what it does not take is dropped. An address
// that is wrong shows in the log.
func NewTracing(c *TracingConfig, service, version string, log *slog.Logger) (*Tracing, error) {
	if c == nil {
		return nil, nil
	}
	exporter, err := otlptracegrpc.New(context.Background(), otlptracegrpc.WithEndpoint(c.OTLP), otlptracegrpc.WithInsecure(), otlptracegrpc.WithTimeout(10*time.Second))
	if err != nil {
		return nil, fmt.Errorf("block tracing: %w", err)
	}
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) { log.Warn("traces are lost", "error", err) }))
	ratio := .01
	if c.Ratio != nil {
		ratio = *c.Ratio
	}
	provider := sdktrace.NewTracerProvider(
		sdktrace.WithBatcher(exporter), sdktrace.WithSampler(sdktrace.ParentBased(sdktrace.TraceIDRatioBased(ratio))),
		sdktrace.WithResource(resource.NewSchemaless(attribute.String("service.name", service), attribute.String("service.version", version))),
	)
	return &Tracing{provider, log}, nil
}

// Server are options of a gRPC server for callers whose word on what is traced counts (trusted), or does not.
func (t *Tracing) Server(trusted bool) []grpc.ServerOption {
	if t == nil {
		return nil
	}
	var accepted propagation.TextMapPropagator = propagation.NewCompositeTextMapPropagator() // none
	if trusted {
		accepted = propagation.TraceContext{}
	}
	return []grpc.ServerOption{grpc.StatsHandler(otelgrpc.NewServerHandler(otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(accepted)))}
}

// Client are options of a gRPC client: whom it calls learns which trace the call belongs to.
func (t *Tracing) Client() []grpc.DialOption {
	if t == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(otelgrpc.WithTracerProvider(t.provider), otelgrpc.WithPropagators(propagation.TraceContext{})))}
}

// Close sends what there is left, if that takes no longer than a few seconds.
func (t *Tracing) Close() {
	if t == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		t.log.Warn("the last traces are lost", "error", err)
	}
}
