// SPDX-License-Identifier: Apache-2.0

package device

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"math/big"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"

	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

func open(t *testing.T, path string) *Device {
	t.Helper()
	d, err := Open(t.Context(), Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// binding is of some connection.
var binding = bytes.Repeat([]byte{8}, tpm.BindingSize)

func newKey(t *testing.T, d *Device, unique byte) *Key {
	t.Helper()
	k, err := d.NewKey([32]byte{unique})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// noHandles fails if anything of ours is left in the TPM.
func noHandles(t *testing.T, d *Device, when string) {
	t.Helper()
	for _, first := range [...]uint32{transientObjects, loadedSessions, savedSessions} {
		h, err := d.handles(first)
		if err != nil {
			t.Fatal(err)
		}
		if len(h) != 0 {
			t.Errorf("after %s the TPM still holds %x", when, h)
		}
	}
}

// challenge does the server's part for a Hello, without judging it.
func challenge(t testing.TB, h tpm.Hello, secret []byte) tpm.Challenge {
	t.Helper()
	ek, err := tpm2.Unmarshal[tpm2.TPMTPublic](h.EKPublic)
	if err != nil {
		t.Fatal(err)
	}
	ak, err := tpm2.Unmarshal[tpm2.TPMTPublic](h.AKPublic)
	if err != nil {
		t.Fatal(err)
	}
	name, err := tpm2.ObjectName(ak)
	if err != nil {
		t.Fatal(err)
	}
	k, err := tpm2.ImportEncapsulationKey(ek)
	if err != nil {
		t.Fatal(err)
	}
	blob, enc, err := tpm2.CreateCredential(rand.Reader, k, name.Buffer, secret)
	if err != nil {
		t.Fatal(err)
	}
	return tpm.Challenge{Version: tpm.Version, CredentialBlob: blob, EncryptedSecret: enc, Nonce: make([]byte, tpm.NonceSize), PCRs: []int{0, 7, 10}}
}

func TestAnswerRecoversTheSecretAndLeavesNoHandles(t *testing.T) {
	d := open(t, swtpmtest.New(t).Path)
	noHandles(t, d, "Open")
	key := newKey(t, d, 1)
	noHandles(t, d, "NewKey")
	hello, err := d.Hello(key)
	if err != nil {
		t.Fatal(err)
	}
	if len(hello.EKCertificates) != 1 {
		t.Fatalf("%d EK certificates", len(hello.EKCertificates))
	}
	secret := bytes.Repeat([]byte{7}, tpm.SecretSize)
	e, err := d.Answer(key, challenge(t, hello, secret), binding)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(e.Secret, secret) {
		t.Error("another secret came back")
	}
	if len(e.PCRValues) != 3 {
		t.Errorf("%d PCR values", len(e.PCRValues))
	}
	noHandles(t, d, "Answer")
	if _, err := key.Sign(rand.Reader, secret, crypto.SHA256); err != nil {
		t.Fatal(err)
	}
	noHandles(t, d, "Sign")
}

func TestFailuresLeaveNoHandles(t *testing.T) {
	d := open(t, swtpmtest.New(t).Path)
	other := open(t, swtpmtest.Other(t).Path)
	key := newKey(t, d, 1)
	hello, err := d.Hello(key)
	if err != nil {
		t.Fatal(err)
	}
	secret := make([]byte, tpm.SecretSize)

	otherKey := newKey(t, other, 1)
	otherHello, err := other.Hello(otherKey)
	if err != nil {
		t.Fatal(err)
	}
	foreignAK := hello
	foreignAK.AKPublic = otherHello.AKPublic
	_, err = d.Answer(key, challenge(t, foreignAK, secret), binding)
	if !errors.Is(err, tpm2.TPMRCIntegrity) {
		t.Errorf("a credential for another AK: %v", err)
	}
	noHandles(t, d, "a credential for another AK")

	foreignEK := hello
	foreignEK.EKPublic = otherHello.EKPublic
	if _, err = d.Answer(key, challenge(t, foreignEK, secret), binding); err == nil {
		t.Error("a credential for another EK was activated")
	}
	noHandles(t, d, "a credential for another EK")

	if _, err := d.Answer(otherKey, challenge(t, hello, secret), binding); err == nil {
		t.Error("a key of another device was accepted")
	}
	c := challenge(t, hello, secret)
	c.Version = tpm.Version + 1
	if _, err := d.Answer(key, c, binding); err == nil || !strings.Contains(err.Error(), "speaks version") {
		t.Errorf("another version: %v", err)
	}
}

func TestKeysComeFromUnique(t *testing.T) {
	d := open(t, swtpmtest.New(t).Path)
	a, again, b := newKey(t, d, 1), newKey(t, d, 1), newKey(t, d, 2)
	if !a.public.Equal(again.public) {
		t.Error("the same bytes gave another key")
	}
	if a.public.Equal(b.public) {
		t.Error("other bytes gave the same key")
	}
	if _, err := d.NewKey([32]byte{}); err == nil {
		t.Error("zero bytes were accepted")
	}
	digest := sha256.Sum256([]byte("x"))
	if _, err := a.Sign(nil, digest[:], crypto.SHA384); err == nil {
		t.Error("SHA-384 was accepted")
	}
}

func TestSignFromManyGoroutines(t *testing.T) {
	d := open(t, swtpmtest.New(t).Path)
	digest := sha256.Sum256([]byte("x"))
	keys := []*Key{newKey(t, d, 1), newKey(t, d, 2), newKey(t, d, 3), newKey(t, d, 4), newKey(t, d, 5)}
	var wg sync.WaitGroup
	for _, k := range keys {
		wg.Go(func() {
			for range 10 {
				sig, err := k.Sign(nil, digest[:], crypto.SHA256)
				if err != nil {
					t.Error(err)
				} else if !ecdsa.VerifyASN1(k.public, digest[:], sig) {
					t.Error("the signature is wrong")
				}
			}
		})
	}
	wg.Wait()
	noHandles(t, d, "many signatures")
}

func TestKeyIsTheSameAfterTheTPMRestarts(t *testing.T) {
	p := swtpmtest.New(t)
	d := open(t, p.Path)
	key := newKey(t, d, 9)
	p.Off()
	digest := sha256.Sum256([]byte("x"))
	if _, err := key.Sign(nil, digest[:], crypto.SHA256); err == nil || !strings.Contains(err.Error(), "is swtpm running") {
		t.Errorf("without a TPM: %v", err)
	}
	p.On()
	sig, err := key.Sign(nil, digest[:], crypto.SHA256)
	if err != nil {
		t.Fatal(err)
	}
	if !ecdsa.VerifyASN1(key.public, digest[:], sig) {
		t.Error("the signature is wrong")
	}
	hello, err := d.Hello(key)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := d.Answer(key, challenge(t, hello, digest[:]), binding); err != nil {
		t.Errorf("Answer after a restart: %v", err)
	}
	noHandles(t, d, "a restart")
}

// TestOpenSweeps leaves more objects than a TPM without resource manager can hold.
func TestOpenSweeps(t *testing.T) {
	p := swtpmtest.New(t)
	raw, _, err := openTransport(p.Path)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := (tpm2.CreatePrimary{PrimaryHandle: tpm2.TPMRHOwner, InPublic: tpm2.New2B(tpm2.ECCSRKTemplate)}).Execute(raw); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := tpm2.PolicySession(raw, tpm2.TPMAlgSHA256, 16); err != nil {
		t.Fatal(err)
	}
	d := open(t, p.Path)
	noHandles(t, d, "Open")
}

func TestTLSClientKeyInTPM(t *testing.T) {
	d := open(t, swtpmtest.New(t).Path)
	key := newKey(t, d, 3)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{"agent"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, IsCA: true, BasicConstraintsValid: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	both := tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: pool, ClientCAs: pool,
		ClientAuth: tls.RequireAndVerifyClientCert, ServerName: "agent", MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true,
	}
	failed := make(chan error, 1)
	go func() { failed <- tls.Server(s, &both).HandshakeContext(t.Context()) }()
	if err := tls.Client(c, &both).HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-failed; err != nil {
		t.Fatal(err)
	}
}

func TestOpenSaysWhatToDo(t *testing.T) {
	for path, want := range map[string]string{
		"/dev/tpm0":                 "use /dev/tpmrm0",
		"/dev/tpmrm77":              "enable the TPM 2.0 in the firmware setup",
		"swtpm.sock":                "use /dev/tpmrm0 or unix:",
		"unix:/nonexistent/tpm.soc": "is swtpm running?",
	} {
		if _, err := Open(t.Context(), Config{Path: path}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", path, err, want)
		}
	}
}

// busy is a TPM that asks to be asked again n times.
type busy struct{ n, sent int }

func (b *busy) Send([]byte) ([]byte, error) {
	b.sent++
	r := make([]byte, headerSize)
	if b.sent <= b.n {
		binary.BigEndian.PutUint32(r[6:], uint32(tpm2.TPMRCRetry))
	}
	return r, nil
}
func (b *busy) Close() error { return nil }

func TestPatience(t *testing.T) {
	slept := time.Duration(0)
	sleep := func(d time.Duration) { slept += d }
	few := &busy{n: 5}
	if _, err := (&patient{few, sleep}).Send(nil); err != nil || few.sent != 6 {
		t.Errorf("after %d sends: %v", few.sent, err)
	}
	slept = 0
	if _, err := (&patient{&busy{n: 1 << 30}, sleep}).Send(nil); !errors.Is(err, ErrBusy) || slept < busyTimeout {
		t.Errorf("a TPM that stays busy: slept %s, %v", slept, err)
	}
}

func TestClosed(t *testing.T) {
	d := open(t, swtpmtest.New(t).Path)
	key := newKey(t, d, 1)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := key.Sign(nil, make([]byte, 32), crypto.SHA256); !errors.Is(err, ErrClosed) {
		t.Errorf("Sign: %v", err)
	}
	if _, err := d.NewKey([32]byte{1}); !errors.Is(err, ErrClosed) {
		t.Errorf("NewKey: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// measuring is a TPM on a machine where IMA measures a program right after each of the next n
// reads of a PCR.
type measuring struct {
	transport.TPMCloser
	n int
}

func (m *measuring) Send(command []byte) ([]byte, error) {
	response, err := m.TPMCloser.Send(command)
	if err == nil && m.n > 0 && tpm2.TPMCC(binary.BigEndian.Uint32(command[6:])) == tpm2.TPMCCPCRRead {
		m.n--
		_, err = tpm2.PCREvent{PCRHandle: tpm2.AuthHandle{Handle: 10, Auth: tpm2.PasswordAuth(nil)}, EventData: tpm2.TPM2BEvent{Buffer: []byte{1}}}.Execute(m.TPMCloser)
	}
	return response, err
}

func TestPCRsThatChangeWhileQuoting(t *testing.T) {
	d := open(t, swtpmtest.New(t).Path)
	key := newKey(t, d, 1)
	hello, err := d.Hello(key)
	if err != nil {
		t.Fatal(err)
	}
	c := challenge(t, hello, make([]byte, tpm.SecretSize))
	c.PCRs = []int{10}
	m := &measuring{d.tpm, 3}
	d.tpm = m
	e, err := d.Answer(key, c, binding)
	if err != nil {
		t.Fatal(err)
	}
	a, err := tpm2.Unmarshal[tpm2.TPMSAttest](e.Quote)
	if err != nil {
		t.Fatal(err)
	}
	q, err := a.Attested.Quote()
	if err != nil {
		t.Fatal(err)
	}
	if want := sha256.Sum256(e.PCRValues[10]); m.n != 0 || !bytes.Equal(q.PCRDigest.Buffer, want[:]) {
		t.Error("the values are not the quoted ones")
	}
	m.n = 1 << 30
	if _, err := d.Answer(key, c, binding); err == nil || !strings.Contains(err.Error(), "changed 10 times") {
		t.Errorf("PCRs that never rest: %v", err)
	}
	m.n = 0
	noHandles(t, d, "PCRs that never rest")
}

func BenchmarkSign(b *testing.B) {
	d, key := benchDevice(b)
	defer d.Close()
	digest := sha256.Sum256([]byte("x"))
	for b.Loop() {
		if _, err := key.Sign(nil, digest[:], crypto.SHA256); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkNewKey(b *testing.B) {
	d, _ := benchDevice(b)
	defer d.Close()
	for b.Loop() {
		if _, err := d.NewKey([32]byte{7}); err != nil {
			b.Fatal(err)
		}
	}
}

func benchDevice(b *testing.B) (*Device, *Key) {
	b.Helper()
	d, err := Open(b.Context(), Config{Path: swtpmtest.New(b).Path})
	if err != nil {
		b.Fatal(err)
	}
	key, err := d.NewKey([32]byte{1})
	if err != nil {
		b.Fatal(err)
	}
	return d, key
}
