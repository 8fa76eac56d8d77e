// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// RegisterHealth adds health and reflection to g (SPIFFE Workload Endpoint, section 7). They are those of all services
// that g has. ready is a desk's.
func RegisterHealth(g *grpc.Server, ready <-chan struct{}) {
	grpc_health_v1.RegisterHealthServer(g, health{g: g, ready: ready})
	reflection.Register(g)
}

// health is SERVING from when the agent knows entries and bundle: then workloads get answers, the
// server's presence or not.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
	g     *grpc.Server
	ready <-chan struct{}
}

func (h health) status() *grpc_health_v1.HealthCheckResponse {
	select {
	case <-h.ready:
		return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_SERVING}
	default:
		return &grpc_health_v1.HealthCheckResponse{Status: grpc_health_v1.HealthCheckResponse_NOT_SERVING}
	}
}

func (h health) known(service string) bool {
	_, ok := h.g.GetServiceInfo()[service]
	return ok || service == ""
}

// Check answers for the agent ("") and for each service by its name.
func (h health) Check(_ context.Context, req *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if !h.known(req.Service) {
		return nil, status.Error(codes.NotFound, "unknown service")
	}
	return h.status(), nil
}

// Watch does the same, and again when it changes.
func (h health) Watch(req *grpc_health_v1.HealthCheckRequest, st grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	now, ready := h.status(), h.ready
	if !h.known(req.Service) {
		now.Status, ready = grpc_health_v1.HealthCheckResponse_SERVICE_UNKNOWN, nil
	}
	if now.Status == grpc_health_v1.HealthCheckResponse_SERVING {
		ready = nil
	}
	for {
		if err := st.Send(now); err != nil {
			return err
		}
		select {
		case <-ready:
			now, ready = h.status(), nil
		case <-st.Context().Done():
			return status.FromContextError(st.Context().Err()).Err()
		}
	}
}
