// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	localv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/cmd/dev"
)

// upstream is the block for a server below the one at an address, in our or SPIRE's configuration.
func upstream(t *testing.T, format, address, workloadAPI string) string {
	t.Helper()
	host, port, err := net.SplitHostPort(address)
	fatal(t, err)
	return fmt.Sprintf(format, fmt.Sprintf("server_address = %q\n  server_port = %s\n  workload_api_socket = %q", host, port, strings.TrimPrefix(workloadAPI, "unix://")))
}

// above is an upper server, asked by SPIRE's CLI.
type above struct{ socket string }

func (a above) cli(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program(t, "SPIRE_SERVER"), append(args, "-socketPath", a.socket)...).CombinedOutput()
	if err != nil {
		t.Fatalf("spire-server %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

func (a above) roots(t *testing.T) *x509bundle.Bundle {
	t.Helper()
	b, err := x509bundle.Parse(spiffeid.RequireTrustDomainFromString(trustDomain), []byte(a.cli(t, "bundle", "show")))
	fatal(t, err)
	return b
}

// serials are those of the agents' SVIDs.
func (a above) serials(t *testing.T) string {
	t.Helper()
	var list struct {
		Agents []struct {
			Serial string `json:"x509svid_serial_number"`
		}
	}
	fatal(t, json.Unmarshal([]byte(a.cli(t, "agent", "list", "-output", "json")), &list))
	return fmt.Sprint(list.Agents)
}

// nest makes the entry of a nested server under an agent.
func (a above) nest(t *testing.T, agent string, selectors ...string) {
	t.Helper()
	args := []string{"entry", "create", "-parentID", agent, "-spiffeID", "spiffe://" + trustDomain + "/nested", "-downstream"}
	for _, s := range selectors {
		args = append(args, "-selector", s)
	}
	a.cli(t, args...)
}

// leaves rotates the X.509 authority of the upper server and checks that the nested one goes along.
func (a above) leaves(t *testing.T, nested, workloadAPI string) {
	t.Helper()
	conn, err := dev.Dial(nested)
	fatal(t, err)
	defer conn.Close()
	below := func() string {
		s, err := localv1.NewLocalAuthorityClient(conn).GetX509AuthorityState(t.Context(), &localv1.GetX509AuthorityStateRequest{}, grpc.WaitForReady(true))
		if err != nil {
			return ""
		}
		return s.Active.UpstreamAuthoritySubjectKeyId
	}
	id := func(command string) string {
		var r struct {
			Active, PreparedAuthority struct {
				AuthorityID string `json:"authority_id"`
			}
		}
		out := strings.ReplaceAll(a.cli(t, "localauthority", "x509", command, "-output", "json"), "prepared_authority", "PreparedAuthority")
		fatal(t, json.Unmarshal([]byte(out), &r))
		return r.Active.AuthorityID + r.PreparedAuthority.AuthorityID
	}
	old := id("show")[:40]
	if below() != old {
		t.Errorf("the nested server is below %s, want %s", below(), old)
	}
	agents := a.serials(t)
	next := id("prepare")
	within(t, time.Minute, "the agent knows the prepared root, as operators must wait for", func() bool {
		b, err := workloadapi.FetchX509Bundles(t.Context(), workloadapi.WithAddr(workloadAPI))
		if err != nil {
			return false
		}
		own, known := b.Get(spiffeid.RequireTrustDomainFromString(trustDomain))
		return known && len(own.X509Authorities()) == 2
	})
	a.cli(t, "localauthority", "x509", "activate", "-authorityID", next)
	a.cli(t, "localauthority", "x509", "taint", "-authorityID", old)
	within(t, time.Minute, "the nested server leaves the tainted root", func() bool { return below() == next })
	within(t, time.Minute, "its bundle has the taint", func() bool { return isTainted(t, conn, old) })
	within(t, time.Minute, "the agent has another SVID", func() bool { return a.serials(t) != agents })
	within(t, time.Minute, "the nested server has another SVID", func() bool {
		return hex.EncodeToString(fetch(t, workloadAPI).Certificates[0].AuthorityKeyId) == next
	})
	a.cli(t, "localauthority", "x509", "revoke", "-authorityID", old)
	within(t, time.Minute, "the revoked root leaves the nested server's bundle", func() bool { return len(above{nested}.roots(t).X509Authorities()) == 1 })
}

func isTainted(t *testing.T, conn *grpc.ClientConn, id string) bool {
	t.Helper()
	b, err := bundlev1.NewBundleClient(conn).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	fatal(t, err)
	for _, a := range b.X509Authorities {
		cert, err := x509.ParseCertificate(a.Asn1)
		fatal(t, err)
		if hex.EncodeToString(cert.SubjectKeyId) == id {
			return a.Tainted
		}
	}
	return false
}

// TestOurServerBelowSPIRE: our server below SPIRE's, with SPIRE's agent giving it its SVID.
func TestOurServerBelowSPIRE(t *testing.T) {
	f := spireServer(t, "")
	top := above{f.socket}
	token := joinToken(t, f.socket)
	bundle := write(t, filepath.Join(t.TempDir(), "bundle.pem"), f.bundle)
	address := spireAgent(t, &dev.Env{ServerAddress: f.address, Dir: filepath.Dir(bundle)}, `  NodeAttestor "join_token" { plugin_data {} }`, "-joinToken", token)
	top.nest(t, "spiffe://"+trustDomain+"/spire/agent/join_token/"+token, "unix:uid:0")
	fetch(t, address) // SPIRE's agent has the entry
	env := server(t, dev.Options{ServerOnly: true, EKCA: bundle, Server: upstream(t, "upstream_authority \"spire\" {\n  %s\n}", f.address, address)})
	mints(t, env.ServerSocket, top)
	top.leaves(t, env.ServerSocket, address)
	mints(t, env.ServerSocket, top)
}

// TestSPIREServerBelowOurs: SPIRE's server below ours, with our agent giving it its SVID.
func TestSPIREServerBelowOurs(t *testing.T) {
	env := server(t, dev.Options{})
	top := above{env.ServerSocket}
	top.nest(t, env.NodeID, "unix:uid:0")
	fetch(t, env.WorkloadSocket)
	nested := spireServer(t, upstream(t, "  UpstreamAuthority \"spire\" { plugin_data {\n  %s\n} }", env.ServerAddress, env.WorkloadSocket))
	mints(t, nested.socket, top)
	top.leaves(t, nested.socket, env.WorkloadSocket)
	mints(t, nested.socket, top)
}

// mints checks that who trusts the upper server trusts what a server below it signs.
func mints(t *testing.T, socket string, top above) {
	t.Helper()
	dir := t.TempDir()
	above{socket}.cli(t, "x509", "mint", "-spiffeID", "spiffe://"+trustDomain+"/minted", "-write", dir)
	svid, err := x509svid.Load(filepath.Join(dir, "svid.pem"), filepath.Join(dir, "key.pem"))
	fatal(t, err)
	if _, _, err := x509svid.Verify(svid.Certificates, top.roots(t)); err != nil || len(svid.Certificates) != 2 {
		t.Errorf("%d certificates: %v", len(svid.Certificates), err)
	}
}
