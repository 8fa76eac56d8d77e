// SPDX-License-Identifier: Apache-2.0

package verify

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxudstpm"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

// now is after the making of every certificate.
var now = time.Now().Add(time.Minute)

// node is a machine with a software TPM, an honest agent, and raw access for the dishonest.
type node struct {
	t      *testing.T
	tpm    *swtpmtest.TPM
	device *device.Device
	key    *device.Key
	hello  tpm.Hello
	policy *Policy // lets this node in
	raw    transport.TPM
}

func newNode(t *testing.T, p *swtpmtest.TPM) *node {
	t.Helper()
	n := &node{t: t, tpm: p, policy: &Policy{EKRoots: p.CA}}
	var err error
	n.device, err = device.Open(t.Context(), device.Config{Path: p.Path})
	n.ok(err)
	t.Cleanup(func() { n.device.Close() })
	n.key, err = n.device.NewKey([32]byte{1})
	n.ok(err)
	n.hello, err = n.device.Hello(n.key)
	n.ok(err)
	raw, err := linuxudstpm.Open(strings.TrimPrefix(p.Path, "unix:"))
	n.ok(err)
	n.raw = raw
	return n
}

func (n *node) ok(err error) {
	n.t.Helper()
	if err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) begin(h tpm.Hello) (*Session, tpm.Challenge) {
	n.t.Helper()
	s, c, err := Begin(n.policy, h, now, rand.Reader)
	n.ok(err)
	return s, c
}

func (n *node) answer(c tpm.Challenge) tpm.Evidence {
	n.t.Helper()
	e, err := n.device.Answer(n.key, c, binding)
	n.ok(err)
	return e
}

// binding is of the connection between agent and server.
var binding = bytes.Repeat([]byte{8}, tpm.BindingSize)

// proof is an agent's without an IMA log that goes on.
func proof(e tpm.Evidence, csrKey crypto.PublicKey) Proof {
	return Proof{Evidence: e, CSRKey: csrKey, Binding: binding}
}

// again is the same session, not used yet.
func again(s *Session) *Session {
	c := &Session{begun: s.begun, pcrs: s.pcrs, nonce: s.nonce, secret: s.secret, ak: s.ak, key: s.key, spki: s.spki, progress: s.progress}
	c.progress.Checks = slices.Clone(s.progress.Checks)
	return c
}

// refused fails unless err is a refusal by that check that says so.
func refused(t *testing.T, err error, check, text string) {
	t.Helper()
	var r *Refusal
	if !errors.As(err, &r) {
		t.Fatalf("want a refusal by %s, got %v", check, err)
	}
	if r.Check != check || !strings.Contains(r.Error(), text) {
		t.Fatalf("want a refusal by %s with %q, got %v", check, text, err)
	}
}

func TestHonestNode(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	s, c := n.begin(n.hello)
	v, err := s.Finish(proof(n.answer(c), n.key.Public()), now.Add(59*time.Second))
	n.ok(err)
	var names []string
	for _, c := range v.Checks {
		names = append(names, c.Name)
		if c.Detail == "" {
			t.Errorf("%s has no detail", c.Name)
		}
	}
	want := []string{checkVersion, checkEKTemplate, checkEKCert, checkAK, checkKey, checkSession, checkCSR, checkCredential,
		checkCertify, checkQuote, checkHierarchy, checkSelection, checkPCRs, checkBoot}
	if !slices.Equal(names, want) {
		t.Errorf("checks %v, want %v", names, want)
	}
	hash, err := n.device.EKHash()
	n.ok(err)
	f := v.Facts
	if f.EKHash != hash || f.EKIssuer.IsZero() || v.EKCertificate == nil || !f.KeyResident || f.Firmware == 0 {
		t.Errorf("facts %+v", f)
	}
	// What swtpm.Manufacture told swtpm_localca concerns the platform; the TPM's own attributes are libtpms'.
	if f.Manufacturer != "id:00001014" || f.Model != "swtpm" || f.Version == "" {
		t.Errorf("manufacturer %q, model %q, version %q", f.Manufacturer, f.Model, f.Version)
	}
	if got := slices.Sorted(maps.Keys(f.PCRs)); !slices.Equal(got, DefaultPCRs) {
		t.Errorf("PCRs %v", got)
	}
	if v.Quoted.ResetCount == 0 {
		t.Error("no reset count")
	}
	set := selectors.DeriveNode(&f)
	for _, want := range []string{"tpm:ek:spki-sha256:" + hex.EncodeToString(hash[:]), "tpm:manufacturer:id:00001014", "tpm:key:tpm-resident",
		"tpm:pcr:sha256:0:" + strings.Repeat("0", 64)} {
		if !slices.Contains(set.Strings(), want) {
			t.Errorf("no selector %s in %s", want, set)
		}
	}
}

func TestResetCountRisesWithEachBoot(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	s, c := n.begin(n.hello)
	before, err := s.Finish(proof(n.answer(c), n.key.Public()), now)
	n.ok(err)
	n.tpm.Off()
	n.tpm.On()
	s, c = n.begin(n.hello)
	after, err := s.Finish(proof(n.answer(c), n.key.Public()), now)
	n.ok(err)
	if after.Quoted.ResetCount <= before.Quoted.ResetCount {
		t.Errorf("reset count %d, then %d", before.Quoted.ResetCount, after.Quoted.ResetCount)
	}
}

func TestQuotedPCRsAreTheTPMs(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	event := []byte("measured")
	_, err := tpm2.PCREvent{PCRHandle: tpm2.AuthHandle{Handle: 14, Auth: tpm2.PasswordAuth(nil)}, EventData: tpm2.TPM2BEvent{Buffer: event}}.Execute(n.raw)
	n.ok(err)
	s, c := n.begin(n.hello)
	v, err := s.Finish(proof(n.answer(c), n.key.Public()), now)
	n.ok(err)
	digest := sha256.Sum256(event)
	want := selectors.Digest(sha256.Sum256(append(make([]byte, 32), digest[:]...)))
	if v.Facts.PCRs[14] != want || !v.Facts.PCRs[12].IsZero() {
		t.Errorf("PCR 14 is %s, PCR 12 is %s", v.Facts.PCRs[14], v.Facts.PCRs[12])
	}
}

func TestInventory(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	hash, err := n.device.EKHash()
	n.ok(err)
	n.policy = &Policy{AllowedEKs: map[selectors.Digest]bool{hash: true}}
	for name, h := range map[string]tpm.Hello{
		"no certificate": {Version: tpm.Version, EKPublic: n.hello.EKPublic, AKPublic: n.hello.AKPublic, KeyPublic: n.hello.KeyPublic},
		"unknown CA":     n.hello,
	} {
		t.Run(name, func(t *testing.T) {
			s, c := n.begin(h)
			v, err := s.Finish(proof(n.answer(c), n.key.Public()), now)
			n.ok(err)
			if v.EKCertificate != nil || !v.Facts.EKIssuer.IsZero() || v.Facts.Manufacturer != "" {
				t.Errorf("facts of an unverified certificate: %+v", v.Facts)
			}
			if v.Checks[2].Name != checkEKInventory {
				t.Errorf("checks %v", v.Checks)
			}
		})
	}
}

func TestWhoVouchesForTheEK(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	other := newNode(t, swtpmtest.Other(t))
	foreign := newNode(t, swtpmtest.Foreign(t))
	hash, err := foreign.device.EKHash()
	n.ok(err)
	for _, c := range []struct {
		name   string
		policy *Policy
		alter  func(*tpm.Hello)
		check  string
		text   string
	}{
		{"wrong CA", n.policy, func(h *tpm.Hello) { *h = foreign.hello }, checkEKCert, "add its CA to ek_ca_path or the EK hash " + hex.EncodeToString(hash[:])},
		{"no roots", &Policy{}, func(*tpm.Hello) {}, checkEKCert, "not under a configured root"},
		{"no certificate", n.policy, func(h *tpm.Hello) { h.EKCertificates = nil }, checkEKCert, "has no EK certificate"},
		{"EK certificate of another TPM", n.policy, func(h *tpm.Hello) { h.EKCertificates = other.hello.EKCertificates }, checkEKCert, "belongs to another TPM"},
		{"EK of another TPM", n.policy, func(h *tpm.Hello) { h.EKPublic = other.hello.EKPublic }, checkEKCert, "belongs to another TPM"},
		{"another EK in the inventory", &Policy{AllowedEKs: map[selectors.Digest]bool{hash: true}}, func(*tpm.Hello) {}, checkEKCert, "not under a configured root"},
		{"a CA certificate", n.policy, func(h *tpm.Hello) { h.EKCertificates = [][]byte{issuer(t, n.tpm.CAPEM)} }, checkEKCert, "CA certificate"},
		{"a signing key as EK", n.policy, func(h *tpm.Hello) { h.EKPublic = h.AKPublic }, checkEKTemplate, "not an EK of the TCG"},
		{"an older agent", n.policy, func(h *tpm.Hello) { h.Version = 0 }, checkVersion, "upgrade the agent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := n.hello
			c.alter(&h)
			_, _, err := Begin(c.policy, h, now, rand.Reader)
			refused(t, err, c.check, c.text)
		})
	}
}

func TestKeysThatAreNotFit(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	change := func(public []byte, f func(*tpm2.TPMTPublic)) []byte {
		p, err := tpm2.Unmarshal[tpm2.TPMTPublic](public)
		n.ok(err)
		f(p)
		return tpm2.Marshal(*p)
	}
	for _, c := range []struct {
		name  string
		alter func(*tpm.Hello)
		check string
		text  string
	}{
		{"unrestricted AK", func(h *tpm.Hello) { h.AKPublic = h.KeyPublic }, checkAK, "not restricted"},
		{"AK that can leave", func(h *tpm.Hello) {
			h.AKPublic = change(h.AKPublic, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.FixedTPM = false })
		}, checkAK, "outside of the TPM"},
		{"AK that decrypts", func(h *tpm.Hello) {
			h.AKPublic = change(h.AKPublic, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.Decrypt = true })
		}, checkAK, "signing only"},
		{"AK off the curve", func(h *tpm.Hello) {
			h.AKPublic = change(h.AKPublic, func(p *tpm2.TPMTPublic) { u, _ := p.Unique.ECC(); u.X.Buffer[5] ^= 1 })
		}, checkAK, "not on the curve"},
		{"AK with another scheme", func(h *tpm.Hello) {
			h.AKPublic = change(h.AKPublic, func(p *tpm2.TPMTPublic) {
				d, _ := p.Parameters.ECCDetail()
				d.Scheme = tpm2.TPMTECCScheme{Scheme: tpm2.TPMAlgNull}
			})
		}, checkAK, "not ECDSA"},
		{"AK that signs SHA-1", func(h *tpm.Hello) {
			h.AKPublic = change(h.AKPublic, func(p *tpm2.TPMTPublic) {
				d, _ := p.Parameters.ECCDetail()
				d.Scheme.Details = tpm2.NewTPMUAsymScheme(tpm2.TPMAlgECDSA, &tpm2.TPMSSigSchemeECDSA{HashAlg: tpm2.TPMAlgSHA1})
			})
		}, checkAK, "not SHA-256"},
		{"AK named by SHA-384", func(h *tpm.Hello) {
			h.AKPublic = change(h.AKPublic, func(p *tpm2.TPMTPublic) { p.NameAlg = tpm2.TPMAlgSHA384 })
		}, checkAK, "name algorithm"},
		{"RSA AK", func(h *tpm.Hello) { h.AKPublic = h.EKPublic }, checkAK, "not an ECC key"},
		{"AK with bytes behind", func(h *tpm.Hello) { h.AKPublic = append(slices.Clone(h.AKPublic), 0) }, checkAK, "not a TPMT_PUBLIC"},
		{"restricted agent key", func(h *tpm.Hello) { h.KeyPublic = h.AKPublic }, checkKey, "could not sign a TLS handshake"},
		{"imported agent key", func(h *tpm.Hello) {
			h.KeyPublic = change(h.KeyPublic, func(p *tpm2.TPMTPublic) { p.ObjectAttributes.SensitiveDataOrigin = false })
		}, checkKey, "outside of the TPM"},
	} {
		t.Run(c.name, func(t *testing.T) {
			h := n.hello
			c.alter(&h)
			_, _, err := Begin(n.policy, h, now, rand.Reader)
			refused(t, err, c.check, c.text)
		})
	}
}

func TestEvidenceThatIsRefused(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	s, c := n.begin(n.hello)
	good := n.answer(c)
	_, oldChallenge := n.begin(n.hello)
	old := n.answer(oldChallenge)
	fewer := c
	fewer.PCRs = []int{0}
	otherPCRs := n.answer(fewer)
	software, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	n.ok(err)
	another, err := n.device.NewKey([32]byte{2})
	n.ok(err)
	for _, c := range []struct {
		name  string
		alter func(*tpm.Evidence)
		check string
		text  string
	}{
		{"replay of everything", func(e *tpm.Evidence) { *e = old }, checkCredential, "did not recover the secret"},
		{"replayed certify", func(e *tpm.Evidence) { e.Certify, e.CertifySignature = old.Certify, old.CertifySignature }, checkCertify, "another nonce"},
		{"replayed quote", func(e *tpm.Evidence) { e.Quote, e.QuoteSignature = old.Quote, old.QuoteSignature }, checkQuote, "another nonce"},
		{"quote as certify", func(e *tpm.Evidence) { e.Certify, e.CertifySignature = e.Quote, e.QuoteSignature }, checkCertify, "another kind"},
		{"other PCR selection", func(e *tpm.Evidence) {
			e.Quote, e.QuoteSignature, e.PCRValues = otherPCRs.Quote, otherPCRs.QuoteSignature, otherPCRs.PCRValues
		}, checkSelection, "other PCRs"},
		{"changed PCR value", func(e *tpm.Evidence) { e.PCRValues[7] = make([]byte, 32); e.PCRValues[7][0] = 1 }, checkPCRs, "not the quoted ones"},
		{"missing PCR value", func(e *tpm.Evidence) { delete(e.PCRValues, 7) }, checkPCRs, "PCR 7 is missing"},
		{"PCR value that was not quoted", func(e *tpm.Evidence) { e.PCRValues[13] = make([]byte, 32) }, checkPCRs, "not the quoted ones"},
		{"no quote", func(e *tpm.Evidence) { e.Quote = nil }, checkQuote, "did not sign"},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := good
			e.PCRValues = maps.Clone(good.PCRValues)
			c.alter(&e)
			_, err := again(s).Finish(proof(e, n.key.Public()), now)
			refused(t, err, c.check, c.text)
		})
	}
	_, err = again(s).Finish(proof(good, software.Public()), now)
	refused(t, err, checkCSR, "another key")
	_, err = again(s).Finish(proof(good, another.Public()), now)
	refused(t, err, checkCSR, "another key")
	_, err = again(s).Finish(proof(good, nil), now)
	refused(t, err, checkCSR, "another key")
	_, err = again(s).Finish(proof(good, n.key.Public()), now.Add(SessionLifetime))
	refused(t, err, checkSession, "begin again")
	_, err = again(s).Finish(proof(good, n.key.Public()), now.Add(-time.Second))
	refused(t, err, checkSession, "begin again")

	_, err = s.Finish(proof(good, n.key.Public()), now)
	n.ok(err)
	_, err = s.Finish(proof(good, n.key.Public()), now)
	refused(t, err, checkSession, "answered before")
}

// TestEveryFlippedBit: no single bit of an answer may change unnoticed.
func TestEveryFlippedBit(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	s, c := n.begin(n.hello)
	good := n.answer(c)
	parts := map[string]func(*tpm.Evidence) *[]byte{
		"secret":            func(e *tpm.Evidence) *[]byte { return &e.Secret },
		"certify":           func(e *tpm.Evidence) *[]byte { return &e.Certify },
		"certify signature": func(e *tpm.Evidence) *[]byte { return &e.CertifySignature },
		"quote":             func(e *tpm.Evidence) *[]byte { return &e.Quote },
		"quote signature":   func(e *tpm.Evidence) *[]byte { return &e.QuoteSignature },
	}
	for name, part := range parts {
		e := good
		original := *part(&e)
		for i := range 8 * len(original) {
			flipped := slices.Clone(original)
			flipped[i/8] ^= 1 << (i % 8)
			*part(&e) = flipped
			if _, err := again(s).Finish(proof(e, n.key.Public()), now); err == nil {
				t.Fatalf("bit %d of %s was flipped and nobody noticed", i, name)
			}
		}
	}
	for i := range good.PCRValues {
		e := good
		e.PCRValues = maps.Clone(good.PCRValues)
		e.PCRValues[i] = slices.Clone(e.PCRValues[i])
		e.PCRValues[i][31] ^= 1
		_, err := again(s).Finish(proof(e, n.key.Public()), now)
		refused(t, err, checkPCRs, "not the quoted ones")
	}
}

// TestEveryFlippedByteOfHello: either the server refuses it, or the TPM does.
func TestEveryFlippedByteOfHello(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	parts := map[string]func(*tpm.Hello) *[]byte{
		"EK certificate": func(h *tpm.Hello) *[]byte { return &h.EKCertificates[0] },
		"EK":             func(h *tpm.Hello) *[]byte { return &h.EKPublic },
		"AK":             func(h *tpm.Hello) *[]byte { return &h.AKPublic },
		"key":            func(h *tpm.Hello) *[]byte { return &h.KeyPublic },
	}
	for name, part := range parts {
		h := n.hello
		h.EKCertificates = slices.Clone(h.EKCertificates)
		original := *part(&h)
		for i := range original {
			flipped := slices.Clone(original)
			flipped[i] ^= 0x11
			*part(&h) = flipped
			s, c, err := Begin(n.policy, h, now, rand.Reader)
			if err != nil {
				continue
			}
			e, err := n.device.Answer(n.key, c, binding)
			if err != nil {
				continue
			}
			if _, err := s.Finish(proof(e, n.key.Public()), now); err == nil {
				t.Fatalf("byte %d of %s was changed and nobody noticed", i, name)
			}
		}
	}
}

func TestPolicyRefusesResettablePCRs(t *testing.T) {
	n := newNode(t, swtpmtest.New(t))
	for _, pcrs := range [][]int{{0, 16}, {23}, {3, 2}, {0, 0}} {
		_, _, err := Begin(&Policy{EKRoots: n.tpm.CA, PCRs: pcrs}, n.hello, now, rand.Reader)
		var r *Refusal
		if err == nil || errors.As(err, &r) {
			t.Errorf("PCRs %v: %v", pcrs, err)
		}
	}
}

// issuer returns the DER of the CA that issued the EK certificates.
func issuer(t *testing.T, pemData []byte) []byte {
	t.Helper()
	pool := decodeAll(t, pemData)
	i := slices.IndexFunc(pool, func(c *x509.Certificate) bool { return c.IsCA })
	if i < 0 {
		t.Fatal("no CA certificate")
	}
	return pool[i].Raw
}
