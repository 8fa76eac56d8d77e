// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"log/slog"
	"math/big"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/proof"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

func identity(t *testing.T, a Attestor, life time.Duration) *node {
	t.Helper()
	_, key, err := a.Begin(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	id := spiffeid.RequireFromPath(td, "/spire/agent/join_token/x")
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now(), NotAfter: time.Now().Add(life), URIs: []*url.URL{id.URL()}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	b := spiffebundle.New(td)
	b.AddX509Authority(cert)
	return &node{svid: &x509svid.SVID{ID: id, Certificates: []*x509.Certificate{cert}, PrivateKey: key}, bundle: b}
}

func client(dir string) *Client {
	return New(Config{TrustDomain: td, Attestor: proof.JoinToken{Token: "x"}, Bootstrap: &word{}, DataDir: dir, Logger: slog.New(slog.DiscardHandler), Now: time.Now})
}

func TestIdentitySurvivesARestart(t *testing.T) {
	dir := t.TempDir()
	n := identity(t, proof.JoinToken{Token: "x"}, time.Hour)
	if err := client(dir).save(n); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(dir + "/agent.json"); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("agent.json: %v, %v", st, err)
	}
	c := client(dir)
	c.load()
	if c.node == nil || c.node.svid.ID != n.svid.ID || !c.node.bundle.Equal(n.bundle) {
		t.Errorf("restored %+v", c.node)
	}
	c.forget()
	if c2 := client(dir); c2.restoreErr() == nil {
		t.Error("a forgotten identity came back")
	}
}

func TestNodeThatCanAttestAgainDoesSo(t *testing.T) {
	dir := t.TempDir()
	n := identity(t, proof.JoinToken{Token: "x"}, time.Hour)
	n.reattestable = true
	if err := client(dir).save(n); err != nil {
		t.Fatal(err)
	}
	c := client(dir)
	c.load()
	if c.node != nil || c.kept == nil || !c.kept.HasX509Authority(n.svid.Certificates[0]) {
		t.Errorf("node %v, kept %v", c.node, c.kept)
	}
}

func (c *Client) restoreErr() error {
	s, b, err := c.read()
	if err == nil {
		_, err = c.restore(s, b)
	}
	return err
}

func TestExpiredAndBrokenStateIsNotUsed(t *testing.T) {
	dir := t.TempDir()
	if err := client(dir).save(identity(t, proof.JoinToken{Token: "x"}, -time.Second)); err != nil {
		t.Fatal(err)
	}
	if err := client(dir).restoreErr(); err == nil {
		t.Error("an expired SVID was restored")
	}
	if err := os.WriteFile(dir+"/agent.json", []byte(`{"attestor":"join_token"`), 0o600); err != nil {
		t.Fatal(err)
	}
	c := client(dir)
	c.load()
	if c.node != nil {
		t.Error("a broken file was restored")
	}
}

func denied(t *testing.T, reason types.PermissionDeniedDetails_Reason) error {
	t.Helper()
	st, err := status.New(codes.PermissionDenied, "no").WithDetails(&types.PermissionDeniedDetails{Reason: reason})
	if err != nil {
		t.Fatal(err)
	}
	return st.Err()
}

func TestVerdicts(t *testing.T) {
	for reason, want := range map[types.PermissionDeniedDetails_Reason]error{
		types.PermissionDeniedDetails_AGENT_BANNED:        ErrBanned,
		types.PermissionDeniedDetails_AGENT_EXPIRED:       errReattest,
		types.PermissionDeniedDetails_AGENT_NOT_ATTESTED:  errReattest,
		types.PermissionDeniedDetails_AGENT_NOT_ACTIVE:    errReattest,
		types.PermissionDeniedDetails_AGENT_MUST_REATTEST: errReattest,
	} {
		if err := verdict(denied(t, reason)); !errors.Is(err, want) {
			t.Errorf("%v: got %v", reason, err)
		}
	}
	plain := status.Error(codes.PermissionDenied, "no")
	if err := verdict(plain); errors.Is(err, ErrBanned) || errors.Is(err, errReattest) {
		t.Errorf("a bare denial became %v", err)
	}
	if err := admission("tpm", status.Error(codes.PermissionDenied, "unknown EK")); !errors.Is(err, ErrNotAdmitted) {
		t.Errorf("got %v", err)
	}
	if err := admission("tpm", status.Error(codes.PermissionDenied, "failed to attest: agent is banned")); !errors.Is(err, ErrBanned) {
		t.Errorf("banned: %v", err)
	}
	spent := admission("join_token", status.Error(codes.InvalidArgument, "failed to attest: join token does not exist or has already been used"))
	if !errors.Is(spent, ErrNotAdmitted) || !strings.Contains(spent.Error(), "assay token create") {
		t.Errorf("a spent token: %v", spent)
	}
	if err := admission("tpm", status.Error(codes.Unavailable, "x")); errors.Is(err, ErrNotAdmitted) {
		t.Errorf("got %v", err)
	}
}

func FuzzRestore(f *testing.F) {
	f.Add([]byte(`{"attestor":"join_token","chain":["AA=="],"key":"AA==","bundle":"e30=","reattestable":true}`))
	f.Add([]byte(`{}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		dir := t.TempDir()
		if err := os.WriteFile(dir+"/agent.json", data, 0o600); err != nil {
			t.Fatal(err)
		}
		c := client(dir)
		c.load() // whatever is there, the agent starts
		if c.node != nil && (c.node.svid.PrivateKey == nil || len(c.node.svid.Certificates) == 0) {
			t.Errorf("restored half an identity: %+v", c.node.svid)
		}
	})
}
