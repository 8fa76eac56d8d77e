// SPDX-License-Identifier: Apache-2.0

package workloadapi

import (
	"context"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// Register adds the service to g, and beside it health and reflection (SPIFFE Workload Endpoint, section 7).
func (s *Server) Register(g *grpc.Server) {
	pb.RegisterSpiffeWorkloadAPIServer(g, s)
	grpc_health_v1.RegisterHealthServer(g, health{ready: s.cfg.Desk.Ready()})
	reflection.Register(g)
}

// health is SERVING from when the agent knows entries and bundle: then workloads get answers, the
// server's presence or not.
type health struct {
	grpc_health_v1.UnimplementedHealthServer
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

func known(service string) bool {
	return service == "" || service == pb.SpiffeWorkloadAPI_ServiceDesc.ServiceName
}

// Check answers for the agent ("") and for the Workload API by its name.
func (h health) Check(_ context.Context, req *grpc_health_v1.HealthCheckRequest) (*grpc_health_v1.HealthCheckResponse, error) {
	if !known(req.Service) {
		return nil, status.Error(codes.NotFound, "unknown service")
	}
	return h.status(), nil
}

// Watch does the same, and again when it changes.
func (h health) Watch(req *grpc_health_v1.HealthCheckRequest, st grpc.ServerStreamingServer[grpc_health_v1.HealthCheckResponse]) error {
	now, ready := h.status(), h.ready
	if !known(req.Service) {
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
