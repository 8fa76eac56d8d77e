// SPDX-License-Identifier: Apache-2.0

// Package webcert has the certificates by which web clients know a listener: from files that someone
// else renews, or from a certificate authority that speaks ACME (RFC 8555).
package webcert

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"sync"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// TLS is the configuration of a listener that anyone may connect to. It has no session tickets, so
// that every connection sees the present certificate, and of Go's suites for TLS 1.2 those that are in
// Mozilla's "intermediate" (SPIFFE Federation, section 5), which has none with CBC.
func TLS(get func(*tls.ClientHelloInfo) (*tls.Certificate, error)) *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, ClientAuth: tls.NoClientCert, SessionTicketsDisabled: true, NextProtos: []string{"h2", "http/1.1"}, GetCertificate: get,
		CipherSuites: []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256}}
}

// Files is a certificate chain and its key in PEM files, read again when they change.
type Files struct {
	CertPath, KeyPath string
	// Every is how often the files are looked at, at the most.
	Every  time.Duration
	Logger *slog.Logger
	Now    func() time.Time

	mu     sync.Mutex
	cert   *tls.Certificate
	stamp  [2]fileStamp
	looked time.Time
}

// fileStamp tells one state of a file from another.
type fileStamp struct {
	modified time.Time
	size     int64
}

// Load reads the files and reports what is wrong with them.
func (f *Files) Load() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.load()
}

func (f *Files) load() error {
	f.looked = f.Now()
	var stamp [2]fileStamp
	for i, path := range []string{f.CertPath, f.KeyPath} {
		st, err := os.Stat(path)
		if err != nil {
			return err
		}
		stamp[i] = fileStamp{st.ModTime(), st.Size()}
	}
	if f.cert != nil && stamp == f.stamp {
		return nil
	}
	cert, err := tls.LoadX509KeyPair(f.CertPath, f.KeyPath)
	if err != nil {
		return fmt.Errorf("%s with %s: %w", f.CertPath, f.KeyPath, err)
	}
	f.cert, f.stamp = &cert, stamp
	return nil
}

// TLS serves the files. While they can not be read the former certificate goes on.
func (f *Files) TLS() *tls.Config {
	return TLS(func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.cert == nil || f.Now().Sub(f.looked) >= f.Every {
			if err := f.load(); err != nil && f.cert == nil {
				return nil, err
			} else if err != nil {
				f.Logger.Error("the certificate on disk can not be read; the former one goes on", "error", err)
			}
		}
		return f.cert, nil
	})
}

// ACME is how a certificate is had from an ACME authority. The challenge is answered on the listener
// itself (tls-alpn-01), which must be reachable at port 443 of Domain.
type ACME struct {
	Domain, Email string
	// Directory of the authority; empty: Let's Encrypt.
	Directory string
	// CacheDir keeps account key and certificates, mode 0700.
	CacheDir string
	// AcceptTOS: the operator accepts the authority's terms of service.
	AcceptTOS bool
	// Roots vouch for the authority's own web server; nil: the system's.
	Roots *x509.CertPool
}

// TLS obtains the certificate at the first connection and renews it 30 days before it expires.
func (a ACME) TLS() (*tls.Config, error) {
	if !a.AcceptTOS {
		return nil, errors.New("acme: set tos_accepted = true to accept the terms of service of the certificate authority")
	}
	if a.Domain == "" {
		return nil, errors.New("acme: set domain_name")
	}
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: a.Roots}
	client := &acme.Client{UserAgent: "assay", DirectoryURL: a.Directory, HTTPClient: &http.Client{Transport: transport, Timeout: time.Minute}}
	m := &autocert.Manager{Prompt: autocert.AcceptTOS, Cache: autocert.DirCache(a.CacheDir), HostPolicy: autocert.HostWhitelist(a.Domain), Email: a.Email, Client: client}
	conf := TLS(m.GetCertificate)
	conf.NextProtos = append(conf.NextProtos, acme.ALPNProto)
	return conf, nil
}
