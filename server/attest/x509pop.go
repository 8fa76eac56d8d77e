// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"context"
	"crypto"
	"crypto/rsa"
	"crypto/sha1" // SPIRE's fingerprints
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/big"
	"strings"
	"text/template"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/proto/x509pop"
	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/devid"
)

// X509POP admits agents by a certificate and its key, as SPIRE's x509pop does (mode external_pki):
// the same messages, IDs, selectors and codes. Agents attest again instead of renewing.
type X509POP struct {
	TrustDomain spiffeid.TrustDomain
	// Roots are the CAs of agents' certificates.
	Roots *x509.CertPool
	// Path makes the part of the ID after /spire/agent from a CertificateFacts; nil is
	// /x509pop/<SHA-1 of the certificate>.
	Path *template.Template
	// MaxIntermediates of a payload and MaxRSABits of a key bound the work for a stranger; SPIRE's
	// are 4 and 8192.
	MaxIntermediates, MaxRSABits int
	Now                          func() time.Time
	Rand                         io.Reader // crypto/rand.Reader
}

// CertificateFacts are what a path template may use, a part of what SPIRE offers.
type CertificateFacts struct {
	PluginName, TrustDomain string
	// Fingerprint is the SHA-1 of the certificate, SerialNumberHex has an even length.
	Fingerprint, SerialNumberHex string
	Subject, Issuer              pkix.Name
	DNSNames                     []string
	// URISanSelectors are of URI SANs x509pop://<trust domain>/<key>/<value>.
	URISanSelectors map[string]string
}

// ParsePathTemplate reads SPIRE's agent_path_template.
func ParsePathTemplate(text string) (*template.Template, error) {
	t, err := template.New("agent_path_template").Option("missingkey=error").Parse(text)
	if err != nil {
		return nil, err
	}
	// Fields that do not exist show here already, selectors that a certificate lacks when it comes.
	trial, err := t.Clone()
	if err == nil {
		err = trial.Option("missingkey=zero").Execute(io.Discard, CertificateFacts{DNSNames: []string{"x"}})
	}
	return t, err
}

// Type returns "x509pop".
func (x *X509POP) Type() string { return x509pop.Type }

// Attest verifies the chain, then asks for a proof of possession.
func (x *X509POP) Attest(ctx context.Context, payload []byte, _ crypto.PublicKey, _ []byte, challenge func(context.Context, []byte) ([]byte, error)) (nodes.Attestation, error) {
	leaf, intermediates, err := x.parse(payload)
	if err != nil {
		return nodes.Attestation{}, &nodes.AttestError{Fault: nodes.FaultMessage, Text: err.Error()}
	}
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: x.Roots, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}, CurrentTime: x.Now(),
	})
	if err != nil {
		return nodes.Attestation{}, &nodes.AttestError{Fault: nodes.FaultRefused, Text: "certificate verification failed", Err: err}
	}
	question, err := x509pop.NewChallenge(leaf, x.Rand)
	if err != nil {
		return nodes.Attestation{}, &nodes.AttestError{Fault: nodes.FaultServer, Text: "unable to generate challenge", Err: err}
	}
	data, err := json.Marshal(question)
	if err != nil {
		return nodes.Attestation{}, &nodes.AttestError{Fault: nodes.FaultServer, Text: "unable to marshal challenge", Err: err}
	}
	answer, err := challenge(ctx, data)
	if err != nil {
		return nodes.Attestation{}, err
	}
	response, err := x509pop.Decode[x509pop.Response](answer)
	if err != nil {
		return nodes.Attestation{}, &nodes.AttestError{Fault: nodes.FaultMessage, Text: "unable to unmarshal challenge response", Err: err}
	}
	if err := x509pop.Verify(leaf.PublicKey, question, response); err != nil {
		return nodes.Attestation{}, &nodes.AttestError{Fault: nodes.FaultRefused, Text: "challenge response verification failed", Err: err}
	}
	id, err := x.agentID(leaf)
	if err != nil {
		return nodes.Attestation{}, &nodes.AttestError{Fault: nodes.FaultServer, Text: "failed to make spiffe id", Err: err}
	}
	return nodes.Attestation{ID: id, Type: x509pop.Type, Selectors: x.selectors(leaf, chains), CanReattest: true}, nil
}

// parse reads the payload, as far as it is bounded.
func (x *X509POP) parse(payload []byte) (leaf *x509.Certificate, intermediates *x509.CertPool, err error) {
	p, err := x509pop.Decode[x509pop.Payload](payload)
	switch {
	case err != nil:
		return nil, nil, fmt.Errorf("failed to unmarshal data: %w", err)
	case len(p.Certificates) == 0:
		return nil, nil, errors.New("no certificate to attest")
	case len(p.Certificates)-1 > x.MaxIntermediates:
		return nil, nil, errors.New("too many intermediate certificates")
	}
	intermediates = x509.NewCertPool()
	for i, der := range p.Certificates {
		what := "leaf certificate"
		if i > 0 {
			what = fmt.Sprintf("intermediate certificate %d", i-1)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, nil, fmt.Errorf("unable to parse %s: %w", what, err)
		}
		if key, ok := cert.PublicKey.(*rsa.PublicKey); ok && key.N.BitLen() > x.MaxRSABits {
			return nil, nil, fmt.Errorf("%s key size too large", what)
		}
		if i == 0 {
			leaf = cert
		} else {
			intermediates.AddCert(cert)
		}
	}
	return leaf, intermediates, nil
}

func (x *X509POP) agentID(leaf *x509.Certificate) (spiffeid.ID, error) {
	path := "/" + x509pop.Type + "/" + fingerprint(leaf)
	if x.Path != nil {
		var b strings.Builder
		err := x.Path.Execute(&b, CertificateFacts{
			PluginName: x509pop.Type, TrustDomain: x.TrustDomain.Name(), Fingerprint: fingerprint(leaf), SerialNumberHex: serialHex(leaf.SerialNumber),
			Subject: leaf.Subject, Issuer: leaf.Issuer, DNSNames: leaf.DNSNames, URISanSelectors: x.uriSelectors(leaf),
		})
		if err != nil {
			return spiffeid.ID{}, err
		}
		path = b.String()
	}
	// A certificate must not become another attestor's node.
	for _, other := range []string{tpm.AttestorType, devid.Type, nodes.JoinTokenType} {
		if path == "/"+other || strings.HasPrefix(path, "/"+other+"/") {
			return spiffeid.ID{}, fmt.Errorf("the path %q belongs to the attestor %s; change agent_path_template", path, other)
		}
	}
	if path == "" {
		return spiffeid.ID{}, errors.New("agent_path_template makes an empty path")
	}
	return spiffeid.FromPath(x.TrustDomain, "/spire/agent"+path)
}

func (x *X509POP) selectors(leaf *x509.Certificate, chains [][]*x509.Certificate) selectors.Set {
	var out []selectors.Selector
	emit := func(value string) { out = append(out, selectors.Selector{Type: x509pop.Type, Value: value}) }
	if leaf.Subject.CommonName != "" {
		emit("subject:cn:" + leaf.Subject.CommonName)
	}
	for _, chain := range chains {
		for _, ca := range chain[1:] {
			emit("ca:fingerprint:" + fingerprint(ca))
		}
	}
	emit("serialnumber:" + serialHex(leaf.SerialNumber))
	for key, value := range x.uriSelectors(leaf) {
		emit("san:" + key + ":" + value)
	}
	return selectors.NewSet(out...)
}

// uriSelectors reads URI SANs x509pop://<trust domain>/<key>/<value>; the last one of a key counts.
func (x *X509POP) uriSelectors(leaf *x509.Certificate) map[string]string {
	out := map[string]string{}
	for _, uri := range leaf.URIs {
		if !strings.HasPrefix(uri.String(), x509pop.Type+"://"+x.TrustDomain.Name()+"/") {
			continue
		}
		if key, value, ok := strings.Cut(strings.Trim(uri.Path, "/"), "/"); ok {
			out[key] = value
		}
	}
	return out
}

func fingerprint(c *x509.Certificate) string {
	sum := sha1.Sum(c.Raw)
	return hex.EncodeToString(sum[:])
}

func serialHex(n *big.Int) string {
	text := fmt.Sprintf("%x", n)
	if len(text)%2 == 1 {
		text = "0" + text
	}
	return text
}
