// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // RFC 5280 §4.2.1.2 method 1 names keys by it; nothing is secured by it
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

const slotsFile = "authorities.json"

// authority is a certificate that may sign, with its key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// slots are this server's authorities. Current is nil only before the first one.
type slots struct{ Current, Next *authority }

func (a *authority) id() string                       { return hex.EncodeToString(a.cert.SubjectKeyId) }
func (a *authority) life() time.Duration              { return a.cert.NotAfter.Sub(a.cert.NotBefore) }
func (a *authority) left(now time.Time) time.Duration { return a.cert.NotAfter.Sub(now) }

// backdate lets peers with a slow clock accept a new certificate (as SPIRE).
const backdate = 10 * time.Second

// newAuthority makes a self-signed authority in the shape that SPIRE gives its own
// (SPIFFE X.509-SVID §3–4; no path length, no AKI).
func (c *CA) newAuthority(now time.Time) (*authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a CA key: %w", err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	ski, err := keyID(key.Public())
	if err != nil {
		return nil, err
	}
	subject := c.cfg.Subject
	subject.SerialNumber = serial.String()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-backdate), NotAfter: now.Add(c.cfg.TTL),
		URIs:                  []*url.URL{c.cfg.TrustDomain.ID().URL()},
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		SubjectKeyId:          ski,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign a CA certificate: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read the new CA certificate: %w", err)
	}
	return &authority{cert, key}, nil
}

// newSerial returns a random number from 1 to 2^128-1.
func newSerial() (*big.Int, error) {
	most := new(big.Int).Lsh(big.NewInt(1), 128)
	n, err := rand.Int(rand.Reader, most.Sub(most, big.NewInt(1)))
	if err != nil {
		return nil, fmt.Errorf("draw a serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

// keyID is the SHA-1 of the subjectPublicKey bits (RFC 5280 §4.2.1.2, method 1).
func keyID(pub crypto.PublicKey) ([]byte, error) {
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		return nil, fmt.Errorf("encode a public key: %w", err)
	}
	var spki struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(der, &spki); err != nil {
		return nil, fmt.Errorf("read a public key: %w", err)
	}
	sum := sha1.Sum(spki.Key.Bytes) //nolint:gosec // see the import
	return sum[:], nil
}

// The file of the slots: DER in base64, keys as PKCS#8. Nothing else holds the keys, so it
// is replaced as a whole.
type (
	slotFile  struct{ Certificate, Key []byte }
	slotsJSON struct {
		Current *slotFile `json:"current,omitempty"`
		Next    *slotFile `json:"next,omitempty"`
	}
)

func loadSlots(dir string, td spiffeid.TrustDomain) (slots, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return slots{}, fmt.Errorf("make the CA's folder: %w", err)
	}
	if err := os.Chmod(dir, 0o700); err != nil {
		return slots{}, fmt.Errorf("protect the CA's folder: %w", err)
	}
	path := filepath.Join(dir, slotsFile)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return slots{}, nil
	}
	if err != nil {
		return slots{}, fmt.Errorf("read the CA's keys: %w", err)
	}
	var file slotsJSON
	if err := json.Unmarshal(data, &file); err != nil {
		return slots{}, fmt.Errorf("%s is damaged; restore it from a backup, or remove it to start with a new CA: %w", path, err)
	}
	var s slots
	for _, slot := range []struct {
		from *slotFile
		to   **authority
	}{{file.Current, &s.Current}, {file.Next, &s.Next}} {
		if slot.from == nil {
			continue
		}
		if *slot.to, err = slot.from.open(); err != nil {
			return slots{}, fmt.Errorf("%s is damaged; restore it from a backup, or remove it to start with a new CA: %w", path, err)
		}
		if uris := (*slot.to).cert.URIs; len(uris) != 1 || uris[0].String() != td.IDString() {
			return slots{}, fmt.Errorf("the keys in %s are not those of trust domain %s: correct trust_domain or choose another data_dir", path, td.Name())
		}
	}
	return s, nil
}

func (f *slotFile) open() (*authority, error) {
	cert, err := x509.ParseCertificate(f.Certificate)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParsePKCS8PrivateKey(f.Key)
	if err != nil {
		return nil, err
	}
	key, ok := parsed.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a key of type %T can not sign", parsed)
	}
	id, err := keyID(key.Public())
	if err != nil {
		return nil, err
	}
	if !bytes.Equal(id, cert.SubjectKeyId) {
		return nil, errors.New("a certificate and its key do not belong together")
	}
	return &authority{cert, key}, nil
}

// saveSlots replaces the file in one step that survives a crash.
func saveSlots(dir string, s slots) error {
	var file slotsJSON
	for _, slot := range []struct {
		from *authority
		to   **slotFile
	}{{s.Current, &file.Current}, {s.Next, &file.Next}} {
		if slot.from == nil {
			continue
		}
		key, err := x509.MarshalPKCS8PrivateKey(slot.from.key)
		if err != nil {
			return fmt.Errorf("encode a CA key: %w", err)
		}
		*slot.to = &slotFile{slot.from.cert.Raw, key}
	}
	data, err := json.Marshal(file)
	if err != nil {
		return fmt.Errorf("encode the CA's keys: %w", err)
	}
	if err := replaceFile(filepath.Join(dir, slotsFile), data); err != nil {
		return fmt.Errorf("save the CA's keys: %w", err)
	}
	return nil
}

func replaceFile(path string, data []byte) error {
	f, err := os.OpenFile(path+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
