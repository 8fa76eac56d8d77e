// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/webcert"
)

// FederationConfig is the block `federation`. Relationships may also be made while the server runs.
type FederationConfig struct {
	// BundleEndpoint serves our bundle to other trust domains.
	BundleEndpoint *BundleEndpointConfig `hcl:"bundle_endpoint,block"`
	// FederatesWith are relationships that override those made while the server runs.
	FederatesWith []FederatesWithConfig `hcl:"federates_with,block"`
	// WebCAPath is a PEM file with the authorities that are trusted for profile https_web (default:
	// the system's).
	WebCAPath string `hcl:"web_ca_path,optional"`
}

// BundleEndpointConfig is the block `bundle_endpoint`.
type BundleEndpointConfig struct {
	// Address (default 0.0.0.0) and Port (default 8443).
	Address string `hcl:"address,optional"`
	Port    int    `hcl:"port,optional"`
	// RefreshHint is how often others should look (default 5m).
	RefreshHint string                `hcl:"refresh_hint,optional"`
	Profile     EndpointProfileConfig `hcl:"profile,block"`
}

// EndpointProfileConfig is the block `profile "https_web"`, which holds one of its two blocks, or
// `profile "https_spiffe"`, which holds none: the certificate is the server's SVID.
type EndpointProfileConfig struct {
	Name            string             `hcl:"name,label"`
	ServingCertFile *ServingCertConfig `hcl:"serving_cert_file,block"`
	ACME            *ACMEConfig        `hcl:"acme,block"`
}

// ServingCertConfig is the block `serving_cert_file`: PEM files that someone else renews.
type ServingCertConfig struct {
	CertFilePath string `hcl:"cert_file_path"`
	KeyFilePath  string `hcl:"key_file_path"`
	// FileSyncInterval is how often they are looked at (default 1m).
	FileSyncInterval string `hcl:"file_sync_interval,optional"`
}

// ACMEConfig is the block `acme`: the certificate comes from an ACME authority, which must reach this
// listener at port 443 of DomainName.
type ACMEConfig struct {
	DomainName string `hcl:"domain_name"`
	Email      string `hcl:"email,optional"`
	// DirectoryURL of the authority (default: Let's Encrypt).
	DirectoryURL string `hcl:"directory_url,optional"`
	// CAPath is a PEM file with the authorities that vouch for DirectoryURL (default: the system's).
	CAPath string `hcl:"ca_path,optional"`
	// TOSAccepted: you accept the authority's terms of service.
	TOSAccepted bool `hcl:"tos_accepted,optional"`
}

// FederatesWithConfig is a block `federates_with "trust domain"`.
type FederatesWithConfig struct {
	TrustDomain       string                    `hcl:"trust_domain,label"`
	BundleEndpointURL string                    `hcl:"bundle_endpoint_url"`
	Profile           RelationshipProfileConfig `hcl:"bundle_endpoint_profile,block"`
}

// RelationshipProfileConfig is the block `bundle_endpoint_profile "https_web"` or
// `bundle_endpoint_profile "https_spiffe"`; the second needs EndpointSPIFFEID.
type RelationshipProfileConfig struct {
	Name             string `hcl:"name,label"`
	EndpointSPIFFEID string `hcl:"endpoint_spiffe_id,optional"`
}

// OIDCConfig is the block `oidc`: OpenID Connect discovery for our JWT-SVIDs, on a listener of its own.
type OIDCConfig struct {
	// BindAddress (default 0.0.0.0) and BindPort (default 443); or SocketPath of a Unix socket, plain
	// HTTP for a web server in front of it.
	BindAddress string `hcl:"bind_address,optional"`
	BindPort    int    `hcl:"bind_port,optional"`
	SocketPath  string `hcl:"socket_path,optional"`
	// Domains are the hosts by which it may be asked.
	Domains []string `hcl:"domains"`
	// JWTIssuer and JWKSURI are stated in the document (default: made of the host that is asked).
	JWTIssuer string `hcl:"jwt_issuer,optional"`
	JWKSURI   string `hcl:"jwks_uri,optional"`
	// ServerPathPrefix of the documents, for example "/spiffe".
	ServerPathPrefix string `hcl:"server_path_prefix,optional"`
	// SetKeyUse says "use": "sig" of the keys.
	SetKeyUse bool `hcl:"set_key_use,optional"`
	// One of these three, unless SocketPath is set. Insecure is plain HTTP.
	ServingCertFile *ServingCertConfig `hcl:"serving_cert_file,block"`
	ACME            *ACMEConfig        `hcl:"acme,block"`
	Insecure        bool               `hcl:"insecure,optional"`
}

// web is what the two blocks come to.
type web struct {
	relationships []federation.Relationship
	roots         *x509.CertPool // nil: the system's
	refreshHint   time.Duration
	// TLS of the two listeners; nil: by the server's SVID, and plain HTTP.
	endpoint, oidc *tls.Config
	files          []*webcert.Files // of the two; their logger is set when they are served
}

func (p *prepared) readFederation() error {
	f := p.Federation
	if f == nil {
		return nil
	}
	var err error
	if p.web.roots, err = readRoots(f.WebCAPath); err != nil {
		return fmt.Errorf("federation: web_ca_path: %w", err)
	}
	seen := map[spiffeid.TrustDomain]bool{}
	for _, c := range f.FederatesWith {
		rel, err := c.relationship()
		switch {
		case err != nil:
			return fmt.Errorf("federates_with %q: %w", c.TrustDomain, err)
		case rel.TrustDomain == p.trustDomain:
			return fmt.Errorf("federates_with %q: it is this server's own trust domain; remove the block", c.TrustDomain)
		case seen[rel.TrustDomain]:
			return fmt.Errorf("federates_with %q: it is there twice; keep one block", c.TrustDomain)
		}
		seen[rel.TrustDomain] = true
		p.web.relationships = append(p.web.relationships, rel)
	}
	if f.BundleEndpoint == nil {
		return nil
	}
	if err := p.readEndpoint(f.BundleEndpoint); err != nil {
		return fmt.Errorf("federation: bundle_endpoint: %w", err)
	}
	return nil
}

func (c *FederatesWithConfig) relationship() (rel federation.Relationship, err error) {
	rel.URL, rel.Profile = c.BundleEndpointURL, federation.Profile(c.Profile.Name)
	if rel.TrustDomain, err = spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
		return rel, err
	}
	if id := c.Profile.EndpointSPIFFEID; id != "" {
		if rel.EndpointID, err = spiffeid.FromString(id); err != nil {
			return rel, fmt.Errorf("endpoint_spiffe_id %q: %w", id, err)
		}
	}
	return rel, rel.Validate()
}

func (p *prepared) readEndpoint(c *BundleEndpointConfig) (err error) {
	if c.Address == "" {
		c.Address = "0.0.0.0"
	}
	if c.Port == 0 {
		c.Port = 8443
	}
	if c.RefreshHint != "" {
		if p.web.refreshHint, err = time.ParseDuration(c.RefreshHint); err != nil || p.web.refreshHint < time.Second {
			return fmt.Errorf("refresh_hint %q: write a time of at least a second, for example \"5m\"", c.RefreshHint)
		}
	}
	switch federation.Profile(c.Profile.Name) {
	case federation.SPIFFE:
		if c.Profile.ServingCertFile != nil || c.Profile.ACME != nil {
			return fmt.Errorf("profile %q is served with the server's SVID; remove the blocks in it", c.Profile.Name)
		}
		return nil
	case federation.Web:
		p.web.endpoint, err = p.readWebCert(c.Profile.ServingCertFile, c.Profile.ACME)
		return err
	}
	return fmt.Errorf("profile %q: write %q or %q", c.Profile.Name, federation.Web, federation.SPIFFE)
}

func (p *prepared) readWebCert(files *ServingCertConfig, acme *ACMEConfig) (*tls.Config, error) {
	switch {
	case (files == nil) == (acme == nil):
		return nil, errors.New("add one of the blocks serving_cert_file { … } and acme { … }")
	case acme != nil:
		roots, err := readRoots(acme.CAPath)
		if err != nil {
			return nil, fmt.Errorf("acme: ca_path: %w", err)
		}
		return webcert.ACME{
			Domain: acme.DomainName, Email: acme.Email, Directory: acme.DirectoryURL, Roots: roots, AcceptTOS: acme.TOSAccepted,
			CacheDir: filepath.Join(p.DataDir, "acme"),
		}.TLS()
	}
	f := &webcert.Files{CertPath: files.CertFilePath, KeyPath: files.KeyFilePath, Every: time.Minute, Now: time.Now}
	if files.FileSyncInterval != "" {
		d, err := time.ParseDuration(files.FileSyncInterval)
		if err != nil || d < 0 {
			return nil, fmt.Errorf("file_sync_interval %q: write a time, for example \"1m\"", files.FileSyncInterval)
		}
		f.Every = d
	}
	if err := f.Load(); err != nil {
		return nil, fmt.Errorf("serving_cert_file: %w", err)
	}
	p.web.files = append(p.web.files, f)
	return f.TLS(), nil
}

// readRoots reads a PEM file; without a path it returns nil, which stands for the system's roots.
func readRoots(path string) (*x509.CertPool, error) {
	if path == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("%s holds no PEM certificate", path)
	}
	return roots, nil
}

func (p *prepared) readOIDC() (err error) {
	c := p.OIDC
	if c == nil {
		return nil
	}
	if c.BindAddress == "" {
		c.BindAddress = "0.0.0.0"
	}
	if c.BindPort == 0 {
		c.BindPort = 443
	}
	secure := c.ServingCertFile != nil || c.ACME != nil
	switch {
	case c.SocketPath != "" && (secure || c.Insecure):
		return errors.New("oidc: socket_path is for a web server that has the certificate; remove serving_cert_file, acme and insecure")
	case c.SocketPath != "" && !filepath.IsAbs(c.SocketPath):
		return fmt.Errorf("oidc: socket_path %q: write an absolute path", c.SocketPath)
	case c.Insecure && secure:
		return errors.New("oidc: insecure is plain HTTP; remove it, or serving_cert_file and acme")
	case c.SocketPath == "" && !c.Insecure:
		if p.web.oidc, err = p.readWebCert(c.ServingCertFile, c.ACME); err != nil {
			return fmt.Errorf("oidc: %w", err)
		}
	}
	if err := c.provider().Validate(); err != nil {
		return fmt.Errorf("oidc: %w", err)
	}
	return nil
}
