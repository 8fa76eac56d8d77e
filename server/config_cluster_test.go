// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strings"
	"testing"
)

func TestClusterConfig(t *testing.T) {
	for _, c := range []struct {
		name, address, want string
	}{
		{"a", "10.0.0.1:8082", ""},
		{"a", "store-a.example.org:8082", ""},
		{"a", "[2001:db8::1]:8082", ""},
		{"", "10.0.0.1:8082", "cluster: name"},
		{"a=b", "10.0.0.1:8082", "cluster: name"},
		{"a", "10.0.0.1", "cluster: address"},
		{"a", ":8082", "cluster: address"},
		{"a", "10.0.0.1:0", "cluster: address"},
		{"a", "0.0.0.0:8082", "other members can not reach it"},
	} {
		conf := Config{TrustDomain: "example.org", JoinToken: &JoinTokenConfig{}, Cluster: &ClusterConfig{Name: c.name, Address: c.address}}
		on, err := conf.StoreOnDisk()
		switch {
		case c.want == "" && (err != nil || on.Name != c.name || on.Address != c.address || on.Prefix != "assay/"):
			t.Errorf("%q, %q: %+v, %v", c.name, c.address, on, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%q, %q: %v, want %q", c.name, c.address, err, c.want)
		}
	}
	both := Config{
		TrustDomain: "example.org", JoinToken: &JoinTokenConfig{}, Store: &StoreConfig{Endpoints: []string{"https://etcd:2379"}},
		Cluster: &ClusterConfig{Name: "a", Address: "10.0.0.1:8082"},
	}
	if err := both.Validate(); err == nil || !strings.Contains(err.Error(), "remove one of the two") {
		t.Errorf("cluster and endpoints: %v", err)
	}
}
