// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

// What one fetch may cost us.
const (
	fetchTimeout = 30 * time.Second
	maxDocument  = 4 << 20 // bytes
	maxRedirects = 5
)

// fetch gets the bundle from its endpoint, always beginning at the configured URL and with a
// connection of its own. go-spiffe's federation.FetchBundle is not used: it reads answers of any size
// and status, and follows redirects to plain http.
func (r *Registry) fetch(ctx context.Context, rel Relationship) (*Bundle, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	tlsConf, err := r.clientTLS(rel)
	if err != nil {
		return nil, err
	}
	client := http.Client{
		Transport: &http.Transport{
			Proxy: http.ProxyFromEnvironment, TLSClientConfig: tlsConf, DisableKeepAlives: true, MaxResponseHeaderBytes: 64 << 10,
		},
		// Every hop is a valid endpoint and is authenticated as the first (§5.2.1.4, §5.2.2.4).
		CheckRedirect: func(req *http.Request, via []*http.Request) error {
			if len(via) > maxRedirects {
				return fmt.Errorf("more than %d redirects", maxRedirects)
			}
			return validateURL(req.URL)
		},
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, rel.URL, nil)
	if err != nil {
		return nil, err
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("%s answers %s", resp.Request.URL.Redacted(), resp.Status)
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxDocument+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(text) > maxDocument {
		return nil, fmt.Errorf("%w bundle: it is longer than %d MiB", ErrInvalid, maxDocument>>20)
	}
	return ParseDocument(rel.TrustDomain, text)
}

func (r *Registry) clientTLS(rel Relationship) (*tls.Config, error) {
	if rel.Profile == Web {
		return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: r.cfg.WebRoots}, nil
	}
	td := rel.EndpointID.TrustDomain()
	roots, err := r.x509Authorities(td)
	if err != nil {
		return nil, err
	}
	c := tlsconfig.TLSClientConfig(x509bundle.FromX509Authorities(td, roots), tlsconfig.AuthorizeID(rel.EndpointID))
	c.MinVersion = tls.VersionTLS12
	return c, nil
}

// x509Authorities are what vouches for an endpoint of the trust domain: the newest fetched ones, and
// at first those that the operator set.
func (r *Registry) x509Authorities(td spiffeid.TrustDomain) ([]*x509.Certificate, error) {
	b := r.Bundle(td)
	if td == r.cfg.TrustDomain {
		b, _ = r.cfg.Own()
	}
	switch {
	case b == nil:
		return nil, fmt.Errorf("the bundle of trust domain %q, which vouches for the endpoint, is not known: set it once with `spire-server bundle set`", td.Name())
	case len(b.X509) == 0:
		return nil, errors.New("the trust domain that vouches for the endpoint has withdrawn all its X.509 authorities: set its new bundle with `spire-server bundle set`")
	}
	return b.X509, nil
}
