// SPDX-License-Identifier: Apache-2.0

// Package swtpmtest gives tests a software TPM that is ready to use. Only tests import it.
package swtpmtest

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/assay-id/assay/tpm/swtpm"
)

// TPM is a running software TPM and the CA of its EK certificate.
type TPM struct {
	// Path is for tpm/device.Open.
	Path string
	// CAPEM and CA hold the certificates that the EK certificate leads to.
	CAPEM []byte
	CA    *x509.CertPool

	t       testing.TB
	dir     string
	process *swtpm.Process
}

// template is a manufactured TPM; each is made once for a test binary.
type template struct {
	once  sync.Once
	dir   string
	caPEM []byte
	err   error
}

var first, second, foreign template

// base is the folder of the templates, until Clean; "" when there is none.
var base struct {
	sync.Mutex
	dir string
}

func baseDir() (string, error) {
	base.Lock()
	defer base.Unlock()
	if base.dir != "" {
		return base.dir, nil
	}
	var err error
	base.dir, err = os.MkdirTemp("", "assay-swtpm-")
	return base.dir, err
}

// Main runs the tests of a binary and removes what New manufactured. Use it as
//
//	func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }
func Main(m *testing.M) int {
	code := m.Run()
	if err := Clean(); err != nil && code == 0 {
		return 1
	}
	return code
}

// Clean removes what New manufactured, for a TestMain that has more to do than Main.
func Clean() error {
	base.Lock()
	defer base.Unlock()
	if base.dir == "" {
		return nil
	}
	return os.RemoveAll(base.dir)
}

// New starts a TPM. All that New returns in one test binary have the same EK.
func New(t testing.TB) *TPM { return start(t, &first, "ca", "first") }

// Other starts a TPM with another EK and a certificate of the same CA.
func Other(t testing.TB) *TPM { return start(t, &second, "ca", "second") }

// Foreign starts a TPM with another EK and a certificate of another CA.
func Foreign(t testing.TB) *TPM { return start(t, &foreign, "foreign-ca", "foreign") }

func start(t testing.TB, from *template, ca, name string) *TPM {
	t.Helper()
	from.once.Do(func() {
		dir, err := baseDir()
		if err != nil {
			from.err = err
			return
		}
		from.dir = filepath.Join(dir, name)
		from.caPEM, from.err = swtpm.Manufacture(t.Context(), filepath.Join(dir, ca), from.dir)
	})
	if errors.Is(from.err, swtpm.ErrMissing) {
		skip(t, from.err)
	}
	check(t, from.err)
	// t.TempDir is named after the test and may be too long for a socket.
	dir, err := os.MkdirTemp("", "assay-tpm-")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	check(t, swtpm.Clone(dir, from.dir))
	tpm := &TPM{CAPEM: from.caPEM, CA: x509.NewCertPool(), t: t, dir: dir}
	if !tpm.CA.AppendCertsFromPEM(from.caPEM) {
		t.Fatal("swtpm_setup made no CA certificate")
	}
	t.Cleanup(tpm.Off)
	tpm.On()
	return tpm
}

// Copy starts a copy of the TPM as it is on disk, as somebody who can read that disk would.
func (p *TPM) Copy() *TPM {
	p.t.Helper()
	dir, err := os.MkdirTemp("", "assay-tpm-")
	check(p.t, err)
	p.t.Cleanup(func() { check(p.t, os.RemoveAll(dir)) })
	check(p.t, swtpm.Clone(dir, p.dir))
	c := &TPM{CAPEM: p.CAPEM, CA: p.CA, t: p.t, dir: dir}
	p.t.Cleanup(c.Off)
	c.On()
	return c
}

// On powers the TPM on.
func (p *TPM) On() {
	p.t.Helper()
	// Not the test's context: it ends before the test's clean-up, which may still need the TPM.
	process, err := swtpm.Start(context.WithoutCancel(p.t.Context()), p.dir)
	check(p.t, err)
	p.process, p.Path = process, process.Path()
}

// Off powers the TPM off; its state stays.
func (p *TPM) Off() {
	p.t.Helper()
	check(p.t, p.process.Stop())
}

// skip is the only way a test of this package's users is skipped.
func skip(t testing.TB, why error) {
	t.Helper()
	if os.Getenv("ASSAY_NO_SKIP") == "1" {
		t.Fatal(why)
	}
	t.Skip(why)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
