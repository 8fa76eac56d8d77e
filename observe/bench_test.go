// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"context"
	"log/slog"
	"net"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// BenchmarkCall is a unary call over a Unix socket: as it is, counted, and counted with 1 % traced.
func BenchmarkCall(b *testing.B) {
	calls := NewCalls(prometheus.NewRegistry(), "assay_bench").Options()
	tracing, err := NewTracing(&TracingConfig{OTLP: "127.0.0.1:9"}, "bench", "", slog.New(slog.DiscardHandler))
	if err != nil {
		b.Fatal(err)
	}
	var off *Tracing
	for _, c := range []struct {
		name    string
		options []grpc.ServerOption
	}{{"plain", nil}, {"counted", append(off.Server(false), calls...)}, {"traced", append(tracing.Server(false), calls...)}} {
		b.Run(c.name, func(b *testing.B) {
			path := b.TempDir() + "/s"
			l, err := net.Listen("unix", path)
			if err != nil {
				b.Fatal(err)
			}
			server := grpc.NewServer(c.options...)
			healthv1.RegisterHealthServer(server, health.NewServer())
			go func() { _ = server.Serve(l) }()
			defer server.Stop()
			conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(insecure.NewCredentials()))
			if err != nil {
				b.Fatal(err)
			}
			defer conn.Close()
			client := healthv1.NewHealthClient(conn)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := client.Check(context.Background(), &healthv1.HealthCheckRequest{}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
