// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	nodev1 "github.com/assay-id/assay/proto/node"
	adminv1 "github.com/assay-id/assay/proto/nodeadmin"
	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/policy"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// attestTPM attests by a TPM as our agent does.
func attestTPM(t *testing.T, c *clients, d *device.Device) (*agentv1.AttestAgentResponse_Result, error) {
	t.Helper()
	res, _, err := attestTPMKey(t, c, d)
	return res, err
}

// attestTPMKey also returns the node's key.
func attestTPMKey(t *testing.T, c *clients, d *device.Device) (*agentv1.AttestAgentResponse_Result, crypto.Signer, error) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	var unique [32]byte
	_, err := rand.Read(unique[:])
	must(err)
	key, err := d.NewKey(unique)
	must(err)
	hello, err := d.Hello(key)
	must(err)
	payload, err := tpm.Encode(hello)
	must(err)
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, crypto.Signer(key))
	must(err)
	stream, err := c.agent.AttestAgent(t.Context())
	must(err)
	must(stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data: &types.AttestationData{Type: "tpm", Payload: payload}, Params: &agentv1.AgentX509SVIDParams{Csr: csr},
	}}}))
	resp, err := stream.Recv()
	if err != nil {
		return nil, nil, err
	}
	question, err := tpm.Decode[tpm.Challenge](resp.GetChallenge())
	must(err)
	p, _ := peer.FromContext(stream.Context())
	state := p.AuthInfo.(credentials.TLSInfo).State
	binding, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
	must(err)
	evidence, err := d.Answer(key, question, binding)
	must(err)
	answer, err := tpm.Encode(evidence)
	must(err)
	must(stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: answer}}))
	if resp, err = stream.Recv(); err != nil {
		return nil, nil, err
	}
	return resp.GetResult(), key, nil
}

// TestRequoteAsks: a node that attested by its TPM is asked again at once, and signed nothing for until
// it answers.
func TestRequoteAsks(t *testing.T) {
	p := swtpmtest.New(t)
	d, err := device.Open(t.Context(), device.Config{Path: p.Path})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	e := start(t, func(c *server.Config) { c.TPM = &server.TPMConfig{Pending: true} })
	_, err = attestTPM(t, e.dial(nil), d)
	wantCode(t, "the pending door", err, codes.PermissionDenied)
	list, err := e.admin.nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{State: "pending"})
	if err != nil || len(list.Nodes) != 1 {
		t.Fatal(list, err)
	}
	if _, err := e.admin.nodes.Approve(t.Context(), &adminv1.ApproveRequest{SpiffeId: list.Nodes[0].SpiffeId}); err != nil {
		t.Fatal(err)
	}
	res, key, err := attestTPMKey(t, e.dial(nil), d)
	if err != nil {
		t.Fatal(err)
	}
	node := e.dial(&tls.Certificate{Certificate: res.Svid.CertChain, PrivateKey: key})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	stream, err := node.node.Requote(ctx)
	if err != nil {
		t.Fatal(err)
	}
	asked, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if q, err := tpm.Decode[tpm.Question](asked.Payload); err != nil || len(q.Nonce) == 0 {
		t.Errorf("asked %s, %v", asked.Payload, err)
	}
	w := e.create(&types.Entry{ParentId: res.Svid.Id, SpiffeId: sid("/w"), Selectors: sel("unix", "uid:7")})[0]
	for what, sign := range map[string]func() error{
		"JWT-SVID": func() error {
			_, err := node.node.SignJWTSVID(ctx, &nodev1.SignJWTSVIDRequest{EntryId: w.Id, Audience: []string{"a"}, Facts: facts(7)})
			return err
		},
		"WIT-SVID": func() error {
			_, err := node.node.SignWITSVID(ctx, &nodev1.SignWITSVIDRequest{EntryId: w.Id, PublicKey: pkixOf(t, newKey(t)), SigningAlgorithm: "ES256", Facts: facts(7)})
			return err
		},
	} {
		wantCode(t, what+" without an answer", sign(), codes.Unavailable)
	}
}

// TestPending: a TPM that nobody vouches for waits for an operator where the door is open, and is
// refused where it is not. What is in the inventory is let in.
func TestPending(t *testing.T) {
	p := swtpmtest.New(t)
	d, err := device.Open(t.Context(), device.Config{Path: p.Path})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	closed := start(t, func(c *server.Config) { c.TPM = &server.TPMConfig{} })
	_, err = attestTPM(t, closed.dial(nil), d)
	wantCode(t, "the closed door", err, codes.PermissionDenied)
	if nodes, err := closed.admin.nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{}); err != nil || len(nodes.Nodes) != 0 {
		t.Errorf("a refused node is kept: %v, %v", nodes, err)
	}

	e := start(t, func(c *server.Config) { c.TPM = &server.TPMConfig{Pending: true} })
	_, err = attestTPM(t, e.dial(nil), d)
	wantCode(t, "the pending door", err, codes.PermissionDenied)
	list, lerr := e.admin.nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{State: "pending"})
	if lerr != nil || len(list.Nodes) != 1 {
		t.Fatalf("pending nodes: %v, %v", list, lerr)
	}
	id := list.Nodes[0].SpiffeId
	if !strings.Contains(status.Convert(err).Message(), "assay node approve "+id) {
		t.Errorf("text %q", err)
	}
	var detail *nodev1.Standing
	for _, x := range status.Convert(err).Details() {
		detail, _ = x.(*nodev1.Standing)
	}
	if detail.GetState() != "pending" || detail.GetReason() == "" {
		t.Errorf("detail %v", detail)
	}
	if _, err := e.admin.nodes.Approve(t.Context(), &adminv1.ApproveRequest{SpiffeId: id}); err != nil {
		t.Fatal(err)
	}
	res, err := attestTPM(t, e.dial(nil), d)
	if err != nil || idText(res.Svid.Id) != id {
		t.Fatalf("after the approval: %v, %v", res, err)
	}
	n, err := e.admin.nodes.GetNode(t.Context(), &adminv1.GetNodeRequest{SpiffeId: id})
	if err != nil || n.Standing.State != "admitted" || n.Device == nil || len(n.Checks) == 0 || len(n.History) != 1 {
		t.Errorf("%v, %v", n, err)
	}
	if _, err := e.admin.nodes.RemoveInventory(t.Context(), &adminv1.RemoveInventoryRequest{EkHashes: []string{n.Device.EkHash}}); err != nil {
		t.Fatal(err)
	}
	_, err = attestTPM(t, e.dial(nil), d)
	wantCode(t, "out of the inventory", err, codes.PermissionDenied)
	if n.Device.EkHash != strings.TrimPrefix(id, "spiffe://example.org/spire/agent/tpm/") {
		t.Errorf("device %v of %s", n.Device, id)
	}
}

// TestNodeGroups: rules refuse a node that breaks them, with the rule in the text, and the dry run
// tells it of one that was admitted before there were any.
func TestNodeGroups(t *testing.T) {
	p := swtpmtest.New(t)
	d, err := device.Open(t.Context(), device.Config{Path: p.Path})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	hash, err := d.EKHash()
	if err != nil {
		t.Fatal(err)
	}
	e := start(t, func(c *server.Config) {
		c.TPM = &server.TPMConfig{EKHashes: []string{fmt.Sprintf("%x", hash)}}
		c.NodeGroups = []policy.GroupConfig{{Name: "strict", SecureBoot: true, FirmwareMin: "ffffffffffffffff"}}
	})
	res, err := attestTPM(t, e.dial(nil), d)
	if err != nil {
		t.Fatal(err)
	}
	checked, err := e.admin.nodes.CheckNodes(t.Context(), &adminv1.CheckNodesRequest{})
	if err != nil || checked.Judged != 1 || len(checked.Refused) != 0 {
		t.Errorf("by no rules: %v, %v", checked, err)
	}
	checked, err = e.admin.nodes.CheckNodes(t.Context(), &adminv1.CheckNodesRequest{Group: "strict"})
	if err != nil || len(checked.Refused) != 1 || checked.Refused[0].SpiffeId != idText(res.Svid.Id) || len(checked.Refused[0].Findings) != 2 || checked.Refused[0].Findings[0].Rule != "secure_boot" {
		t.Errorf("by strict rules: %v, %v", checked, err)
	}
	checked, err = e.admin.nodes.CheckNodes(t.Context(), &adminv1.CheckNodesRequest{Group: "none"})
	if err != nil || len(checked.Refused) != 1 || !strings.Contains(checked.Refused[0].Error, `no node_group "none"`) {
		t.Errorf("by a group that is not there: %v, %v", checked, err)
	}
	// Rules that are only proposed: in place of the configured ones, and for a group that there is not.
	checked, err = e.admin.nodes.CheckNodes(t.Context(), &adminv1.CheckNodesRequest{Group: "strict", Groups: []*adminv1.NodeGroup{
		{Config: []byte(`{"name":"strict","firmware_min":"ffffffffffffffff","ima_allow":["/x/list.sha256"]}`), Files: map[string][]byte{"/x/list.sha256": []byte(strings.Repeat("0", 64) + "  /x")}},
	}})
	if err != nil || len(checked.Refused) != 1 || len(checked.FilesUnknown) != 0 || len(checked.Refused[0].Findings) != 2 || checked.Refused[0].Findings[1].Rule != "ima" {
		t.Errorf("by proposed rules: %v, %v", checked, err)
	}
	checked, err = e.admin.nodes.CheckNodes(t.Context(), &adminv1.CheckNodesRequest{Groups: []*adminv1.NodeGroup{{Config: []byte(`{"name":"default","secure_boot":true}`)}}})
	if err != nil || len(checked.Refused) != 1 {
		t.Errorf("by a proposed default: %v, %v", checked, err)
	}
	for want, g := range map[string]*adminv1.NodeGroup{
		"kernels": {Config: []byte(`{"name":"a","kernels":["x"]}`)}, "not sent": {Config: []byte(`{"name":"a","golden":"/etc/passwd"}`)}, `unknown field "colour"`: {Config: []byte(`{"colour":1}`)},
	} {
		_, err := e.admin.nodes.CheckNodes(t.Context(), &adminv1.CheckNodesRequest{Groups: []*adminv1.NodeGroup{g}})
		wantCode(t, want, err, codes.InvalidArgument)
		if text := status.Convert(err).Message(); !strings.Contains(text, want) {
			t.Errorf("%q does not say %q", text, want)
		}
	}
	device := &adminv1.Device{EkHash: fmt.Sprintf("%x", hash), Group: "strict"}
	if _, err := e.admin.nodes.AddInventory(t.Context(), &adminv1.AddInventoryRequest{Devices: []*adminv1.Device{device}}); err != nil {
		t.Fatal(err)
	}
	_, err = attestTPM(t, e.dial(nil), d)
	wantCode(t, "a node that breaks the rules", err, codes.PermissionDenied)
	if text := status.Convert(err).Message(); !strings.Contains(text, "secure_boot: expected enabled") || !strings.Contains(text, "firmware_min: expected ffffffffffffffff") {
		t.Errorf("text %q", text)
	}
}
