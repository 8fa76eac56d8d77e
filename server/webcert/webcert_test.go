// SPDX-License-Identifier: Apache-2.0

package webcert_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/server/webcert"
)

// write makes a new certificate and puts it and its key into dir.
func write(t *testing.T, dir string) *x509.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: serial, NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert
}

// TestFiles: a certificate that is renewed on disk is served without a restart, and not before it is
// looked at again; one that is broken is not served.
func TestFiles(t *testing.T) {
	dir := t.TempDir()
	now := time.Now()
	var log bytes.Buffer
	f := &webcert.Files{
		CertPath: filepath.Join(dir, "cert.pem"), KeyPath: filepath.Join(dir, "key.pem"), Every: time.Minute,
		Now: func() time.Time { return now }, Logger: slog.New(slog.NewTextHandler(&log, nil)),
	}
	if err := f.Load(); err == nil {
		t.Error("no files, and no error")
	}
	first := write(t, dir)
	if err := f.Load(); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- webcert.Serve(ctx, l, f.TLS(), http.NotFoundHandler(), slog.New(slog.DiscardHandler)) }()
	served := func() *x509.Certificate {
		t.Helper()
		conn, err := tls.Dial("tcp", l.Addr().String(), &tls.Config{InsecureSkipVerify: true, ClientSessionCache: tls.NewLRUClientSessionCache(1)})
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if conn.ConnectionState().DidResume {
			t.Error("a session is resumed")
		}
		return conn.ConnectionState().PeerCertificates[0]
	}
	if !served().Equal(first) {
		t.Error("not the first certificate")
	}
	second := write(t, dir)
	if !served().Equal(first) {
		t.Error("looked at before its time")
	}
	now = now.Add(time.Minute)
	if !served().Equal(second) {
		t.Error("not the renewed certificate")
	}
	if err := os.WriteFile(f.KeyPath, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	now = now.Add(time.Minute)
	if !served().Equal(second) || !strings.Contains(log.String(), "former one goes on") {
		t.Errorf("after a broken renewal the log says %s", &log)
	}
	third := write(t, dir)
	now = now.Add(time.Minute)
	if !served().Equal(third) {
		t.Error("not the repaired certificate")
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("Serve = %v", err)
	}
}

func TestACMERefuses(t *testing.T) {
	if _, err := (webcert.ACME{Domain: "x.test"}).TLS(); err == nil || !strings.Contains(err.Error(), "tos_accepted") {
		t.Errorf("terms not accepted: %v", err)
	}
	if _, err := (webcert.ACME{AcceptTOS: true}).TLS(); err == nil || !strings.Contains(err.Error(), "domain_name") {
		t.Errorf("no domain: %v", err)
	}
}
