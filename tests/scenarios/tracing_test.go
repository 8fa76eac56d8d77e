// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	trace "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/cmd/dev"
)

// traces is the far side: a collector.
type traces struct {
	collector.UnimplementedTraceServiceServer
	mu    sync.Mutex
	spans map[string][]*trace.Span // by the service
}

func (c *traces) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, r := range req.ResourceSpans {
		service := ""
		for _, a := range r.Resource.Attributes {
			if a.Key == "service.name" {
				service = a.Value.GetStringValue()
			}
		}
		for _, s := range r.ScopeSpans {
			c.spans[service] = append(c.spans[service], s.Spans...)
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

func (c *traces) find(service, name string, kind trace.Span_SpanKind, parent *trace.Span) *trace.Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.spans[service] {
		if s.Name == name && s.Kind == kind && (parent == nil || string(s.TraceId) == string(parent.TraceId) && string(s.ParentSpanId) == string(parent.SpanId)) {
			return s
		}
	}
	return nil
}

// A workload's call, the agent's question to the server and the server's answer are one trace.
func TestTracing(t *testing.T) {
	nativeOnly(t, "the collector is of this process")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &traces{spans: map[string][]*trace.Span{}}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, c)
	go func() { _ = server.Serve(l) }()
	defer server.Stop()
	block := fmt.Sprintf("tracing {\n  otlp = %q\n  ratio = 1\n}\n", l.Addr())
	m := start(t, dev.Options{Agent: block, Server: block})
	m.create(t, "/traced", "--selector", me(t))
	if _, err := m.client(t).FetchX509SVID(t.Context()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one trace from the workload's call to the server's answer", func() bool {
		call := c.find("assay-agent", "SpiffeWorkloadAPI/FetchX509SVID", trace.Span_SPAN_KIND_SERVER, nil)
		if call == nil {
			return false
		}
		const sign = "assay.node.v1.Node/SignX509SVID"
		question := c.find("assay-agent", sign, trace.Span_SPAN_KIND_CLIENT, call)
		return question != nil && c.find("assay-server", sign, trace.Span_SPAN_KIND_SERVER, question) != nil
	})
}
