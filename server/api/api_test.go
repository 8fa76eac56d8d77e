// SPDX-License-Identifier: Apache-2.0

package api

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc"

	"github.com/assay-id/assay/server/gate"
)

// TestMethods: every method that is served has a line in the gate's table, and no other.
func TestMethods(t *testing.T) {
	tcp, unix := grpc.NewServer(), grpc.NewServer()
	New(Config{}).register(tcp, unix)
	served := map[string]bool{}
	for _, g := range []*grpc.Server{tcp, unix} {
		for service, info := range g.GetServiceInfo() {
			for _, m := range info.Methods {
				served["/"+service+"/"+m.Name] = true
			}
		}
	}
	callable := gate.Methods()
	for method := range served {
		if !slices.Contains(callable, method) {
			t.Errorf("%s is served and nobody may call it", method)
		}
	}
	for _, method := range callable {
		if !served[method] {
			t.Errorf("%s is in the table and not served", method)
		}
	}
	for service := range tcp.GetServiceInfo() {
		if strings.HasSuffix(service, "debug.v1.Debug") || strings.HasSuffix(service, "logger.v1.Logger") || strings.HasSuffix(service, "health.v1.Health") {
			t.Errorf("%s is served on TCP", service)
		}
	}
}
