// SPDX-License-Identifier: Apache-2.0

// Package bootstrap gets what an agent knows the server by the first time: a file, a URL, or by the operator's
// explicit word nothing. Names and forms are those of SPIRE's agent.
package bootstrap

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Config says where the bundle is. Exactly one of Path, URL and Insecure is set.
type Config struct {
	TrustDomain spiffeid.TrustDomain
	Path        string
	// URL is https, whose server is known by the system's CAs, or http with UnixSocket, whose server is known by
	// the rights on that file.
	URL, UnixSocket string
	// Format is "pem" (default) or "spiffe": a bundle document (SPIFFE_Trust_Domain_and_Bundle, section 4).
	Format string
	// Insecure trusts whatever server answers the first time.
	Insecure bool
}

const (
	timeout = 30 * time.Second
	maxSize = 4 << 20 // bytes
	advice  = "make the file with `assay bundle show`"
)

// Source is where the bundle comes from.
type Source struct{ Config }

// New checks the configuration, and reads the file if there is one.
func New(c Config) (*Source, error) {
	ways := 0
	for _, named := range []bool{c.Path != "", c.URL != "", c.Insecure} {
		if named {
			ways++
		}
	}
	switch {
	case ways == 0:
		return nil, errors.New("the server can not be authenticated: set trust_bundle_path to a file made by `assay bundle show`, or trust_bundle_url (or insecure_bootstrap = true on a network you trust)")
	case ways > 1:
		return nil, errors.New("set only one of trust_bundle_path, trust_bundle_url and insecure_bootstrap: the server is authenticated the first time by one of them")
	case c.Format == "":
		c.Format = "pem"
	case c.Format != "pem" && c.Format != "spiffe":
		return nil, fmt.Errorf("trust_bundle_format %q: write \"pem\" or \"spiffe\"", c.Format)
	}
	if err := c.checkURL(); err != nil {
		return nil, err
	}
	s := &Source{c}
	if c.Path != "" {
		if _, err := s.file(); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (c Config) checkURL() error {
	if c.URL == "" {
		if c.UnixSocket != "" {
			return errors.New("trust_bundle_unix_socket needs trust_bundle_url: write what to ask there, as in \"http://localhost/bundle\"")
		}
		return nil
	}
	u, err := url.Parse(c.URL)
	switch {
	case err != nil:
		return fmt.Errorf("trust_bundle_url: %w", err)
	case u.Host == "":
		return fmt.Errorf("trust_bundle_url %q: write a whole URL", c.URL)
	case c.UnixSocket == "" && u.Scheme != "https":
		return fmt.Errorf("trust_bundle_url %q: write an https URL, since whoever answers becomes the one who is trusted (http is for trust_bundle_unix_socket)", c.URL)
	case c.UnixSocket != "" && u.Scheme != "http":
		return fmt.Errorf("trust_bundle_url %q: with trust_bundle_unix_socket write an http URL", c.URL)
	}
	return nil
}

// Word names what the operator said: when it is another one, what was learnt by the former is not valid any more.
func (s *Source) Word() string {
	switch {
	case s.Path != "":
		data, err := os.ReadFile(s.Path)
		if err != nil { // Fetch tells
			return ""
		}
		return fmt.Sprintf("sha256:%x", sha256.Sum256(data))
	case s.URL != "":
		return s.UnixSocket + " " + s.URL
	}
	return "insecure"
}

// Fetch returns the bundle, which has authorities; nil for Insecure.
func (s *Source) Fetch(ctx context.Context) (*spiffebundle.Bundle, error) {
	switch {
	case s.Path != "":
		return s.file()
	case s.URL != "":
		b, err := s.download(ctx)
		if err != nil {
			return nil, fmt.Errorf("trust_bundle_url %s: %w", s.URL, err)
		}
		return b, nil
	}
	return nil, nil
}

func (s *Source) file() (*spiffebundle.Bundle, error) {
	data, err := os.ReadFile(s.Path)
	if err != nil {
		return nil, fmt.Errorf("trust_bundle_path: %w; %s", err, advice)
	}
	b, err := s.parse(data)
	if err != nil {
		return nil, fmt.Errorf("trust_bundle_path %s %w; %s", s.Path, err, advice)
	}
	return b, nil
}

func (s *Source) download(ctx context.Context) (*spiffebundle.Bundle, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, DisableKeepAlives: true}
	if s.UnixSocket != "" {
		transport = &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", s.UnixSocket)
		}}
	}
	client := &http.Client{Transport: transport, CheckRedirect: func(r *http.Request, via []*http.Request) error {
		if len(via) > 3 || r.URL.Scheme != via[0].URL.Scheme {
			return errors.New("it redirects to " + r.URL.Redacted())
		}
		return nil
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s", resp.Status)
	}
	data, err := io.ReadAll(io.LimitReader(resp.Body, maxSize+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxSize {
		return nil, fmt.Errorf("it answers more than %d MiB", maxSize>>20)
	}
	return s.parse(data)
}

// parse takes the X.509 authorities alone: they authenticate the server, who tells the rest.
func (s *Source) parse(data []byte) (*spiffebundle.Bundle, error) {
	var x *x509bundle.Bundle
	if s.Format == "spiffe" {
		b, err := spiffebundle.Parse(s.TrustDomain, data)
		if err != nil {
			return nil, fmt.Errorf("holds no SPIFFE bundle: %w", err)
		}
		x = b.X509Bundle()
	} else {
		var err error
		if x, err = x509bundle.Parse(s.TrustDomain, data); err != nil {
			return nil, errors.New("holds no PEM certificates") // what it has instead tells nobody anything
		}
	}
	if x.Empty() {
		return nil, errors.New("holds no X.509 authorities")
	}
	return spiffebundle.FromX509Bundle(x), nil
}
