// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/assay-id/assay/cmd/dev"
)

// authorities is what `localauthority show` prints.
type authorities struct {
	Active, Prepared, Old *struct {
		ID       string `json:"authority_id"`
		Upstream string `json:"upstream_authority_subject_key_id"`
	}
}

func (m *machine) authorities(t *testing.T, kind string) (a authorities) {
	t.Helper()
	m.must(t, &a, "localauthority", kind, "show")
	return a
}

// roots is the bundle as the machine's server has it.
func (m *machine) roots(t *testing.T) *x509bundle.Bundle {
	t.Helper()
	b, err := x509bundle.Parse(spiffeid.RequireTrustDomainFromString(m.TrustDomain), []byte(m.must(t, nil, "bundle", "show")))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// below starts a server that the machine's agent gives its identity and the machine's server its CA.
func (m *machine) below(t *testing.T) *machine {
	t.Helper()
	host, port, err := net.SplitHostPort(m.ServerAddress)
	if err != nil {
		t.Fatal(err)
	}
	m.create(t, "/nested", "--binary", bin("assay-server"), "--downstream")
	return start(t, dev.Options{ServerOnly: true, EKCA: filepath.Join(m.Dir, "bundle.pem"), Server: fmt.Sprintf(`upstream_authority "spire" {
  server_address = %q
  server_port = %s
  workload_api_socket = %q
}`, host, port, strings.TrimPrefix(m.WorkloadSocket, "unix://"))})
}

// TestNestedServers: a server below another signs what the world of the upper one accepts, and leaves a
// root before it is gone.
func TestNestedServers(t *testing.T) {
	top := start(t, dev.Options{})
	nested := top.below(t)
	var token struct{ Value string }
	nested.must(t, &token, "token", "create")
	bundle, err := os.ReadFile(filepath.Join(top.Dir, "bundle.pem"))
	if err != nil {
		t.Fatal(err)
	}
	low := start(t, dev.Options{ElsewhereAddress: nested.ServerAddress, ElsewhereBundle: string(bundle), Agent: fmt.Sprintf("join_token {\n  token = %q\n}", token.Value)})
	low.ServerSocket = nested.ServerSocket
	low.create(t, "/below", "--selector", me(t))

	svid := low.svid(t)
	stream := low.watch(t)
	stream.next(t)
	if svid.ID.Path() != "/below" || len(svid.Certificates) != 2 {
		t.Errorf("%s with %d certificates, want /below and an intermediate", svid.ID, len(svid.Certificates))
	}
	if _, _, err := x509svid.Verify(svid.Certificates, top.roots(t)); err != nil {
		t.Errorf("who trusts the upper server: %v", err)
	}
	for _, kind := range []string{"jwt", "wit"} {
		if id := nested.authorities(t, kind).Active.ID; !strings.Contains(top.must(t, nil, "bundle", "show", "--format", "spiffe"), id) {
			t.Errorf("the upper bundle lacks the %s authority %s", kind, id)
		}
	}

	old := top.authorities(t, "x509").Active.ID
	var prepared struct {
		Authority struct {
			ID string `json:"authority_id"`
		} `json:"prepared_authority"`
	}
	top.must(t, &prepared, "localauthority", "x509", "prepare")
	top.must(t, nil, "localauthority", "x509", "activate", "--authority-id", prepared.Authority.ID)
	if got := nested.authorities(t, "x509").Active.Upstream; got != old {
		t.Errorf("the nested authority is below %s, want %s", got, old)
	}
	top.must(t, nil, "localauthority", "x509", "taint", "--authority-id", old)
	eventually(t, "the nested server to leave the tainted root", func() bool { return nested.authorities(t, "x509").Active.Upstream == prepared.Authority.ID })
	top.must(t, nil, "localauthority", "x509", "revoke", "--authority-id", old)
	eventually(t, "the nested server to drop the revoked root", func() bool { return len(nested.roots(t).X509Authorities()) == 1 })
	now := top.roots(t)
	for {
		if _, _, err := x509svid.Verify(stream.next(t).DefaultSVID().Certificates, now); err == nil {
			break // it comes without being asked for
		}
	}
}

// svid is what the test itself gets.
func (m *machine) svid(t *testing.T) *x509svid.SVID {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(m.WorkloadSocket))
	if err != nil {
		t.Fatal(err)
	}
	return svid
}
