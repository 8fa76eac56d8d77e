// SPDX-License-Identifier: Apache-2.0

package devid_test

import (
	"bytes"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/tpm/devid"
	"github.com/assay-id/assay/tpm/devidtest"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

func roots(a *devidtest.Agent, p *swtpmtest.TPM) devid.Roots {
	r := devid.Roots{DevID: x509.NewCertPool(), EK: p.CA}
	r.DevID.AddCert(a.CA)
	return r
}

// later: swtpm's certificates begin now.
func later() time.Time { return time.Now().Add(time.Minute) }

func TestAttestation(t *testing.T) {
	p := swtpmtest.New(t)
	for name, ecc := range map[string]bool{"rsa": false, "ecc": true} {
		t.Run(name, func(t *testing.T) {
			a := devidtest.New(t, p, ecc)
			s, challenge, err := devid.Begin(roots(a, p), a.Open(), later(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			answer := a.Answer(challenge)
			if err := s.Finish(answer); err != nil {
				t.Fatal(err)
			}
			if !s.Leaf.Equal(a.Leaf) || len(s.Chains) != 1 || len(s.Chains[0]) != 2 {
				t.Errorf("leaf %v, chains %v", s.Leaf.Subject, s.Chains)
			}
			if err := s.Finish(answer); err == nil {
				t.Error("a session serves twice")
			}
			again, _, err := devid.Begin(roots(a, p), a.Open(), later(), rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			if err := again.Finish(answer); err == nil {
				t.Error("a recorded answer serves again")
			}
		})
	}
}

func TestRefusals(t *testing.T) {
	p := swtpmtest.New(t)
	a := devidtest.New(t, p, false)
	foreign := swtpmtest.Foreign(t)
	b := devidtest.New(t, foreign, false)
	flip := func(key string, at int) func(map[string]any) {
		return func(m map[string]any) {
			data := bytes.Clone(m[key].([]byte))
			data[(at+len(data))%len(data)] ^= 1
			m[key] = data
		}
	}
	take := func(keys ...string) func(map[string]any) {
		return func(m map[string]any) {
			for _, k := range keys {
				m[k] = b.Payload[k]
			}
		}
	}
	unrestricted := func(m map[string]any) {
		m["AKPub"] = m["DevIDPub"] // an ordinary key of the same TPM poses as AK
	}
	for what, c := range map[string]struct {
		change func(map[string]any)
		want   string
	}{
		"the EK of another TPM":             {take("EKPub"), "differs from public key"},
		"another TPM's EK and certificate":  {take("EKPub", "EKCert"), "endorsement key"},
		"another CA's DevID":                {take("DevIDCert", "DevIDPub"), "DevID certificate"},
		"another DevID key":                 {take("DevIDPub"), "another key than the DevID key"},
		"another AK":                        {take("AKPub"), "key did not sign it"},
		"an unrestricted AK":                {unrestricted, "not a restricted signing key"},
		"no certificate":                    {func(m map[string]any) { m["DevIDCert"] = nil }, "0 certificates"},
		"a changed certification":           {flip("CertifiedDevID", 40), "did not sign"},
		"a changed signature":               {flip("CertificationSignature", -1), "did not sign"},
		"a certification of something else": {take("CertifiedDevID", "CertificationSignature", "AKPub"), "another key than the DevID key"},
		"no EK certificate":                 {func(m map[string]any) { delete(m, "EKCert") }, "endorsement key"},
		"an empty payload":                  {func(m map[string]any) { clear(m) }, "certificates"},
	} {
		payload := map[string]any{}
		for k, v := range a.Payload {
			payload[k] = v
		}
		c.change(payload)
		data, err := json.Marshal(payload)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := devid.Begin(roots(a, p), data, later(), rand.Reader); err == nil || errors.Is(err, devid.ErrServer) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", what, err, c.want)
		}
	}
	if _, _, err := devid.Begin(devid.Roots{}, a.Open(), later(), rand.Reader); !errors.Is(err, devid.ErrServer) {
		t.Errorf("without roots: %v", err)
	}
	// Answers of the wrong key and of the wrong TPM.
	for what, change := range map[string]func(r *devid.Response){
		"a changed signature": func(r *devid.Response) { r.DevID[0] ^= 1 }, "another secret": func(r *devid.Response) { r.CredActivation[0] ^= 1 },
		"nothing": func(r *devid.Response) { *r = devid.Response{} },
	} {
		s, challenge, err := devid.Begin(roots(a, p), a.Open(), later(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		var r devid.Response
		if err := json.Unmarshal(a.Answer(challenge), &r); err != nil {
			t.Fatal(err)
		}
		change(&r)
		data, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Finish(data); err == nil {
			t.Errorf("%s is accepted", what)
		}
	}
}
