// SPDX-License-Identifier: Apache-2.0

package member

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// Members speak TLS 1.3 with certificates of a small authority of their own. It has nothing to
// do with the trust domain's: it opens the store's peer ports and nothing else. Every member
// holds its key, so that each renews its certificate itself; whoever holds the key is a member.
const (
	peerDir = "peer"
	caFile  = "ca.pem"
	keyFile = "ca.key"
	// leafFile holds certificate and key together, so that one rename replaces both. etcd
	// reads it again for every handshake.
	leafFile = "leaf.pem"

	authorityLife = 20 * 365 * 24 * time.Hour
	leafLife      = 30 * 24 * time.Hour // renewed at half of it
	backdate      = time.Hour           // for a clock that is behind
)

// Authority is what members have in common.
type Authority struct {
	Cert, Key []byte // PEM
}

// PeerName is the name in every member's certificate.
func PeerName(trustDomain string) string { return "member." + trustDomain }

// NewAuthority makes the authority of a new cluster.
func NewAuthority(trustDomain string, now time.Time) (Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Authority{}, err
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "store of " + trustDomain},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(authorityLife),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return Authority{}, err
	}
	keyPEM, err := encodeKey(key)
	return Authority{Cert: encodeCert(der), Key: keyPEM}, err
}

// Write makes the folder's store one of the authority's cluster.
func (a Authority) Write(dir string) error {
	if _, err := tls.X509KeyPair(a.Cert, a.Key); err != nil {
		return fmt.Errorf("the authority of the store's members: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, peerDir), 0o700); err != nil {
		return err
	}
	// The certificate last: it is what tells a cluster's member from one that is alone.
	if err := writeFile(filepath.Join(dir, peerDir, keyFile), a.Key); err != nil {
		return err
	}
	return writeFile(filepath.Join(dir, peerDir, caFile), a.Cert)
}

// ReadAuthority returns fs.ErrNotExist for a store that is in no cluster.
func ReadAuthority(dir string) (Authority, error) {
	cert, err := os.ReadFile(filepath.Join(dir, peerDir, caFile))
	if err != nil {
		return Authority{}, err
	}
	key, err := os.ReadFile(filepath.Join(dir, peerDir, keyFile))
	return Authority{Cert: cert, Key: key}, err
}

// RenewLeaf makes the member's certificate if there is none, it has passed half of its life, or
// it is for another address.
func (s Spec) RenewLeaf(dir string, now time.Time) (renewed bool, err error) {
	host, _, err := net.SplitHostPort(s.Address)
	if err != nil {
		return false, fmt.Errorf("the store's address %q: %w", s.Address, err)
	}
	a, err := ReadAuthority(dir)
	if err != nil {
		return false, err
	}
	path := filepath.Join(dir, peerDir, leafFile)
	if old, err := os.ReadFile(path); err == nil && leafServes(old, a.Cert, host, PeerName(s.TrustDomain), now) {
		return false, nil
	}
	leaf, err := a.issue(PeerName(s.TrustDomain), host, now)
	if err != nil {
		return false, fmt.Errorf("issue the certificate of the store's member: %w", err)
	}
	return true, writeFile(path, leaf)
}

func leafServes(leaf, ca []byte, host, name string, now time.Time) bool {
	pair, err := tls.X509KeyPair(leaf, leaf)
	if err != nil {
		return false
	}
	c := pair.Leaf
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(ca)
	if _, err := c.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: now}); err != nil {
		return false
	}
	half := c.NotBefore.Add(backdate).Add(leafLife / 2)
	return now.Before(half) && c.VerifyHostname(host) == nil && c.VerifyHostname(name) == nil
}

func (a Authority) issue(name, host string, now time.Time) ([]byte, error) {
	ca, err := tls.X509KeyPair(a.Cert, a.Key)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: now.Add(-backdate), NotAfter: now.Add(leafLife),
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{name},
	}
	if ip := net.ParseIP(host); ip != nil {
		template.IPAddresses = []net.IP{ip}
	} else {
		template.DNSNames = append(template.DNSNames, host)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.Leaf, key.Public(), ca.PrivateKey)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	return append(encodeCert(der), keyPEM...), err
}

// PeerTLS is for asking other members' peer ports.
func PeerTLS(dir, trustDomain string) (*tls.Config, error) {
	a, err := ReadAuthority(dir)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(dir, peerDir, leafFile)
	pair, err := tls.LoadX509KeyPair(path, path)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(a.Cert) {
		return nil, errors.New("the authority of the store's members is not PEM")
	}
	return &tls.Config{MinVersion: tls.VersionTLS13, RootCAs: roots, Certificates: []tls.Certificate{pair}, ServerName: PeerName(trustDomain)}, nil
}

func encodeCert(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(key crypto.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	err = pem.Encode(&b, &pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return b.Bytes(), err
}
