// SPDX-License-Identifier: Apache-2.0

// Package oidc lets those who know OpenID Connect but not SPIFFE validate our JWT-SVIDs (OpenID
// Connect Discovery 1.0 §4): it says who the issuer is and which keys he signs with.
//
//	GET <prefix>/.well-known/openid-configuration   the discovery document
//	GET <prefix>/keys                               the JWT authorities as a JWK Set
//	GET /live, /ready                               for probes: 200, or 503 while there are no keys
package oidc

import (
	"bytes"
	"crypto"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
)

// Key signs JWT-SVIDs.
type Key struct {
	ID        string // kid
	PublicKey crypto.PublicKey
}

// Config of a Provider.
type Config struct {
	// Keys returns the present JWT authorities.
	Keys func() []Key
	// Domains that may be asked for (the host of a request, without port); at least one.
	Domains []string
	// Issuer and JWKSURI are URLs that the discovery document states; empty: they are made of the host
	// of the request and PathPrefix.
	Issuer, JWKSURI string
	// PathPrefix of the two documents, for example "/spiffe".
	PathPrefix string
	// Insecure: the documents are served without TLS and name http URLs.
	Insecure bool
	// SetKeyUse says "use": "sig" of each key, which some readers ask for.
	SetKeyUse bool
	Now       func() time.Time
}

// Validate reports the first thing that can not work, in one sentence.
func (c Config) Validate() error {
	if len(c.Domains) == 0 {
		return fmt.Errorf("domains: name at least one host by which this listener is asked")
	}
	for _, d := range c.Domains {
		if d == "" || strings.ContainsAny(d, "/: ") {
			return fmt.Errorf("domains: %q is not a host name; write it without scheme, port and path", d)
		}
	}
	for name, text := range map[string]string{"jwt_issuer": c.Issuer, "jwks_uri": c.JWKSURI} {
		u, err := url.Parse(text)
		if text != "" && (err != nil || u.Host == "" || u.Scheme != "https" && (!c.Insecure || u.Scheme != "http") || u.RawQuery != "" || u.Fragment != "") {
			return fmt.Errorf("%s %q: write an https URL without query and fragment", name, text)
		}
	}
	if c.PathPrefix != "" && (!strings.HasPrefix(c.PathPrefix, "/") || path.Clean(c.PathPrefix) != strings.TrimSuffix(c.PathPrefix, "/")) {
		return fmt.Errorf("server_path_prefix %q: write a path like \"/spiffe\"", c.PathPrefix)
	}
	return nil
}

// Provider is the handler. It holds nothing but when the keys last changed.
type Provider struct {
	cfg Config
	mux *http.ServeMux

	mu       sync.Mutex
	sum      [sha256.Size]byte
	modified time.Time
}

// New makes a provider of a valid configuration.
func New(cfg Config) *Provider {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.PathPrefix = strings.TrimSuffix(cfg.PathPrefix, "/")
	p := &Provider{cfg: cfg, mux: http.NewServeMux()}
	p.mux.HandleFunc("GET "+cfg.PathPrefix+"/.well-known/openid-configuration", p.known(p.discovery))
	p.mux.HandleFunc("GET "+cfg.PathPrefix+"/keys", p.known(p.keys))
	p.mux.HandleFunc("GET /live", func(http.ResponseWriter, *http.Request) {})
	p.mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		if len(cfg.Keys()) == 0 {
			http.Error(w, "there are no keys yet", http.StatusServiceUnavailable)
		}
	})
	return p
}

func (p *Provider) ServeHTTP(w http.ResponseWriter, req *http.Request) { p.mux.ServeHTTP(w, req) }

// known refuses requests for hosts that are not configured: the answer repeats the host's name, and
// who relies on it must not be led elsewhere.
func (p *Provider) known(answer func(http.ResponseWriter, *http.Request, string)) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		host := req.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		if !slices.ContainsFunc(p.cfg.Domains, func(d string) bool { return strings.EqualFold(d, host) }) {
			http.Error(w, "this host is not served here; the server's configuration lists the hosts in `domains`", http.StatusBadRequest)
			return
		}
		answer(w, req, req.Host)
	}
}

func (p *Provider) discovery(w http.ResponseWriter, req *http.Request, host string) {
	base := url.URL{Scheme: "https", Host: strings.ToLower(host), Path: p.cfg.PathPrefix}
	if p.cfg.Insecure {
		base.Scheme = "http"
	}
	issuer, keys := p.cfg.Issuer, p.cfg.JWKSURI
	if issuer == "" {
		issuer = base.String()
	}
	if keys == "" {
		keys = base.JoinPath("keys").String()
	}
	text, err := json.MarshalIndent(struct {
		Issuer        string   `json:"issuer"`
		JWKSURI       string   `json:"jwks_uri"`
		Authorization string   `json:"authorization_endpoint"` // required by the standard; there is none
		ResponseTypes []string `json:"response_types_supported"`
		SubjectTypes  []string `json:"subject_types_supported"`
		Algorithms    []string `json:"id_token_signing_alg_values_supported"`
	}{issuer, keys, "", []string{"id_token"}, []string{"public"}, []string{"RS256", "ES256", "ES384"}}, "", "  ")
	if err != nil {
		http.Error(w, "the document can not be made", http.StatusInternalServerError)
		return
	}
	serve(w, req, text, time.Time{})
}

func (p *Provider) keys(w http.ResponseWriter, req *http.Request, _ string) {
	set := jose.JSONWebKeySet{Keys: []jose.JSONWebKey{}}
	for _, k := range p.cfg.Keys() {
		jwk := jose.JSONWebKey{Key: k.PublicKey, KeyID: k.ID}
		if p.cfg.SetKeyUse {
			jwk.Use = "sig"
		}
		set.Keys = append(set.Keys, jwk)
	}
	text, err := json.MarshalIndent(set, "", "  ")
	if err != nil || len(set.Keys) == 0 {
		http.Error(w, "there are no keys yet", http.StatusServiceUnavailable)
		return
	}
	serve(w, req, text, p.modifiedAt(text))
}

// modifiedAt is when this server first gave this answer since the last other one. The ETag is the
// same on all servers.
func (p *Provider) modifiedAt(text []byte) time.Time {
	sum := sha256.Sum256(text)
	p.mu.Lock()
	defer p.mu.Unlock()
	if sum != p.sum {
		p.sum, p.modified = sum, p.cfg.Now()
	}
	return p.modified
}

func serve(w http.ResponseWriter, req *http.Request, text []byte, modified time.Time) {
	sum := sha256.Sum256(text)
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("ETag", `"`+hex.EncodeToString(sum[:])+`"`)
	http.ServeContent(w, req, "", modified, bytes.NewReader(text))
}
