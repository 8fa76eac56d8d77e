// SPDX-License-Identifier: Apache-2.0

package api

import (
	"testing"

	"google.golang.org/grpc"
)

// TestPermissions: every method that is served has a line in the table, and no other.
func TestPermissions(t *testing.T) {
	s := New(Config{})
	served := map[string]bool{}
	for _, g := range []*grpc.Server{s.tcp, s.unix} {
		for service, info := range g.GetServiceInfo() {
			for _, m := range info.Methods {
				served["/"+service+"/"+m.Name] = true
			}
		}
	}
	for method := range served {
		if permissions[method] == 0 {
			t.Errorf("%s is served and nobody may call it", method)
		}
	}
	for method := range permissions {
		if !served[method] {
			t.Errorf("%s is in the table and not served", method)
		}
	}
	for method := range unsupported {
		if !served[method] {
			t.Errorf("%s is unsupported and not even served", method)
		}
	}
	for method := range served {
		if permissions[method]&anyone != 0 && method != "/spire.api.server.agent.v1.Agent/AttestAgent" && method != "/spire.api.server.bundle.v1.Bundle/GetBundle" {
			t.Errorf("%s is open to anyone", method)
		}
	}
	for _, name := range []string{"debug.v1.Debug", "health.v1.Health"} {
		for service := range s.tcp.GetServiceInfo() {
			if len(service) > len(name) && service[len(service)-len(name):] == name {
				t.Errorf("%s is served on TCP", service)
			}
		}
	}
}
