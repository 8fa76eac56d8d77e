// SPDX-License-Identifier: Apache-2.0

package bootstrap

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

var td = spiffeid.RequireTrustDomainFromString("example.org")

// authority is a CA in both forms.
func authority(t testing.TB) (cert *x509.Certificate, asPEM, document []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	b := spiffebundle.New(td)
	b.AddX509Authority(cert)
	if document, err = b.Marshal(); err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), document
}

func write(t *testing.T, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestForms(t *testing.T) {
	cert, asPEM, document := authority(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/pem", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(asPEM) })
	mux.HandleFunc("/spiffe", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(document) })
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	local := &http.Server{Handler: mux}
	go local.Serve(l) //nolint:errcheck // ends with Close
	t.Cleanup(func() { local.Close() })
	write(t, dir+"/pem", asPEM)
	write(t, dir+"/spiffe", document)
	for _, c := range []Config{
		{Path: dir + "/pem"}, {Path: dir + "/spiffe", Format: "spiffe"},
		{URL: "http://localhost/pem", UnixSocket: socket}, {URL: "http://localhost/spiffe", UnixSocket: socket, Format: "spiffe"},
	} {
		c.TrustDomain = td
		s, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		b, err := s.Fetch(t.Context())
		if err != nil || len(b.X509Authorities()) != 1 || !b.HasX509Authority(cert) {
			t.Errorf("%+v: %v, %v", c, b, err)
		}
	}
	if s, err := New(Config{Insecure: true}); err != nil {
		t.Error(err)
	} else if b, err := s.Fetch(t.Context()); b != nil || err != nil {
		t.Errorf("insecure: %v, %v", b, err)
	}
}

// The server of an https URL is one that the system's CAs vouch for, and what it answers has a bound and is a bundle.
func TestRefusals(t *testing.T) {
	_, asPEM, _ := authority(t)
	web := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(asPEM) }))
	t.Cleanup(web.Close)
	answers := map[string]http.HandlerFunc{
		"it answers 404":      http.NotFound,
		"holds no":            func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("hello")) },
		"it answers more":     func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, maxSize+1)) },
		"it redirects to htt": func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, web.URL, http.StatusFound) },
	}
	fetch := func(c Config, want string) {
		t.Helper()
		c.TrustDomain = td
		s, err := New(c)
		if err != nil {
			t.Fatal(err)
		}
		if b, err := s.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, %v; want %q", c, b, err, want)
		}
	}
	fetch(Config{URL: web.URL}, "certificate signed by unknown authority")
	for want, h := range answers {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		if err != nil {
			t.Fatal(err)
		}
		local := &http.Server{Handler: h}
		go local.Serve(l) //nolint:errcheck // ends with Close
		t.Cleanup(func() { local.Close() })
		fetch(Config{URL: "http://localhost/", UnixSocket: l.Addr().String()}, want)
	}
}

func TestWrongConfigurations(t *testing.T) {
	dir := t.TempDir()
	write(t, dir+"/empty", nil)
	for want, c := range map[string]Config{
		"can not be authenticated":               {},
		"set only one":                           {Path: dir + "/empty", Insecure: true},
		"write an https URL":                     {URL: "http://a/b"},
		"write an http URL":                      {URL: "https://a/b", UnixSocket: "/s"},
		"needs trust_bundle_url":                 {Path: dir + "/empty", UnixSocket: "/s"},
		"write \"pem\" or \"spiffe\"":            {Path: dir + "/empty", Format: "jwks"},
		"make the file with `assay bundle show`": {Path: dir + "/empty"},
		"no such file":                           {Path: dir + "/none"},
		"write a whole URL":                      {URL: "https:"},
	} {
		c.TrustDomain = td
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v, want %q", c, err, want)
		}
	}
}

func TestWord(t *testing.T) {
	_, one, _ := authority(t)
	_, two, _ := authority(t)
	path := filepath.Join(t.TempDir(), "b")
	write(t, path, one)
	s, err := New(Config{TrustDomain: td, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	first := s.Word()
	write(t, path, two)
	if second, third := s.Word(), s.Word(); first == "" || first == second || second != third {
		t.Errorf("%q, then %q, %q", first, second, third)
	}
}

func FuzzParse(f *testing.F) {
	_, asPEM, document := authority(f)
	f.Add(asPEM, false)
	f.Add(document, true)
	f.Fuzz(func(t *testing.T, data []byte, spiffe bool) {
		s := &Source{Config{TrustDomain: td, Format: "pem"}}
		if spiffe {
			s.Format = "spiffe"
		}
		if b, err := s.parse(data); err == nil && len(b.X509Authorities()) == 0 {
			t.Error("took a bundle that authenticates nothing")
		}
	})
}
