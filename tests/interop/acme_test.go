// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/assay-id/assay/server/webcert"
)

// TestACME has a listener's certificate from pebble, Let's Encrypt's test server: the challenge is
// answered on the listener itself, which pebble finds by name.
func TestACME(t *testing.T) {
	const name = "bundles.example.org"
	pebble := program(t, "PEBBLE")
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fatal(t, err)
	directory, roots := startPebble(t, pebble, dir, l.Addr().(*net.TCPAddr).Port)

	conf, err := webcert.ACME{Domain: name, Directory: directory, Roots: roots, CacheDir: filepath.Join(dir, "cache"), AcceptTOS: true}.TLS()
	fatal(t, err)
	done := make(chan error, 1)
	go func() {
		done <- webcert.Serve(t.Context(), l, conf, http.NotFoundHandler(), slog.New(slog.DiscardHandler))
	}()
	t.Cleanup(func() { fatal(t, <-done) })

	served := func(name string) (*x509.Certificate, error) {
		dialer := tls.Dialer{NetDialer: &net.Dialer{Timeout: time.Minute}, Config: &tls.Config{ServerName: name, InsecureSkipVerify: true}}
		conn, err := dialer.DialContext(t.Context(), "tcp", l.Addr().String())
		if err != nil {
			return nil, err
		}
		defer conn.Close()
		return conn.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
	}
	cert, err := served(name)
	fatal(t, err)
	if err := cert.VerifyHostname(name); err != nil || cert.CheckSignatureFrom(cert) == nil {
		t.Errorf("the certificate is of %s: %v", cert.Issuer, err)
	}
	again, err := served(name)
	if err != nil || !again.Equal(cert) {
		t.Errorf("the next connection has another certificate (%v)", err)
	}
	if other, err := served("other.example.org"); err == nil {
		t.Errorf("a certificate for another name: %v", other.DNSNames)
	}
}

// startPebble returns the URL of its directory and what vouches for it.
func startPebble(t *testing.T, program, dir string, tlsPort int) (string, *x509.CertPool) {
	t.Helper()
	certificate, key := loopback(t, dir)
	address, management := freeAddress(t), freeAddress(t)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": address, "managementListenAddress": management, "tlsPort": tlsPort, "httpPort": tlsPort,
		"certificate": certificate, "privateKey": key,
		"profiles": map[string]any{"default": map[string]any{"description": "ninety days", "validityPeriod": 90 * 24 * 3600}},
	}})
	fatal(t, err)
	log := &output{}
	cmd := exec.CommandContext(t.Context(), program, "-config", write(t, filepath.Join(dir, "pebble.json"), string(config)), "-dnsserver", serveDNS(t))
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1")
	cmd.Stdout, cmd.Stderr = log, log
	fatal(t, cmd.Start())
	t.Cleanup(func() {
		_ = cmd.Wait() // the context ended it
		if t.Failed() {
			t.Logf("--- pebble\n%s", log)
		}
	})
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if conn, err := net.Dial("tcp", address); err == nil {
			conn.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("pebble does not start")
		}
	}
	text, err := os.ReadFile(certificate)
	fatal(t, err)
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	return fmt.Sprintf("https://%s/dir", address), roots
}

// loopback makes a web server's certificate that vouches for itself, and its key.
func loopback(t *testing.T, dir string) (certificate, key string) {
	t.Helper()
	signer, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	fatal(t, err)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, signer.Public(), signer)
	fatal(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(signer)
	fatal(t, err)
	return write(t, filepath.Join(dir, "web.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))),
		write(t, filepath.Join(dir, "web.key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
}

func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fatal(t, err)
	defer l.Close()
	return l.Addr().String()
}

// serveDNS says of every name that it is here, and returns its own address. Pebble asks by TCP.
func serveDNS(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	fatal(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go answerDNS(conn)
		}
	}()
	return l.Addr().String()
}

// answerDNS answers messages with their length before them, until one is wrong.
func answerDNS(conn net.Conn) {
	defer conn.Close()
	for {
		var length uint16
		if binary.Read(conn, binary.BigEndian, &length) != nil {
			return
		}
		question := make([]byte, length)
		var m dnsmessage.Message
		if _, err := io.ReadFull(conn, question); err != nil || m.Unpack(question) != nil || len(m.Questions) != 1 {
			return
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Class: q.Class, TTL: 1}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}},
			}}
		}
		answer, err := m.Pack()
		if err != nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}
