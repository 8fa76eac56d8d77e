// SPDX-License-Identifier: Apache-2.0

package server

import (
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/assay-id/assay/server/attest"
	"github.com/assay-id/assay/tpm/verify"
)

// TPMConfig is the block `tpm`.
type TPMConfig struct {
	// EKCAPath is a PEM file with the CA certificates of TPM makers.
	EKCAPath string `hcl:"ek_ca_path,optional"`
	// EKHashes are SHA-256 digests, in hexadecimal, of the EKs' public keys (SubjectPublicKeyInfo),
	// beside the inventory that `assay tpm inventory` keeps.
	EKHashes []string `hcl:"ek_hashes,optional"`
	// Pending lets a TPM that is under no CA and in no inventory wait for `assay node approve`,
	// instead of refusing it (default false).
	Pending bool `hcl:"pending,optional"`
	// IMAMemoryMiB is for machines' IMA logs while they are judged (default 512, at least 128): a log
	// takes 4, and 64 if it is longer than that.
	IMAMemoryMiB int `hcl:"ima_memory_mib,optional"`
	// RequoteInterval is how often an admitted node shows that it is what it was (default 60s).
	RequoteInterval string `hcl:"requote_interval,optional"`
	// Readmit says who ends a suspension that drift caused: "operator" (default), or
	// "attestation", by which a node that attests again in full and passes ends it.
	Readmit string `hcl:"readmit,optional"`
}

// JoinTokenConfig is the block `join_token`; it is empty.
type JoinTokenConfig struct{}

// X509POPConfig is the block `x509pop`: SPIRE's attestor of that name, with its keys.
type X509POPConfig struct {
	// CABundlePath or CABundlePaths are PEM files with the CAs of nodes' certificates.
	CABundlePath  string   `hcl:"ca_bundle_path,optional"`
	CABundlePaths []string `hcl:"ca_bundle_paths,optional"`
	// AgentPathTemplate makes the part of a node's ID after /spire/agent
	// (default "/x509pop/{{ .Fingerprint }}").
	AgentPathTemplate string `hcl:"agent_path_template,optional"`
	// MaxIntermediates that a node may send (default 4), MaxRSAKeySize in bits (default 8192).
	MaxIntermediates int `hcl:"max_intermediates,optional"`
	MaxRSAKeySize    int `hcl:"max_rsa_key_size,optional"`
}

// DevIDConfig is the block `tpm_devid`: SPIRE's attestor of that name, with its keys.
type DevIDConfig struct {
	// DevIDCAPath and EndorsementCAPath are PEM files with the CAs of DevID and of EK certificates.
	DevIDCAPath       string `hcl:"devid_ca_path"`
	EndorsementCAPath string `hcl:"endorsement_ca_path"`
}

// attestorTypes are those that allow_without_evidence may name.
var attestorTypes = []string{"tpm", "join_token", "x509pop", "tpm_devid"}

func (p *prepared) readAttestors() error {
	if p.TPM == nil && p.JoinToken == nil && p.X509POP == nil && p.DevID == nil {
		return errors.New("no node could attest: add a block tpm { … }, tpm_devid { … }, x509pop { … } or join_token { }")
	}
	for _, name := range p.AllowWithoutEvidence {
		if !slices.Contains(attestorTypes, name) {
			return fmt.Errorf("allow_without_evidence: there is no attestor type %q; the types are %s", name, strings.Join(attestorTypes, ", "))
		}
	}
	if err := p.readTPM(); err != nil {
		return fmt.Errorf("block tpm: %w", err)
	}
	if err := p.readX509POP(); err != nil {
		return fmt.Errorf("block x509pop: %w", err)
	}
	if err := p.readDevID(); err != nil {
		return fmt.Errorf("block tpm_devid: %w", err)
	}
	return nil
}

func (p *prepared) readTPM() error {
	c := p.TPM
	if c == nil {
		return nil
	}
	var err error
	if p.tpm, err = verify.LoadPolicy(c.EKCAPath, c.EKHashes); err != nil {
		return err
	}
	if c.EKCAPath != "" {
		if p.ekRoots, err = readCertificates(c.EKCAPath); err != nil {
			return fmt.Errorf("ek_ca_path: %w", err)
		}
	}
	p.requoteInterval = time.Minute
	if text := c.RequoteInterval; text != "" {
		if p.requoteInterval, err = time.ParseDuration(text); err != nil || p.requoteInterval < time.Second {
			return fmt.Errorf("requote_interval %q: write a time of at least a second, for example \"60s\"", text)
		}
	}
	p.imaMemory = int64(orInt(c.IMAMemoryMiB, 512)) << 20
	if p.imaMemory < attest.LeastMemory {
		return fmt.Errorf("ima_memory_mib %d: write at least %d", c.IMAMemoryMiB, attest.LeastMemory>>20)
	}
	if !slices.Contains([]string{"", "operator", "attestation"}, c.Readmit) {
		return fmt.Errorf("readmit %q: write \"operator\" or \"attestation\"", c.Readmit)
	}
	return nil
}

func (p *prepared) readX509POP() error {
	c := p.X509POP
	if c == nil {
		return nil
	}
	paths := c.CABundlePaths
	switch {
	case c.CABundlePath != "" && len(paths) > 0:
		return errors.New("ca_bundle_path and ca_bundle_paths are both set; keep one")
	case c.CABundlePath != "":
		paths = []string{c.CABundlePath}
	case len(paths) == 0:
		return errors.New("set ca_bundle_path to a PEM file with the CAs of your nodes' certificates")
	}
	if c.MaxIntermediates < 0 || c.MaxRSAKeySize < 0 {
		return errors.New("max_intermediates and max_rsa_key_size are not negative")
	}
	a := &attest.X509POP{
		TrustDomain: p.trustDomain, Now: time.Now, Rand: rand.Reader,
		MaxIntermediates: orInt(c.MaxIntermediates, 4), MaxRSABits: orInt(c.MaxRSAKeySize, 8192),
	}
	var err error
	if a.Roots, err = readPool(paths...); err != nil {
		return fmt.Errorf("ca_bundle_path: %w", err)
	}
	if c.AgentPathTemplate != "" {
		if a.Path, err = attest.ParsePathTemplate(c.AgentPathTemplate); err != nil {
			return fmt.Errorf("agent_path_template: %w", err)
		}
	}
	p.x509pop = a
	return nil
}

func (p *prepared) readDevID() (err error) {
	c := p.DevID
	if c == nil {
		return nil
	}
	a := &attest.DevID{TrustDomain: p.trustDomain, Now: time.Now, Rand: rand.Reader}
	if a.Roots.DevID, err = readPool(c.DevIDCAPath); err != nil {
		return fmt.Errorf("devid_ca_path: %w", err)
	}
	if a.Roots.EK, err = readPool(c.EndorsementCAPath); err != nil {
		return fmt.Errorf("endorsement_ca_path: %w", err)
	}
	p.devid = a
	return nil
}

func orInt(n, fallback int) int {
	if n == 0 {
		return fallback
	}
	return n
}

// readPool reads PEM files of certificates.
func readPool(paths ...string) (*x509.CertPool, error) {
	pool := x509.NewCertPool()
	for _, path := range paths {
		certs, err := readCertificates(path)
		if err != nil {
			return nil, err
		}
		for _, cert := range certs {
			pool.AddCert(cert)
		}
	}
	return pool, nil
}

// readCertificates reads a PEM file of certificates.
func readCertificates(path string) ([]*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var certs []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("%s holds a %s; only certificates belong there", path, block.Type)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", path)
	}
	return certs, nil
}
