// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"strings"
	"testing"
)

type sample struct {
	TrustDomain string `hcl:"trust_domain"`
	TTL         string `hcl:"default_x509_svid_ttl,optional"`
	TPM         *struct {
		Device string `hcl:"device"`
	} `hcl:"tpm,block"`
}

func TestErrorsNameTheLineAndTheNearestKey(t *testing.T) {
	for _, c := range []struct{ src, want string }{
		{"trust_domain = \"a\"\ndefault_x509_svid_tll = \"1h\"\n", `agent.hcl:2,1: unknown key "default_x509_svid_tll"; did you mean "default_x509_svid_ttl"?`},
		{"trust_domain = \"a\"\ntpm {\n  devise = \"x\"\n  device = \"y\"\n}\n", `agent.hcl:3,3: unknown key "devise"; did you mean "device"?`},
		{"trust_domain = \"a\"\nzzzzzzzzz = 1\n", `agent.hcl:2,1: unknown key "zzzzzzzzz"; the keys are trust_domain, default_x509_svid_ttl, tpm, device`},
		{"\ntrust_domian = \"a\"\n", `agent.hcl:2,1: unknown key "trust_domian"; did you mean "trust_domain"?`},
		{"", `agent.hcl:1,1: The argument "trust_domain" is required, but no definition was found`},
		{"trust_domain = [\n", "agent.hcl:"},
		{"trust_domain = []\n", "agent.hcl:1,16: "},
	} {
		var s sample
		err := Parse("agent.hcl", []byte(c.src), &s)
		if err == nil || !strings.HasPrefix(err.Error(), c.want) {
			t.Errorf("%q:\n got %v\nwant %s", c.src, err, c.want)
		}
	}
}

func TestLoad(t *testing.T) {
	var s sample
	if err := Parse("x.hcl", []byte("trust_domain = \"a\"\ntpm {\n device = \"/dev/tpmrm0\"\n}\n"), &s); err != nil || s.TrustDomain != "a" || s.TPM.Device != "/dev/tpmrm0" {
		t.Errorf("got %+v, %v", s, err)
	}
	if err := Load("/nonexistent.hcl", &s); err == nil || !strings.Contains(err.Error(), "-config") {
		t.Errorf("got %v", err)
	}
}

func TestAt(t *testing.T) {
	src := []byte("group \"a\" {\n}\ngroup \"b\" {\n  x = 1\n}\n")
	bad := errors.New("bad")
	for _, c := range []struct{ label, key, want string }{
		{"b", "x", "f.hcl:4,3: bad"}, {"b", "y", "f.hcl:3,1: bad"}, {"c", "x", "bad"},
	} {
		if err := At("f.hcl", src, "group", c.label, c.key, bad); !errors.Is(err, bad) || err.Error() != c.want {
			t.Errorf("%s of %s: %v, want %s", c.key, c.label, err, c.want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("trust_domain = \"a\"\n"))
	f.Add([]byte("tpm {\n}\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		var s sample
		if Parse("f.hcl", src, &s) == nil {
			_ = At("f.hcl", src, "tpm", "", "device", errors.New("x"))
		}
	})
}
