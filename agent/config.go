// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/agent/bootstrap"
	"github.com/assay-id/assay/agent/servers"
	"github.com/assay-id/assay/agent/upstream"
	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/observe"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/device"
)

// Config is the agent's configuration file (HCL). Paths are absolute.
type Config struct {
	// TrustDomain that the agent belongs to, for example "example.org".
	TrustDomain string `hcl:"trust_domain"`
	// ServerAddress is host:port of the server; a name with several addresses is several servers.
	ServerAddress string `hcl:"server_address,optional"`
	// ServerAddresses are several servers of one trust domain, instead. The agent talks to one of them,
	// goes on to another one when that is away, and chooses anew every half to whole hour.
	ServerAddresses []string `hcl:"server_addresses,optional"`
	// TrustBundlePath is a PEM file with the trust domain's X.509 authorities: how the server
	// is known the first time. Later the bundle kept in data_dir is used, until this file changes.
	TrustBundlePath string `hcl:"trust_bundle_path,optional"`
	// TrustBundleURL is where to get it instead: https, or http with TrustBundleUnixSocket.
	TrustBundleURL        string `hcl:"trust_bundle_url,optional"`
	TrustBundleUnixSocket string `hcl:"trust_bundle_unix_socket,optional"`
	// TrustBundleFormat is "pem" (default) or "spiffe".
	TrustBundleFormat string `hcl:"trust_bundle_format,optional"`
	// InsecureBootstrap trusts whatever server answers the first time.
	InsecureBootstrap bool `hcl:"insecure_bootstrap,optional"`
	// RebootstrapMode says what to do when the servers show certificates of an authority that the kept bundle does
	// not have, for RebootstrapDelay (default "10m"): "never" (default), "auto" or "always" get the bundle anew as
	// configured above, for nodes that can attest again; with "always" the others do not start.
	RebootstrapMode  string `hcl:"rebootstrap_mode,optional"`
	RebootstrapDelay string `hcl:"rebootstrap_delay,optional"`
	// OfflineRestart says whether a restarted agent serves, until a server answers, what it knew: entries, bundles and X.509-SVIDs
	// with their keys. "never" (default) writes no workload's key to disk; "tpm" writes them for this TPM in the state of
	// OfflinePCRs (default 0 to 9) alone; "disk" for whoever reads data_dir. It is over OfflineMaxAge (default "1h") after the
	// server was last heard. docs/offline.md tells what that weakens.
	OfflineRestart string `hcl:"offline_restart,optional"`
	OfflineMaxAge  string `hcl:"offline_max_age,optional"`
	OfflinePCRs    []int  `hcl:"offline_pcrs,optional"`
	// DataDir holds the node's SVID and the bundle between runs (default /var/lib/assay/agent).
	DataDir string `hcl:"data_dir,optional"`
	// SocketPath of the Workload API (default /run/assay/agent/api.sock), mode 0777.
	SocketPath string `hcl:"socket_path,optional"`
	// AdminSocketPath for `assay agent status` and `assay explain` (default
	// /run/assay/agent/admin.sock), mode 0700: root only.
	AdminSocketPath string `hcl:"admin_socket_path,optional"`
	// PinDir is a folder on a bpffs for the sensor's programs and records (default /sys/fs/bpf/assay).
	PinDir string `hcl:"pin_dir,optional"`
	// MinimumTier of evidence, "t1", "t2" (default) or "t3". The agent does not start below it.
	// Only "t3" lets it run without a kernel sensor (docs/evidence.md tells what it misses then).
	MinimumTier string `hcl:"minimum_tier,optional"`
	// KernelDigests has the kernel hash every program that is executed (IMA, T1): the digest is
	// then the kernel's own, and each execve of a new file costs the reading of it.
	KernelDigests bool `hcl:"kernel_digests,optional"`
	// SocketNames are other names of the socket's file, where workloads reach it by a symbolic link
	// or a mount that is called otherwise: at T2 the caller of a name that is not known is refused.
	SocketNames []string `hcl:"socket_names,optional"`
	// ConnectFrom lists the cgroups (v2) that may connect, from there and below, for example
	// "/system.slice"; the kernel refuses all others (T1). They need not exist yet. Empty is all.
	ConnectFrom []string `hcl:"connect_from,optional"`
	// Protect has the kernel refuse others, root included, to debug or kill the agent, to use its
	// data_dir, or to get at its sensor (T1). Each try is logged. SIGTERM still ends it: systemctl
	// stop works, and then `assay-agent unload`.
	Protect bool `hcl:"protect,optional"`
	// AllowedForeignJWTClaims are claims of other trust domains' JWT-SVIDs that ValidateJWTSVID returns
	// beside sub, aud and exp.
	AllowedForeignJWTClaims []string `hcl:"allowed_foreign_jwt_claims,optional"`
	// WorkloadX509SVIDKeyType is what the keys of X.509-SVIDs are where the entry does not say: ec-p256 (default), ec-p384,
	// rsa-2048 or rsa-4096.
	WorkloadX509SVIDKeyType string `hcl:"workload_x509_svid_key_type,optional"`
	// LogLevel is debug, info, warn or error (default info).
	LogLevel string `hcl:"log_level,optional"`
	// LogFormat is text (default) or json.
	LogFormat string `hcl:"log_format,optional"`
	// Metrics for Prometheus (docs/metrics.md), and Health for probes, over HTTP (default: neither).
	Metrics *observe.MetricsConfig `hcl:"metrics,block"`
	Health  *observe.HealthConfig  `hcl:"health,block"`
	// Tracing sends traces to an OpenTelemetry collector (default: none).
	Tracing *observe.TracingConfig `hcl:"tracing,block"`

	// Sockets are more sockets, for example with fewer identities; Limits bound what one caller can take of the agent.
	Sockets []SocketConfig `hcl:"socket,block"`
	Limits  *LimitsConfig  `hcl:"limits,block"`

	// SDS is Envoy's Secret Discovery Service on the Workload API's socket; on by default.
	SDS *SDSConfig `hcl:"sds,block"`

	// Broker is the SPIFFE Broker API; without the block there is none.
	Broker *BrokerConfig `hcl:"broker,block"`

	// Exactly one of these says how the node proves which one it is.
	TPM       *TPMConfig       `hcl:"tpm,block"`
	JoinToken *JoinTokenConfig `hcl:"join_token,block"`
	X509POP   *X509POPConfig   `hcl:"x509pop,block"`
	DevID     *DevIDConfig     `hcl:"tpm_devid,block"`
}

// TPMConfig is the block `tpm`.
type TPMConfig struct {
	// Device is /dev/tpmrm0 (default) or unix:/path to a software TPM's socket.
	Device string `hcl:"device,optional"`
	// EK is the endorsement key that names this machine: "rsa2048", "ecc256" or "ecc384"
	// (default: the first of them that has a certificate).
	EK string `hcl:"ek,optional"`
}

// JoinTokenConfig is the block `join_token`.
type JoinTokenConfig struct {
	Token string `hcl:"token"`
}

// X509POPConfig is the block `x509pop`: SPIRE's node attestation by a certificate that the node has.
type X509POPConfig struct {
	// PrivateKeyPath is PEM with the RSA or ECDSA key of the certificate.
	PrivateKeyPath string `hcl:"private_key_path"`
	// CertificatePath is PEM, the node's certificate first; intermediates may follow.
	CertificatePath string `hcl:"certificate_path"`
	// IntermediatesPath is PEM with more intermediates.
	IntermediatesPath string `hcl:"intermediates_path,optional"`
}

// DevIDConfig is the block `tpm_devid`: SPIRE's node attestation by a DevID certificate whose key lives
// in the TPM.
type DevIDConfig struct {
	// Device is /dev/tpmrm0 (default) or unix:/path to a software TPM's socket.
	Device string `hcl:"tpm_device_path,optional"`
	// CertPath is PEM, the DevID certificate first; intermediates may follow.
	CertPath string `hcl:"devid_cert_path"`
	// PrivPath and PubPath are the key's blobs as TPM2_Create made them below the storage root key.
	PrivPath string `hcl:"devid_priv_path"`
	PubPath  string `hcl:"devid_pub_path"`
	// Password is the key's, the others are the hierarchies'.
	Password            string `hcl:"devid_password,optional"`
	OwnerPassword       string `hcl:"owner_hierarchy_password,optional"`
	EndorsementPassword string `hcl:"endorsement_hierarchy_password,optional"`
}

// SDSConfig is the block `sds`; its names and defaults are SPIRE's.
type SDSConfig struct {
	Disable bool `hcl:"disable,optional"`
	// DefaultSVIDName ("default"), DefaultBundleName ("ROOTCA") and DefaultAllBundlesName ("ALL") are the names of secrets.
	DefaultSVIDName       string `hcl:"default_svid_name,optional"`
	DefaultBundleName     string `hcl:"default_bundle_name,optional"`
	DefaultAllBundlesName string `hcl:"default_all_bundles_name,optional"`
	// DisableSPIFFECertValidation gives Envoys plain authorities instead of the SPIFFE certificate validator.
	DisableSPIFFECertValidation bool `hcl:"disable_spiffe_cert_validation,optional"`
}

const defaultPinDir = "/sys/fs/bpf/assay"

// prepared is a Config with its defaults and its texts understood.
type prepared struct {
	Config
	trustDomain spiffeid.TrustDomain
	servers     *servers.Set
	bootstrap   *bootstrap.Source
	rebootstrap upstream.Rebootstrap
	tier        selectors.Tier
	level       slog.Level
	keyType     selectors.KeyType
	sockets     []*socket
	brokers     *brokers // nil: there are none

	offlineMaxAge time.Duration
}

// Validate reports the first thing in the configuration that can not work, in one sentence.
func (c Config) Validate() error {
	_, err := c.prepare()
	return err
}

func (c Config) prepare() (*prepared, error) {
	fallback := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	fallback(&c.DataDir, "/var/lib/assay/agent")
	fallback(&c.SocketPath, "/run/assay/agent/api.sock")
	fallback(&c.AdminSocketPath, "/run/assay/agent/admin.sock")
	fallback(&c.PinDir, defaultPinDir)
	fallback(&c.MinimumTier, "t2")
	fallback(&c.LogLevel, "info")
	if c.SDS == nil {
		c.SDS = &SDSConfig{}
	}
	if c.Limits == nil {
		c.Limits = &LimitsConfig{}
	}
	p := &prepared{Config: c}
	for name, path := range map[string]string{"data_dir": c.DataDir, "admin_socket_path": c.AdminSocketPath, "pin_dir": c.PinDir} {
		if !filepath.IsAbs(path) {
			return nil, fmt.Errorf("%s %q: write an absolute path", name, path)
		}
	}
	var err error
	if p.trustDomain, err = spiffeid.TrustDomainFromString(c.TrustDomain); err != nil {
		return nil, fmt.Errorf("trust_domain %q: %w", c.TrustDomain, err)
	}
	var ok bool
	if p.tier, ok = selectors.ParseTier(c.MinimumTier); !ok {
		return nil, fmt.Errorf("minimum_tier %q: the tiers are t1, t2 and t3", c.MinimumTier)
	}
	if p.tier == selectors.TierT3 && (c.Protect || c.KernelDigests || len(c.ConnectFrom) > 0) {
		return nil, errors.New("protect, kernel_digests and connect_from are done by the kernel sensor, and minimum_tier = \"t3\" lets the agent run without it: remove them, or set minimum_tier = \"t1\"")
	}
	if p.keyType, err = selectors.ParseKeyType(c.WorkloadX509SVIDKeyType); err != nil {
		return nil, fmt.Errorf("workload_x509_svid_key_type: %w", err)
	}
	if err := p.level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		return nil, fmt.Errorf("log_level %q: write debug, info, warn or error", c.LogLevel)
	}
	if err := errors.Join(observe.Validate(c.Metrics, c.Health, c.LogFormat), c.Tracing.Validate()); err != nil {
		return nil, err
	}
	if err := p.prepareSockets(); err != nil {
		return nil, err
	}
	if err := p.prepareBrokers(); err != nil {
		return nil, err
	}
	if err := p.Limits.prepare(); err != nil {
		return nil, err
	}
	if err := (bpf.Config{SocketNames: p.socketNames(), ConnectFrom: c.ConnectFrom}).Validate(); err != nil {
		return nil, err
	}
	ways := 0
	for _, named := range []bool{c.TPM != nil, c.JoinToken != nil, c.X509POP != nil, c.DevID != nil} {
		if named {
			ways++
		}
	}
	if ways != 1 {
		return nil, errors.New("name exactly one way of attestation: a block tpm { }, a block join_token { token = \"…\" }, a block x509pop { private_key_path = \"…\" certificate_path = \"…\" }, or a block tpm_devid { devid_cert_path = \"…\" devid_priv_path = \"…\" devid_pub_path = \"…\" }")
	}
	if c.TPM != nil {
		fallback(&c.TPM.Device, "/dev/tpmrm0")
		if err := device.CheckEK(c.TPM.EK); err != nil {
			return nil, fmt.Errorf("block tpm: %w", err)
		}
	}
	if c.DevID != nil {
		fallback(&c.DevID.Device, "/dev/tpmrm0")
	}
	if err := p.prepareOffline(); err != nil {
		return nil, err
	}
	return p, p.prepareServers()
}

// Pins returns where the sensor keeps its programs and records.
func (c Config) Pins() string {
	if c.PinDir == "" {
		return defaultPinDir
	}
	return c.PinDir
}
