// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

func TestBrokersAreChecked(t *testing.T) {
	one := []BrokerAllow{{ID: "spiffe://partner.example/proxy"}}
	for _, c := range []struct {
		broker BrokerConfig
		want   string
	}{
		{BrokerConfig{}, "nobody could use it"},
		{BrokerConfig{Allow: one, SocketPath: "broker.sock"}, "write an absolute path"},
		{BrokerConfig{Allow: one, SocketPath: "/run/assay/agent/api.sock"}, "another socket has the path"},
		{BrokerConfig{Allow: one, Mode: "rw"}, "in octal"},
		{BrokerConfig{Allow: one, Group: "nobody-of-that-name"}, "not known here"},
		{BrokerConfig{Allow: one, Listen: "8443"}, "write host:port"},
		{BrokerConfig{Allow: []BrokerAllow{{ID: "spiffe://example.org/*"}}}, "write one SPIFFE ID"},
		{BrokerConfig{Allow: []BrokerAllow{{ID: "*"}}}, "write one SPIFFE ID"},
		{BrokerConfig{Allow: []BrokerAllow{{ID: one[0].ID, AllowOverTCP: true}}}, "needs listen"},
		{BrokerConfig{Allow: []BrokerAllow{{ID: one[0].ID, ReferenceTypes: []string{"pod"}}}}, "there are pid"},
	} {
		conf := configWith()
		conf.Broker = &c.broker
		if err := conf.Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v; want %q", c.broker, err, c.want)
		}
	}
	conf := configWith()
	conf.Broker = &BrokerConfig{Allow: one}
	p, err := conf.prepare()
	if err != nil {
		t.Fatal(err)
	}
	if b := p.brokers; b.path != "/run/assay/agent/broker.sock" || b.mode != 0o770 || len(b.rights[spiffeid.RequireFromString(one[0].ID)].References) != 1 {
		t.Errorf("%+v", b)
	}
	if err := configWith(SocketConfig{Name: "s", Path: "/run/s.sock", DisableSDS: true, DisableWorkloadAPI: true, AuthorizedDelegates: []string{"spiffe://example.org/x"}}).Validate(); err != nil {
		t.Error(err)
	}
	if err := configWith(SocketConfig{Name: "s", Path: "/run/s.sock", AuthorizedDelegates: []string{"spiffe://partner.example/x"}}).Validate(); err == nil {
		t.Error("a delegate of another trust domain is accepted")
	}
}
