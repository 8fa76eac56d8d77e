// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/tpm/devidtest"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

// TestDevID: a node that speaks SPIRE's tpm_devid over the wire, with a real software TPM.
func TestDevID(t *testing.T) {
	p := swtpmtest.New(t)
	a := devidtest.New(t, p, true)
	dir := t.TempDir()
	write := func(name string, data []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, data, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	e := start(t, func(c *server.Config) {
		c.DevID = &server.DevIDConfig{
			DevIDCAPath:       write("devid.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.CA.Raw})),
			EndorsementCAPath: write("ek.pem", p.CAPEM),
		}
	})
	time.Sleep(time.Second) // swtpm's certificates begin now
	key := newKey(t)
	attest := func(spoil func([]byte) []byte) (*agentv1.AttestAgentResponse_Result, error) {
		stream, err := e.dial(nil).agent.AttestAgent(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
			Data:   &types.AttestationData{Type: "tpm_devid", Payload: a.Open()},
			Params: &agentv1.AgentX509SVIDParams{Csr: newCSR(t, key, &x509.CertificateRequest{})},
		}}})
		if err != nil {
			t.Fatal(err)
		}
		resp, err := stream.Recv()
		if err != nil {
			return nil, err
		}
		err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: spoil(a.Answer(resp.GetChallenge()))}})
		if err != nil {
			t.Fatal(err)
		}
		if resp, err = stream.Recv(); err != nil {
			return nil, err
		}
		return resp.GetResult(), nil
	}
	_, err := attest(func([]byte) []byte { return []byte(`{"DevID":null,"CredActivation":null}`) })
	wantCode(t, "no proof", err, codes.InvalidArgument)
	res, err := attest(func(b []byte) []byte { return b })
	if err != nil {
		t.Fatal(err)
	}
	if want := "/spire/agent/tpm_devid/" + fingerprint(a.Leaf); res.Svid.Id.Path != want || !res.Reattestable {
		t.Errorf("%v, want %s", res, want)
	}
	n, err := e.admin.agent.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: res.Svid.Id})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range n.Selectors {
		got = append(got, s.Type+":"+s.Value)
	}
	slices.Sort(got)
	if want := []string{"tpm_devid:ca:fingerprint:" + fingerprint(a.CA), "tpm_devid:issuer:cn:devid ca", "tpm_devid:subject:cn:node"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
	if _, err := e.agentOf(res.Svid, key).entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{}); err != nil {
		t.Errorf("the SVID does not count: %v", err)
	}
}
