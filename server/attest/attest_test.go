// SPDX-License-Identifier: Apache-2.0

package attest

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/server/nodes"
	"github.com/assay-id/assay/server/storetest"
	"github.com/assay-id/assay/tpm"
	"github.com/assay-id/assay/tpm/device"
	"github.com/assay-id/assay/tpm/swtpmtest"
	"github.com/assay-id/assay/tpm/verify"
)

func TestMain(m *testing.M) {
	code := storetest.Main(m)
	if err := swtpmtest.Clean(); err != nil && code == 0 {
		code = 1
	}
	os.Exit(code)
}

var td = spiffeid.RequireTrustDomainFromString("example.org")

func quiet(t *testing.T) *slog.Logger { return slog.New(slog.NewTextHandler(t.Output(), nil)) }

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func denied(t *testing.T, err error, want nodes.Reason) {
	t.Helper()
	var d *nodes.DeniedError
	if !errors.As(err, &d) || d.Reason != want {
		t.Fatalf("want reason %d, got %v", want, err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("it did not happen within 10 s")
}

// TestJoinToken: server/nodes tests what a token is worth.
func TestJoinToken(t *testing.T) {
	r, err := nodes.Open(t.Context(), nodes.Config{Store: storetest.Open(t), Logger: quiet(t)})
	must(t, err)
	defer r.Close()
	_, err = r.CreateJoinToken(t.Context(), "token-1", time.Minute)
	must(t, err)
	a := &JoinToken{TrustDomain: td, Tokens: r}
	got, err := a.Attest(t.Context(), []byte("token-1"), nil, nil, nil)
	must(t, err)
	if got.ID.String() != "spiffe://example.org/spire/agent/join_token/token-1" || got.Selectors != nil || got.CanReattest || got.Type != "join_token" {
		t.Errorf("%+v", got)
	}
	var e *nodes.AttestError
	if _, err := a.Attest(t.Context(), []byte("token-1"), nil, nil, nil); !errors.As(err, &e) || e.Fault != nodes.FaultMessage {
		t.Errorf("a spent token: %v", err)
	}
}

// binding is of some connection.
var binding = bytes.Repeat([]byte{8}, tpm.BindingSize)

func TestTPM(t *testing.T) {
	p := swtpmtest.New(t)
	d, err := device.Open(t.Context(), device.Config{Path: p.Path})
	must(t, err)
	defer d.Close()
	key, err := d.NewKey([32]byte{1})
	must(t, err)
	hello, err := d.Hello(key)
	must(t, err)
	payload, err := tpm.Encode(hello)
	must(t, err)
	later := func() time.Time { return time.Now().Add(time.Minute) } // swtpm's certificates begin now
	a := &TPM{TrustDomain: td, Policy: &verify.Policy{EKRoots: p.CA}, Now: later, Rand: rand.Reader}
	answer := func(_ context.Context, data []byte) ([]byte, error) {
		c, err := tpm.Decode[tpm.Challenge](data)
		if err != nil {
			return nil, err
		}
		e, err := d.Answer(key, c, binding)
		if err != nil {
			return nil, err
		}
		return tpm.Encode(e)
	}
	got, err := a.Attest(t.Context(), payload, key.Public(), binding, answer)
	must(t, err)
	hash, err := d.EKHash()
	must(t, err)
	if want := fmt.Sprintf("spiffe://example.org/spire/agent/tpm/%x", hash); got.ID.String() != want {
		t.Errorf("ID %s, want %s", got.ID, want)
	}
	if !got.CanReattest || got.Type != "tpm" || len(got.Checks) == 0 || got.TPM == nil || !slices.Contains(got.Selectors.Strings(), "tpm:key:tpm-resident") {
		t.Errorf("%+v", got)
	}

	gone := errors.New("the agent hung up")
	for _, c := range []struct {
		what    string
		payload []byte
		csr     crypto.PublicKey
		answer  func(context.Context, []byte) ([]byte, error)
		fault   nodes.Fault
	}{
		{"no JSON", []byte("token"), key.Public(), answer, nodes.FaultMessage},
		{"no JSON in the answer", payload, key.Public(), func(context.Context, []byte) ([]byte, error) { return []byte("x"), nil }, nodes.FaultMessage},
		{"another CSR key", payload, another(t, d), answer, nodes.FaultRefused},
	} {
		_, err := a.Attest(t.Context(), c.payload, c.csr, binding, c.answer)
		var e *nodes.AttestError
		if !errors.As(err, &e) || e.Fault != c.fault {
			t.Errorf("%s: %v", c.what, err)
		}
	}
	_, err = a.Attest(t.Context(), payload, key.Public(), binding, func(context.Context, []byte) ([]byte, error) { return nil, gone })
	if err != gone {
		t.Errorf("a lost stream: %v", err)
	}
	a.Policy = &verify.Policy{}
	_, err = a.Attest(t.Context(), payload, key.Public(), binding, answer)
	var e *nodes.AttestError
	if !errors.As(err, &e) || e.Fault != nodes.FaultRefused || !strings.Contains(err.Error(), "ek_ca_path") {
		t.Errorf("an unknown CA: %v", err)
	}
	a.Policy = &verify.Policy{PCRs: []int{23}}
	_, err = a.Attest(t.Context(), payload, key.Public(), binding, answer)
	if !errors.As(err, &e) || e.Fault != nodes.FaultServer {
		t.Errorf("a wrong policy: %v", err)
	}
}

func another(t *testing.T, d *device.Device) crypto.PublicKey {
	t.Helper()
	key, err := d.NewKey([32]byte{2})
	must(t, err)
	return key.Public()
}
