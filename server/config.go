// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/observe"
	"github.com/assay-id/assay/server/attest"
	"github.com/assay-id/assay/server/ca"
	"github.com/assay-id/assay/server/gate"
	"github.com/assay-id/assay/server/keys"
	"github.com/assay-id/assay/server/rego"
	"github.com/assay-id/assay/tpm/policy"
	"github.com/assay-id/assay/tpm/verify"
)

// Config is the server's configuration file (HCL). Paths are absolute; times are written "1h30m".
type Config struct {
	// TrustDomain that the server signs for, for example "example.org".
	TrustDomain string `hcl:"trust_domain"`
	// BindAddress (default 0.0.0.0) and BindPort (default 8081) for agents.
	BindAddress string `hcl:"bind_address,optional"`
	BindPort    int    `hcl:"bind_port,optional"`
	// SocketPath of the operators' socket (default /run/assay/server/admin.sock), mode 0770:
	// whoever may open it administers the trust domain.
	SocketPath string `hcl:"socket_path,optional"`
	// DataDir holds the CA's keys and the store (default /var/lib/assay/server).
	DataDir string `hcl:"data_dir,optional"`
	// DefaultX509SVIDTTL of workloads whose entry names none (default 1h).
	DefaultX509SVIDTTL string `hcl:"default_x509_svid_ttl,optional"`
	// AgentTTL of agents' SVIDs (default: default_x509_svid_ttl).
	AgentTTL string `hcl:"agent_ttl,optional"`
	// CATTL of an X.509 authority (default 24h). The next one takes over at 5/6 of it.
	CATTL string `hcl:"ca_ttl,optional"`
	// DefaultJWTSVIDTTL of workloads whose entry names none (default 5m).
	DefaultJWTSVIDTTL string `hcl:"default_jwt_svid_ttl,optional"`
	// JWTIssuer is the issuer in JWT-SVIDs, for example "https://oidc.example.org" (default: none).
	JWTIssuer string `hcl:"jwt_issuer,optional"`
	// CAKeyType of X.509 authorities, and JWTKeyType of those that sign tokens: ec-p256 (default),
	// ec-p384, rsa-2048 or rsa-4096.
	CAKeyType  string `hcl:"ca_key_type,optional"`
	JWTKeyType string `hcl:"jwt_key_type,optional"`
	// MaxReplicaAge is how long signing goes on while the store can not be reached (default 1h).
	MaxReplicaAge string `hcl:"max_replica_age,optional"`
	// AllowWithoutEvidence names attestor types, for example ["join_token"], whose agents may
	// have workload SVIDs signed without evidence, as SPIRE's agents do. Default: none.
	AllowWithoutEvidence []string `hcl:"allow_without_evidence,optional"`
	// ForeignSelectors are types of selectors, for example ["acme"], which entries may demand though they are
	// neither ours nor SPIRE's; their values are not looked at. Default: none.
	ForeignSelectors []string `hcl:"foreign_selectors,optional"`
	// AdminIDs are SPIFFE IDs whose holders administer the trust domain, over TCP. They may be of other
	// trust domains, with whose bundles we federate.
	AdminIDs []string `hcl:"admin_ids,optional"`
	// LogLevel is debug, info, warn or error (default info).
	LogLevel string `hcl:"log_level,optional"`
	// LogFormat is text (default) or json.
	LogFormat string `hcl:"log_format,optional"`
	// Metrics for Prometheus (docs/metrics.md), and Health for probes, over HTTP (default: neither).
	Metrics *observe.MetricsConfig `hcl:"metrics,block"`
	Health  *observe.HealthConfig  `hcl:"health,block"`
	// Tracing sends traces to an OpenTelemetry collector (default: none).
	Tracing *observe.TracingConfig `hcl:"tracing,block"`

	// CASubject names the X.509 authorities (default C=US, O=SPIFFE).
	CASubject *SubjectConfig `hcl:"ca_subject,block"`
	// CANameConstraints binds new X.509 authorities to SPIFFE IDs of the trust domain by a critical extension. All who verify must
	// know it: Go, OpenSSL and BoringSSL do.
	CANameConstraints bool `hcl:"ca_name_constraints,optional"`
	// KeyManager keeps the authorities' private keys (default "disk").
	KeyManager *KeyManagerConfig `hcl:"key_manager,block"`
	// UpstreamAuthority certifies the X.509 authorities (default: they are self-signed).
	UpstreamAuthority *UpstreamConfig `hcl:"upstream_authority,block"`
	// Store is needed for an etcd that is already there, or to change the disk floor.
	Store *StoreConfig `hcl:"store,block"`
	// Cluster makes the store one of several members.
	Cluster *ClusterConfig `hcl:"cluster,block"`
	// How nodes may prove which ones they are; at least one.
	TPM       *TPMConfig       `hcl:"tpm,block"`
	JoinToken *JoinTokenConfig `hcl:"join_token,block"`
	X509POP   *X509POPConfig   `hcl:"x509pop,block"`
	DevID     *DevIDConfig     `hcl:"tpm_devid,block"`

	// Federation is what our trust domain and others know of each other.
	Federation *FederationConfig `hcl:"federation,block"`
	// OIDC tells readers of OpenID Connect about our JWT-SVIDs.
	OIDC *OIDCConfig `hcl:"oidc,block"`

	// Revocation is how SVIDs are taken back before they end.
	Revocation *RevocationConfig `hcl:"revocation,block"`

	// Roles let others than admins do some things.
	Roles []RoleConfig `hcl:"role,block"`
	// Authorization and Issuance are policies in Rego: of who may call what, and of which SVIDs are signed.
	Authorization *AuthorizationConfig `hcl:"authorization,block"`
	Issuance      *PolicyConfig        `hcl:"issuance,block"`
	// RateLimit holds callers back.
	RateLimit *RateLimitConfig `hcl:"ratelimit,block"`

	// NodeGroups are what is demanded of nodes that attest by their TPM.
	NodeGroups []policy.GroupConfig `hcl:"node_group,block"`
}

// SubjectConfig is the block `ca_subject`.
type SubjectConfig struct {
	Country      []string `hcl:"country,optional"`
	Organization []string `hcl:"organization,optional"`
	CommonName   string   `hcl:"common_name,optional"`
}

// StoreConfig is the block `store`.
type StoreConfig struct {
	// Endpoints of an etcd, "https://host:2379"; without them the server runs its own.
	Endpoints []string `hcl:"endpoints,optional"`
	// Prefix of our keys in it (default "assay/").
	Prefix string `hcl:"prefix,optional"`
	// CAPath, CertPath and KeyPath are PEM files for TLS to Endpoints.
	CAPath   string `hcl:"ca_path,optional"`
	CertPath string `hcl:"cert_path,optional"`
	KeyPath  string `hcl:"key_path,optional"`
	// MinFreeMiB of data_dir's file system, below which new entries are refused (default 512,
	// or a tenth of a small file system).
	MinFreeMiB int `hcl:"min_free_mib,optional"`
	// QuotaMiB that the database may take before new entries are refused (default 7168, the
	// most 7168).
	QuotaMiB int `hcl:"quota_mib,optional"`
}

// prepared is a Config with its defaults and its texts understood.
type prepared struct {
	Config
	web                              web
	adminIDs                         []spiffeid.ID
	roles                            []*gate.Role
	limits                           gate.Limits
	authorization, issuance          *rego.Config // nil without the block
	trustDomain                      spiffeid.TrustDomain
	svidTTL, agentTTL, caTTL, maxAge time.Duration
	jwtTTL                           time.Duration
	upstream                         ca.Upstream // nil: self-signed
	crlTTL                           time.Duration
	crlURL                           string // "" without an endpoint
	subject                          pkix.Name
	level                            slog.Level
	tpm                              *verify.Policy // nil without the block
	ekRoots                          []*x509.Certificate
	requoteInterval                  time.Duration
	imaMemory                        int64                    // bytes
	groups                           map[string]*policy.Group // by name
	x509pop                          *attest.X509POP          // nil without the block
	devid                            *attest.DevID            // nil without the block
	etcdTLS                          *tls.Config              // nil is plain text
}

// Validate reports the first thing in the configuration that can not work, in one sentence.
func (c Config) Validate() error {
	_, err := c.prepare()
	return err
}

func (c Config) prepare() (*prepared, error) {
	c.setDefaults()
	p := &prepared{Config: c}
	for name, path := range map[string]string{"data_dir": c.DataDir, "socket_path": c.SocketPath} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%s %q: write an absolute path", name, path)
		}
	}
	var err error
	if p.trustDomain, err = spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
		return nil, fmt.Errorf("trust_domain %q: %w", c.TrustDomain, err)
	}
	if c.BindPort < 1 || c.BindPort > 65535 {
		return nil, fmt.Errorf("bind_port %d: write a port from 1 to 65535", c.BindPort)
	}
	if err := p.level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, fmt.Errorf("log_level %q: write debug, info, warn or error", c.LogLevel)
	}
	if err := errors.Join(observe.Validate(c.Metrics, c.Health, c.LogFormat), c.Tracing.Validate()); err != nil {
		return nil, err
	}
	for _, step := range []func() error{p.readTimes, p.readCA, p.readAttestors, p.readGroups, p.readStore, p.readCluster, p.readFederation, p.readOIDC, p.readRevocation, p.readCallers, p.readPolicies} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	if s := c.CASubject; s != nil {
		p.subject = pkix.Name{Country: s.Country, Organization: s.Organization, CommonName: s.CommonName}
	}
	return p, nil
}

func (c *Config) setDefaults() {
	fallback := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	fallback(&c.BindAddress, "0.0.0.0")
	fallback(&c.SocketPath, "/run/assay/server/admin.sock")
	fallback(&c.DataDir, "/var/lib/assay/server")
	fallback(&c.DefaultX509SVIDTTL, "1h")
	fallback(&c.AgentTTL, c.DefaultX509SVIDTTL)
	fallback(&c.CATTL, "24h")
	fallback(&c.DefaultJWTSVIDTTL, "5m")
	fallback(&c.CAKeyType, string(keys.ECP256))
	fallback(&c.JWTKeyType, string(keys.ECP256))
	fallback(&c.MaxReplicaAge, "1h")
	fallback(&c.LogLevel, "info")
	if c.BindPort == 0 {
		c.BindPort = 8081
	}
	if c.KeyManager == nil {
		c.KeyManager = &KeyManagerConfig{Type: "disk"}
	}
	if c.Store == nil {
		c.Store = &StoreConfig{}
	}
}

func (p *prepared) readTimes() error {
	for _, t := range []struct {
		name, text string
		to         *time.Duration
	}{
		{"default_x509_svid_ttl", p.DefaultX509SVIDTTL, &p.svidTTL}, {"agent_ttl", p.AgentTTL, &p.agentTTL},
		{"ca_ttl", p.CATTL, &p.caTTL}, {"default_jwt_svid_ttl", p.DefaultJWTSVIDTTL, &p.jwtTTL}, {"max_replica_age", p.MaxReplicaAge, &p.maxAge},
	} {
		d, err := time.ParseDuration(t.text)
		if err != nil || d < time.Second {
			return fmt.Errorf("%s %q: write a time of at least a second, for example \"1h30m\"", t.name, t.text)
		}
		*t.to = d
	}
	// An authority signs until a sixth of its life is left; a longer SVID would be cut short.
	if longest := max(p.svidTTL, p.agentTTL, p.jwtTTL); longest > p.caTTL/6 {
		return fmt.Errorf("ca_ttl %s is too short for SVIDs of %s: write at least %s, or shorten them", p.caTTL, longest, 6*longest)
	}
	return nil
}

func (p *prepared) readStore() error {
	s := p.Store
	if s.MinFreeMiB < 0 {
		return fmt.Errorf("store: min_free_mib %d is negative", s.MinFreeMiB)
	}
	if s.QuotaMiB < 0 || s.QuotaMiB > 7168 {
		return fmt.Errorf("store: quota_mib %d: write a number from 1 to 7168", s.QuotaMiB)
	}
	if s.CAPath == "" && s.CertPath == "" && s.KeyPath == "" {
		return nil
	}
	p.etcdTLS = &tls.Config{MinVersion: tls.VersionTLS12}
	if s.CAPath != "" {
		pem, err := os.ReadFile(s.CAPath)
		if err != nil {
			return fmt.Errorf("store: ca_path: %w", err)
		}
		p.etcdTLS.RootCAs = x509.NewCertPool()
		if !p.etcdTLS.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("store: ca_path %s holds no PEM certificate", s.CAPath)
		}
	}
	if s.CertPath != "" || s.KeyPath != "" {
		cert, err := tls.LoadX509KeyPair(s.CertPath, s.KeyPath)
		if err != nil {
			return fmt.Errorf("store: cert_path and key_path: %w", err)
		}
		p.etcdTLS.Certificates = []tls.Certificate{cert}
	}
	return nil
}
