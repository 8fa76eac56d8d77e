// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/federation"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/assay-id/assay/server"
)

// webFiles makes a certificate for the loopback and returns the block that names its files.
func webFiles(t *testing.T) *server.ServingCertConfig {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	files := &server.ServingCertConfig{CertFilePath: filepath.Join(dir, "cert.pem"), KeyFilePath: filepath.Join(dir, "key.pem")}
	for path, block := range map[string]*pem.Block{files.CertFilePath: {Type: "CERTIFICATE", Bytes: der}, files.KeyFilePath: {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return files
}

func endpoint(t *testing.T, profile string, files *server.ServingCertConfig) *server.BundleEndpointConfig {
	return &server.BundleEndpointConfig{
		Address: "127.0.0.1", Port: freePort(t), RefreshHint: "2m",
		Profile: server.EndpointProfileConfig{Name: profile, ServingCertFile: files},
	}
}

// TestFederation: a server publishes its bundle in either profile, and another fetches it because its
// configuration says so. What needs the bundle works from then on.
func TestFederation(t *testing.T) {
	files := webFiles(t)
	other := start(t, func(c *server.Config) {
		c.TrustDomain = "other.test"
		c.Federation = &server.FederationConfig{BundleEndpoint: endpoint(t, "https_web", files)}
	})
	url := fmt.Sprintf("https://127.0.0.1:%d", other.conf.Federation.BundleEndpoint.Port)
	e := start(t, func(c *server.Config) {
		c.Federation = &server.FederationConfig{
			BundleEndpoint: endpoint(t, "https_spiffe", nil), WebCAPath: files.CertFilePath,
			FederatesWith: []server.FederatesWithConfig{{TrustDomain: "other.test", BundleEndpointURL: url, Profile: server.RelationshipProfileConfig{Name: "https_web"}}},
		}
	})
	entry := &types.Entry{ParentId: sid("/spire/agent/x"), SpiffeId: sid("/w"), Selectors: sel("unix", "uid:0"), FederatesWith: []string{"other.test"}}
	waitFor(t, "an entry that federates with other.test", func() bool {
		resp, err := e.admin.entry.BatchCreateEntry(t.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{entry}})
		if err != nil {
			t.Fatal(err)
		}
		return codes.Code(resp.Results[0].Status.Code) == codes.OK
	})
	if _, err := other.admin.bundle.AppendBundle(t.Context(), &bundlev1.AppendBundleRequest{JwtAuthorities: []*types.JWTKey{{KeyId: "added", PublicKey: pkixOf(t, newKey(t))}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := e.admin.trust.RefreshBundle(t.Context(), &trustdomainv1.RefreshBundleRequest{TrustDomain: "other.test"}); err != nil {
		t.Fatal(err)
	}
	refreshed, err := e.admin.bundle.GetFederatedBundle(t.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: "other.test"})
	if err != nil || !slices.ContainsFunc(refreshed.JwtAuthorities, func(k *types.JWTKey) bool { return k.KeyId == "added" }) {
		t.Errorf("after RefreshBundle: %v, %v", refreshed, err)
	}

	got, err := federation.FetchBundle(t.Context(), td, fmt.Sprintf("https://127.0.0.1:%d", e.conf.Federation.BundleEndpoint.Port),
		federation.WithSPIFFEAuth(e.bundle, spiffeid.RequireFromPath(td, "/spire/server")))
	if err != nil {
		t.Fatal(err)
	}
	if hint, _ := got.RefreshHint(); hint != 2*time.Minute || len(got.X509Authorities()) == 0 || !got.HasX509Authority(e.bundle.X509Authorities()[0]) {
		t.Errorf("the published bundle is %v", got)
	}
}

func TestOIDC(t *testing.T) {
	for name, c := range map[string]server.OIDCConfig{
		"insecure": {BindAddress: "127.0.0.1", BindPort: freePort(t), Insecure: true},
		"socket":   {SocketPath: filepath.Join(t.TempDir(), "oidc.sock")},
	} {
		t.Run(name, func(t *testing.T) {
			c.Domains = []string{"127.0.0.1"}
			start(t, func(conf *server.Config) { conf.OIDC = &c })
			client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				if c.SocketPath != "" {
					network, addr = "unix", c.SocketPath
				}
				return new(net.Dialer).DialContext(ctx, network, addr)
			}}}
			base := fmt.Sprintf("http://127.0.0.1:%d", c.BindPort)
			resp, err := client.Get(base + "/.well-known/openid-configuration")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			var doc struct {
				Issuer string `json:"issuer"`
			}
			want := base
			if c.SocketPath != "" { // the web server in front has the certificate
				want = strings.Replace(base, "http:", "https:", 1)
			}
			if err := json.Unmarshal(body, &doc); err != nil || doc.Issuer != want {
				t.Errorf("%s, %v; want issuer %s", body, err, want)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestWebConfig(t *testing.T) {
	web := func(p server.EndpointProfileConfig) *server.FederationConfig {
		return &server.FederationConfig{BundleEndpoint: &server.BundleEndpointConfig{Profile: p}}
	}
	with := func(fs ...server.FederatesWithConfig) *server.FederationConfig {
		return &server.FederationConfig{FederatesWith: fs}
	}
	files := webFiles(t)
	good := server.FederatesWithConfig{TrustDomain: "a.test", BundleEndpointURL: "https://a.test", Profile: server.RelationshipProfileConfig{Name: "https_web"}}
	change := func(change func(*server.FederatesWithConfig)) *server.FederationConfig {
		f := good
		change(&f)
		return with(f)
	}
	for want, c := range map[string]struct {
		federation *server.FederationConfig
		oidc       *server.OIDCConfig
	}{
		"":                                 {with(good), &server.OIDCConfig{Domains: []string{"x"}, ServingCertFile: files}},
		`profile "x"`:                      {federation: web(server.EndpointProfileConfig{Name: "x"})},
		"add one of the blocks":            {federation: web(server.EndpointProfileConfig{Name: "https_web"})},
		"remove the blocks in it":          {federation: web(server.EndpointProfileConfig{Name: "https_spiffe", ServingCertFile: files})},
		"tos_accepted":                     {federation: web(server.EndpointProfileConfig{Name: "https_web", ACME: &server.ACMEConfig{DomainName: "x"}})},
		"serving_cert_file: stat /none":    {federation: web(server.EndpointProfileConfig{Name: "https_web", ServingCertFile: &server.ServingCertConfig{CertFilePath: "/none"}})},
		"refresh_hint":                     {federation: &server.FederationConfig{BundleEndpoint: &server.BundleEndpointConfig{RefreshHint: "soon"}}},
		"web_ca_path: open /none":          {federation: &server.FederationConfig{WebCAPath: "/none"}},
		"own trust domain":                 {federation: change(func(f *server.FederatesWithConfig) { f.TrustDomain = "example.org" })},
		"it is there twice":                {federation: with(good, good)},
		"does not begin with https":        {federation: change(func(f *server.FederatesWithConfig) { f.BundleEndpointURL = "http://a.test" })},
		"needs the endpoint's SPIFFE ID":   {federation: change(func(f *server.FederatesWithConfig) { f.Profile.Name = "https_spiffe" })},
		"endpoint_spiffe_id":               {federation: change(func(f *server.FederatesWithConfig) { f.Profile.EndpointSPIFFEID = "x" })},
		"oidc: add one of the blocks":      {oidc: &server.OIDCConfig{Domains: []string{"x"}}},
		"oidc: domains":                    {oidc: &server.OIDCConfig{Insecure: true}},
		"oidc: socket_path is for":         {oidc: &server.OIDCConfig{SocketPath: "/x", Insecure: true}},
		"oidc: socket_path \"x\": write":   {oidc: &server.OIDCConfig{SocketPath: "x"}},
		"oidc: insecure is plain HTTP":     {oidc: &server.OIDCConfig{Insecure: true, ServingCertFile: files}},
		"oidc: file_sync_interval \"1 m\"": {oidc: &server.OIDCConfig{ServingCertFile: &server.ServingCertConfig{CertFilePath: files.CertFilePath, KeyFilePath: files.KeyFilePath, FileSyncInterval: "1 m"}}},
	} {
		conf := server.Config{TrustDomain: "example.org", JoinToken: &server.JoinTokenConfig{}, Federation: c.federation, OIDC: c.oidc}
		if err := conf.Validate(); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("Validate = %v, want %q", err, want)
		}
	}
}
