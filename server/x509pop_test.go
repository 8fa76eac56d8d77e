// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/assay-id/assay/server"
)

// issuer is one CA of a PKI outside.
type issuer struct {
	cert *x509.Certificate
	key  crypto.Signer
}

var serial int64 = 0xabc - 1

func (i *issuer) issue(t *testing.T, template *x509.Certificate, key crypto.Signer) *x509.Certificate {
	t.Helper()
	serial++
	template.SerialNumber, template.NotBefore, template.NotAfter = big.NewInt(serial), time.Now().Add(-time.Minute), time.Now().Add(time.Hour)
	parent, signer := template, key
	if i != nil {
		parent, signer = i.cert, i.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func (i *issuer) ca(t *testing.T, name string) *issuer {
	t.Helper()
	key := newKey(t)
	return &issuer{i.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}, key), key}
}

func leafTemplate(cn string, uris ...string) *x509.Certificate {
	c := &x509.Certificate{Subject: pkix.Name{CommonName: cn}, KeyUsage: x509.KeyUsageDigitalSignature}
	for _, text := range uris {
		u, err := url.Parse(text)
		if err != nil {
			panic(err)
		}
		c.URIs = append(c.URIs, u)
	}
	return c
}

// spireAgent attests as SPIRE's agent does (research: spire-wire §2.3), with messages of its own
// making: nothing of package x509pop is used.
func spireAgent(t *testing.T, c *clients, chain []*x509.Certificate, key crypto.Signer, svidKey *ecdsa.PrivateKey) (*agentv1.AttestAgentResponse_Result, error) {
	t.Helper()
	raw := [][]byte{}
	for _, cert := range chain {
		raw = append(raw, cert.Raw)
	}
	payload, err := json.Marshal(map[string]any{"certificates": raw})
	if err != nil {
		t.Fatal(err)
	}
	stream, err := c.agent.AttestAgent(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_Params_{Params: &agentv1.AttestAgentRequest_Params{
		Data:   &types.AttestationData{Type: "x509pop", Payload: payload},
		Params: &agentv1.AgentX509SVIDParams{Csr: newCSR(t, svidKey, &x509.CertificateRequest{})},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		return nil, err
	}
	var challenge map[string]*struct{ Nonce []byte }
	if err := json.Unmarshal(resp.GetChallenge(), &challenge); err != nil || len(challenge) != 2 {
		t.Fatalf("challenge %s: %v; both keys must be there", resp.GetChallenge(), err)
	}
	err = stream.Send(&agentv1.AttestAgentRequest{Step: &agentv1.AttestAgentRequest_ChallengeResponse{ChallengeResponse: answer(t, challenge, key)}})
	if err != nil {
		t.Fatal(err)
	}
	if resp, err = stream.Recv(); err != nil {
		return nil, err
	}
	return resp.GetResult(), nil
}

func answer(t *testing.T, challenge map[string]*struct{ Nonce []byte }, key crypto.Signer) []byte {
	t.Helper()
	nonce := make([]byte, 32)
	if _, err := rand.Read(nonce); err != nil {
		t.Fatal(err)
	}
	digest := func(kind string) []byte {
		if challenge[kind] == nil {
			t.Fatalf("no %s in %v", kind, challenge)
		}
		sum := sha256.Sum256(append(challenge[kind].Nonce, nonce...))
		return sum[:]
	}
	out := map[string]any{"rsa_signature": nil, "ecdsa_signature": nil}
	switch key := key.(type) {
	case *rsa.PrivateKey:
		sig, err := rsa.SignPSS(rand.Reader, key, crypto.SHA256, digest("rsa_signature"), nil)
		if err != nil {
			t.Fatal(err)
		}
		out["rsa_signature"] = map[string]any{"nonce": nonce, "signature": sig}
	case *ecdsa.PrivateKey:
		r, s, err := ecdsa.Sign(rand.Reader, key, digest("ecdsa_signature"))
		if err != nil {
			t.Fatal(err)
		}
		out["ecdsa_signature"] = map[string]any{"nonce": nonce, "r": r.Bytes(), "s": s.Bytes()}
	}
	data, err := json.Marshal(out)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func fingerprint(c *x509.Certificate) string { return fmt.Sprintf("%x", sha1.Sum(c.Raw)) }

func startX509POP(t *testing.T, root *issuer, change func(*server.X509POPConfig)) *env {
	t.Helper()
	path := filepath.Join(t.TempDir(), "roots.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: root.cert.Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return start(t, func(c *server.Config) {
		c.X509POP = &server.X509POPConfig{CABundlePath: path}
		c.AllowWithoutEvidence = []string{"x509pop"}
		if change != nil {
			change(c.X509POP)
		}
	})
}

func TestX509POP(t *testing.T) {
	root := (*issuer)(nil).ca(t, "root")
	middle := root.ca(t, "middle")
	e := startX509POP(t, root, nil)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for kind, key := range map[string]crypto.Signer{"rsa": rsaKey, "ecdsa": newKey(t)} {
		leaf := middle.issue(t, leafTemplate("node "+kind, "x509pop://example.org/rack/seven/left", "x509pop://other.org/rack/9", "x509pop://example.org/alone"), key)
		svidKey := newKey(t)
		res, err := spireAgent(t, e.dial(nil), []*x509.Certificate{leaf, middle.cert}, key, svidKey)
		if err != nil {
			t.Fatalf("%s: %v", kind, err)
		}
		if want := "/spire/agent/x509pop/" + fingerprint(leaf); res.Svid.Id.Path != want || !res.Reattestable {
			t.Errorf("%s: %v, want %s", kind, res, want)
		}
		n, err := e.admin.agent.GetAgent(t.Context(), &agentv1.GetAgentRequest{Id: res.Svid.Id})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, s := range n.Selectors {
			got = append(got, s.Type+":"+s.Value)
		}
		want := []string{
			"x509pop:subject:cn:node " + kind, "x509pop:ca:fingerprint:" + fingerprint(middle.cert), "x509pop:ca:fingerprint:" + fingerprint(root.cert),
			fmt.Sprintf("x509pop:serialnumber:0%x", leaf.SerialNumber), "x509pop:san:rack:seven/left",
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) || n.AttestationType != "x509pop" || !n.CanReattest {
			t.Errorf("%s: %q, want %q", kind, got, want)
		}
		a := e.agentOf(res.Svid, svidKey)
		if _, err := a.entry.GetAuthorizedEntries(t.Context(), &entryv1.GetAuthorizedEntriesRequest{}); err != nil {
			t.Errorf("%s: the SVID does not count: %v", kind, err)
		}
		_, err = a.agent.RenewAgent(t.Context(), &agentv1.RenewAgentRequest{Params: &agentv1.AgentX509SVIDParams{Csr: newCSR(t, svidKey, &x509.CertificateRequest{})}})
		wantDenied(t, "renewing", err, types.PermissionDeniedDetails_AGENT_MUST_REATTEST)
	}
}

func TestX509POPRefusals(t *testing.T) {
	root, foreign := (*issuer)(nil).ca(t, "root"), (*issuer)(nil).ca(t, "foreign")
	e := startX509POP(t, root, func(c *server.X509POPConfig) { c.MaxIntermediates, c.MaxRSAKeySize = 1, 1024 })
	key := newKey(t)
	good := root.issue(t, leafTemplate("n"), key)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		chain []*x509.Certificate
		key   crypto.Signer
		code  codes.Code
	}{
		"another key":          {[]*x509.Certificate{good}, newKey(t), codes.PermissionDenied},
		"a foreign CA":         {[]*x509.Certificate{foreign.issue(t, leafTemplate("n"), key)}, key, codes.PermissionDenied},
		"no certificate":       {nil, key, codes.InvalidArgument},
		"two intermediates":    {[]*x509.Certificate{good, root.cert, root.cert}, key, codes.InvalidArgument},
		"a large key":          {[]*x509.Certificate{root.issue(t, leafTemplate("n"), rsaKey)}, rsaKey, codes.InvalidArgument},
		"no digital signature": {[]*x509.Certificate{root.issue(t, &x509.Certificate{Subject: pkix.Name{CommonName: "n"}, KeyUsage: x509.KeyUsageKeyAgreement}, key)}, key, codes.Internal},
	} {
		_, err := spireAgent(t, e.dial(nil), c.chain, c.key, newKey(t))
		wantCode(t, what, err, c.code)
	}
	_, err = attest(t, e.dial(nil), "x509pop", []byte("x"), newKey(t))
	wantCode(t, "no JSON", err, codes.InvalidArgument)
}

func TestX509POPPathTemplate(t *testing.T) {
	root := (*issuer)(nil).ca(t, "root")
	e := startX509POP(t, root, func(c *server.X509POPConfig) {
		c.AgentPathTemplate = "/{{ .URISanSelectors.kind }}/{{ .Subject.CommonName }}/{{ .SerialNumberHex }}"
	})
	key := newKey(t)
	leaf := root.issue(t, leafTemplate("node-1", "x509pop://example.org/kind/db"), key)
	res, err := spireAgent(t, e.dial(nil), []*x509.Certificate{leaf}, key, newKey(t))
	if err != nil || res.Svid.Id.Path != fmt.Sprintf("/spire/agent/db/node-1/0%x", leaf.SerialNumber) {
		t.Errorf("%v, %v", res, err)
	}
	for what, template := range map[string]*x509.Certificate{
		"a missing selector": leafTemplate("node-1"), "a space": leafTemplate("node 1", "x509pop://example.org/kind/db"),
		"another attestor's path": leafTemplate(strings.Repeat("0", 64), "x509pop://example.org/kind/tpm"),
	} {
		_, err := spireAgent(t, e.dial(nil), []*x509.Certificate{root.issue(t, template, key)}, key, newKey(t))
		wantCode(t, what, err, codes.Internal)
	}
}
