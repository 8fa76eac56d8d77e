// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/limits"
	"github.com/assay-id/assay/selectors"
)

func configWith(sockets ...SocketConfig) Config {
	return Config{TrustDomain: "example.org", ServerAddress: "localhost:1", InsecureBootstrap: true, JoinToken: &JoinTokenConfig{Token: "x"}, Sockets: sockets}
}

func TestSocketsAreChecked(t *testing.T) {
	for _, c := range []struct {
		socket SocketConfig
		want   string
	}{
		{SocketConfig{Path: "@assay"}, "abstract socket"},
		{SocketConfig{Path: "unix://@assay"}, "abstract socket"},
		{SocketConfig{Path: "tcp://127.0.0.1:4000"}, "over a network"},
		{SocketConfig{Path: "run/s.sock"}, "write an absolute path"},
		{SocketConfig{Path: "/run/assay/agent/../agent/api.sock"}, "another socket has its name or its path"},
		{SocketConfig{Path: "/run/assay/agent/admin.sock"}, "another socket has its name or its path"},
		{SocketConfig{Path: "/run/s.sock", Mode: "rw"}, "in octal"},
		{SocketConfig{Path: "/run/s.sock", Mode: "4777"}, "in octal"},
		{SocketConfig{Path: "/run/s.sock", User: "nobody-of-that-name"}, "not known here"},
		{SocketConfig{Path: "/run/s.sock", Group: "-1"}, "not known here"},
		{SocketConfig{Path: "/run/s.sock", DisableSDS: true, DisableWorkloadAPI: true}, "leave nothing"},
		{SocketConfig{Path: "/run/s.sock", Only: &OnlyConfig{}}, "block only"},
		{SocketConfig{Path: "/run/s.sock", Only: &OnlyConfig{SPIFFEIDPrefixes: []string{"spiffe://other.org/x"}}}, "a SPIFFE ID of example.org"},
		{SocketConfig{Path: "/run/" + strings.Repeat("x", 109)}, "is no name"},
	} {
		c.socket.Name = "s"
		if err := configWith(c.socket).Validate(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v; want %q", c.socket, err, c.want)
		}
	}
	twice := SocketConfig{Name: "s", Path: "/run/s.sock"}
	if err := configWith(twice, twice).Validate(); err == nil {
		t.Error("two of one name are accepted")
	}
	c := configWith(SocketConfig{Name: "s", Path: "unix:///run/other/api.sock", User: "root", Group: "0", Mode: "0600"})
	p, err := c.prepare()
	if err != nil {
		t.Fatal(err)
	}
	if s := p.sockets[1]; s.Path != "/run/other/api.sock" || s.mode != 0o600 || s.owner == nil || s.owner.UID != 0 || s.owner.GID != 0 || s.view != nil {
		t.Errorf("%+v", s)
	}
	if names := p.socketNames(); !slices.Equal(names, []string{"api.sock"}) {
		t.Errorf("names of sockets %q", names)
	}
}

func TestView(t *testing.T) {
	entry := func(path, hint string) *selectors.Entry {
		return &selectors.Entry{SPIFFEID: spiffeid.RequireFromString("spiffe://example.org" + path), Hint: hint}
	}
	td := spiffeid.RequireTrustDomainFromString("example.org")
	for _, c := range []struct {
		only    OnlyConfig
		in, out []*selectors.Entry
	}{
		{OnlyConfig{SPIFFEIDPrefixes: []string{"spiffe://example.org/ci/"}}, []*selectors.Entry{entry("/ci", ""), entry("/ci/a", "x")}, []*selectors.Entry{entry("/cia", ""), entry("/a/ci", "")}},
		{OnlyConfig{SPIFFEIDPrefixes: []string{"spiffe://example.org"}}, []*selectors.Entry{entry("/ci", "")}, nil},
		{OnlyConfig{Hints: []string{"in", "side"}}, []*selectors.Entry{entry("/a", "in"), entry("/a", "side")}, []*selectors.Entry{entry("/a", ""), entry("/a", "inside")}},
		{OnlyConfig{SPIFFEIDPrefixes: []string{"spiffe://example.org/ci"}, Hints: []string{"in"}}, []*selectors.Entry{entry("/ci", "in")}, []*selectors.Entry{entry("/ci", ""), entry("/a", "in")}},
	} {
		view, err := c.only.view(td)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range c.in {
			if !view(e) {
				t.Errorf("%+v leaves %s %q out", c.only, e.SPIFFEID, e.Hint)
			}
		}
		for _, e := range c.out {
			if view(e) {
				t.Errorf("%+v lets %s %q through", c.only, e.SPIFFEID, e.Hint)
			}
		}
	}
}

func TestLimitsConfig(t *testing.T) {
	l := LimitsConfig{CallsPerSecond: 50, FetchJWTSVID: 5, Streams: 7}
	if err := l.prepare(); err != nil {
		t.Fatal(err)
	}
	if l.Streams != 7 || l.StreamsPerCaller != 4000 || l.Connections != 10_000 || l.ConnectionsPerCaller != 1000 {
		t.Errorf("%+v", l)
	}
	rates := l.rates(func() time.Time { return time.Unix(0, 0) })
	for method, want := range map[string]int{"": 50, "FetchJWTSVID": 5, "FetchX509SVID": 50, "DeltaSecrets": 50} {
		n := 0
		for rates[method].Allow(limits.Caller{}) {
			n++
		}
		if n != want {
			t.Errorf("%q: %d calls at once, want %d", method, n, want)
		}
	}
	for _, bad := range []LimitsConfig{{Connections: -1}, {FetchSecrets: -5}, {CallsPerSecond: -1}} {
		if err := bad.prepare(); err == nil {
			t.Errorf("%+v is accepted", bad)
		}
	}
}
