// SPDX-License-Identifier: Apache-2.0

package faults

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"

	adminpb "github.com/assay-id/assay/proto/agentadmin"
)

// node is a real agent beside a server, with nothing but /proc for evidence.
type node struct {
	h     *house
	dir   string
	id    *types.SPIFFEID
	admin adminpb.AgentAdminClient
}

// join starts an agent in the namespace of the server, which knows the others.
func (s *server) join(others ...*server) *node {
	t := s.h.t
	t.Helper()
	n := &node{h: s.h, dir: filepath.Join(s.h.dir, "agent")}
	token, err := agentv1.NewAgentClient(others[0].conn).CreateJoinToken(t.Context(), &agentv1.CreateJoinTokenRequest{Ttl: 600})
	if err != nil {
		t.Fatal(err)
	}
	n.id = &types.SPIFFEID{TrustDomain: "example.org", Path: "/spire/agent/join_token/" + token.Value}
	bundle, err := bundlev1.NewBundleClient(others[0].conn).GetBundle(t.Context(), &bundlev1.GetBundleRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var roots bytes.Buffer
	for _, a := range bundle.X509Authorities {
		_ = pem.Encode(&roots, &pem.Block{Type: "CERTIFICATE", Bytes: a.Asn1})
	}
	var addresses []string
	for _, o := range others {
		addresses = append(addresses, fmt.Sprintf("%q", o.address+":8081"))
	}
	conf := fmt.Sprintf("trust_domain = \"example.org\"\nserver_addresses = [%s]\ntrust_bundle_path = \"%[2]s/bundle.pem\"\ndata_dir = \"%[2]s/data\"\nsocket_path = \"%[2]s/api.sock\"\nadmin_socket_path = \"%[2]s/admin.sock\"\npin_dir = \"%[2]s/pins\"\nminimum_tier = \"t3\"\njoin_token {\n  token = %[3]q\n}\n",
		strings.Join(addresses, ", "), n.dir, token.Value)
	for _, err := range []error{os.MkdirAll(n.dir, 0o755), os.WriteFile(n.dir+"/bundle.pem", roots.Bytes(), 0o600), os.WriteFile(n.dir+"/agent.hcl", []byte(conf), 0o600)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	log, err := os.Create(n.dir + "/log")
	if err != nil {
		t.Fatal(err)
	}
	// CAP_BPF, CAP_PERFMON and CAP_SYS_ADMIN: what the kernel sensor needs.
	cmd := exec.Command("ip", "netns", "exec", netns(s.n), "setpriv", "--bounding-set=-cap_39,-cap_38,-cap_21", filepath.Join(filepath.Dir(s.inside().Args[4]), "assay-agent"), "run", "--config", n.dir+"/agent.hcl")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_, _ = cmd.Process.Wait()
		if t.Failed() {
			text, _ := os.ReadFile(n.dir + "/log")
			t.Logf("log of the agent:\n%s", text)
		}
	})
	n.admin = adminpb.NewAgentAdminClient(dial(t, n.dir+"/admin.sock"))
	return n
}

func dial(t *testing.T, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

// follows is the address of the server that the agent follows now, "" for none.
func (n *node) follows() string {
	st, err := n.admin.Status(n.h.t.Context(), &adminpb.StatusRequest{})
	if err != nil || st.State != "following" {
		return ""
	}
	return st.ServerAddress
}

// stream is this process's stream of X.509-SVIDs: its messages, and an error at its end.
func (n *node) stream() (<-chan *pb.X509SVIDResponse, <-chan error) {
	t := n.h.t
	t.Helper()
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(context.Background(), "workload.spiffe.io", "true"))
	st, err := pb.NewSpiffeWorkloadAPIClient(dial(t, n.dir+"/api.sock")).FetchX509SVID(ctx, &pb.X509SVIDRequest{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cancel)
	messages, end := make(chan *pb.X509SVIDResponse, 16), make(chan error, 1)
	go func() {
		for {
			msg, err := st.Recv()
			if err != nil {
				end <- err
				return
			}
			messages <- msg
		}
	}()
	return messages, end
}

func nextLeaf(t *testing.T, messages <-chan *pb.X509SVIDResponse, end <-chan error) *x509.Certificate {
	t.Helper()
	select {
	case msg := <-messages:
		chain, err := x509.ParseCertificates(msg.Svids[0].X509Svid)
		if err != nil {
			t.Fatal(err)
		}
		return chain[0]
	case err := <-end:
		t.Fatal(err)
	case <-time.After(time.Minute):
		t.Fatal("no SVID")
	}
	return nil
}

// TestAgentChangesServers: the server that an agent follows is killed. The agent goes on at the other one, open streams
// notice nothing, and the next SVID is signed there.
func TestAgentChangesServers(t *testing.T) {
	h := build(t, 3)
	n := h.servers[2].join(h.servers[0], h.servers[1])
	var now string
	eventually(t, "the agent to follow a server", func() bool { now = n.follows(); return now != "" })
	follows, other := h.servers[0], h.servers[1]
	if now == other.address+":8081" {
		follows, other = other, follows
	}
	made, err := follows.entry.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{ParentId: n.id,
		SpiffeId: &types.SPIFFEID{TrustDomain: "example.org", Path: "/w"}, Selectors: []*types.Selector{{Type: "unix", Value: "uid:0"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	e := made.Results[0].Entry
	eventually(t, "the agent to know the entry", func() bool {
		st, err := n.admin.Status(t.Context(), &adminpb.StatusRequest{})
		return err == nil && st.Entries == 1
	})
	messages, end := n.stream()
	before := nextLeaf(t, messages, end)

	follows.kill()
	began := time.Now()
	eventually(t, "the agent to follow the other server", func() bool { return n.follows() == other.address+":8081" })
	t.Logf("it follows the other server after %s", time.Since(began).Round(time.Millisecond))
	select {
	case msg := <-messages:
		t.Errorf("the open stream got %v", msg.Svids)
	case err := <-end:
		t.Fatalf("the open stream ended: %v", err)
	case <-time.After(time.Second):
	}

	e.DnsNames = []string{"after.example.org"}
	eventually(t, "the store to take a change", func() bool {
		r, err := other.entry.BatchUpdateEntry(t.Context(), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}})
		return err == nil && r.Results[0].Status.Code == 0
	})
	after := nextLeaf(t, messages, end)
	if len(after.DNSNames) != 1 || bytes.Equal(after.AuthorityKeyId, before.AuthorityKeyId) {
		t.Errorf("the SVID after is for %v by %x, before by %x", after.DNSNames, after.AuthorityKeyId, before.AuthorityKeyId)
	}
}
