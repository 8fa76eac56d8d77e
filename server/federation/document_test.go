// SPDX-License-Identifier: Apache-2.0

package federation_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"

	"github.com/assay-id/assay/server/federation"
)

// TestDocumentConformance is about what we publish; the ids are those of the standards' checklist.
func TestDocumentConformance(t *testing.T) {
	b := newBundle(t, here, newAuthority(t, here.IDString()))
	b.RefreshHint = 90500 * time.Millisecond
	text, err := b.Document()
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Keys     []map[string]any `json:"keys"`
		Sequence json.Number      `json:"spiffe_sequence"`
		Hint     json.Number      `json:"spiffe_refresh_hint"`
	}
	if err := json.Unmarshal(text, &doc); err != nil {
		t.Fatal(err)
	}
	t.Run("B-1", func(t *testing.T) { // a JWK Set, as another reader understands it
		theirs, err := spiffebundle.Parse(here, text)
		if err != nil || len(theirs.X509Authorities()) != 1 || len(theirs.JWTAuthorities()) != 1 || len(theirs.WITAuthorities()) != 1 {
			t.Errorf("go-spiffe reads %v, %v", theirs, err)
		}
	})
	t.Run("B-3", func(t *testing.T) {
		if doc.Sequence != "7" {
			t.Errorf("spiffe_sequence is %s", doc.Sequence)
		}
	})
	t.Run("B-5", func(t *testing.T) {
		if doc.Hint != "91" {
			t.Errorf("spiffe_refresh_hint is %s", doc.Hint)
		}
	})
	t.Run("B-6", func(t *testing.T) {
		empty, err := (&federation.Bundle{TrustDomain: here}).Document()
		if err != nil || !bytes.Contains(empty, []byte(`"keys": []`)) {
			t.Errorf("an empty bundle is %s, %v", empty, err)
		}
	})
	allowed := map[string]string{"x509-svid": "kty use crv x y x5c", "jwt-svid": "kty use crv x y kid", "wit-svid": "kty use crv x y kid"}
	for _, key := range doc.Keys {
		use, _ := key["use"].(string)
		t.Run("B-9 B-10 B-11 W-21 "+use, func(t *testing.T) {
			names := strings.Fields(allowed[use])
			if len(key) != len(names) {
				t.Errorf("the key has the members %v, want %v", key, names)
			}
			for _, name := range names {
				if key[name] == nil {
					t.Errorf("%s is missing", name)
				}
			}
		})
	}
	again, err := b.Document()
	if err != nil || !bytes.Equal(text, again) {
		t.Error("the same bundle gives another document")
	}
}

// jwk is a P-256 key with more members.
func jwk(t testing.TB, more string) string {
	t.Helper()
	key := newKey(t)
	raw, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return fmt.Sprintf(`{"kty":"EC","crv":"P-256","x":"%s","y":"%s"%s}`, b64(raw[1:33]), b64(raw[33:]), more)
}

// TestParseDocument is about what we accept.
func TestParseDocument(t *testing.T) {
	mine, other := newAuthority(t, there.IDString()), newAuthority(t, "spiffe://other.test")
	x509 := func(a *authority) string {
		text, err := (&federation.Bundle{X509: newBundle(t, there, a).X509}).Document()
		if err != nil {
			t.Fatal(err)
		}
		var doc struct{ Keys []json.RawMessage }
		if err := json.Unmarshal(text, &doc); err != nil {
			t.Fatal(err)
		}
		return string(doc.Keys[0])
	}
	jwt := jwk(t, `,"use":"jwt-svid","kid":"a"`)
	notCA := *mine
	leaf, err := tlsLeaf(mine)
	if err != nil {
		t.Fatal(err)
	}
	notCA.cert, notCA.key = leaf.cert, leaf.key
	for _, c := range []struct {
		id, doc          string
		x509s, jwts, wit int    // -1: refused
		why              string // what the refusal says
	}{
		{"B-2", `{"keys":[` + jwt + `]}`, 0, 1, 0, ""},
		{"B-2 others ignored", `{"keys":[` + jwt + `],"more":{"a":[1,{"b":null}]}}`, 0, 1, 0, ""},
		{"B-4", fmt.Sprintf(`{"keys":[],"spiffe_sequence":%d}`, uint64(math.MaxUint64)), 0, 0, 0, ""},
		{"B-6", `{}`, -1, 0, 0, "no list of keys"},
		{"B-6 null", `{"keys":null}`, -1, 0, 0, "no list of keys"},
		{"B-6 exact", `{"KEYS":[` + jwt + `]}`, -1, 0, 0, "no list of keys"},
		{"B-7 type", `{"keys":[{"kty":"AKP","use":"x509-svid","x5c":["!"]},` + jwt + `]}`, 0, 1, 0, ""},
		{"B-7 curve", `{"keys":[{"kty":"EC","crv":"P-257","use":"jwt-svid","kid":"z"},` + jwt + `]}`, 0, 1, 0, ""},
		{"B-7 use", `{"keys":[` + jwk(t, `,"use":"ssh-svid","kid":"z"`) + `,` + jwt + `]}`, 0, 1, 0, ""},
		{"B-8", `{"keys":[]}`, 0, 0, 0, ""},
		{"B-10 missing", `{"keys":[` + jwk(t, `,"kid":"z"`) + `]}`, 0, 0, 0, ""},
		{"B-10 case", `{"keys":[` + jwk(t, `,"use":"JWT-SVID","kid":"z"`) + `]}`, 0, 0, 0, ""},
		{"B-13", `{"keys":[` + jwt + `],"keys":[]}`, -1, 0, 0, `"keys" is there twice`},
		{"B-13 within", `{"keys":[` + jwk(t, `,"use":"jwt-svid","use":"wit-svid","kid":"z"`) + `]}`, -1, 0, 0, `"use" is there twice`},
		{"B-13 escaped", `{"keys":[],"ke\u0079s":[]}`, -1, 0, 0, "twice"},
		{"A-17 W-22", `{"keys":[` + x509(mine) + `,` + jwt + `,` + jwk(t, `,"use":"wit-svid","kid":"w"`) + `]}`, 1, 1, 1, ""},
		{"W-21", `{"keys":[` + jwt + `,` + jwk(t, `,"use":"wit-svid","kid":"a"`) + `]}`, -1, 0, 0, `"a" is there twice`},
		{"no kid", `{"keys":[` + jwk(t, `,"use":"jwt-svid"`) + `]}`, -1, 0, 0, "no key ID"},
		{"F-5", `{"keys":[` + x509(other) + `]}`, -1, 0, 0, "other.test"},
		{"same twice", `{"keys":[` + x509(mine) + `,` + x509(mine) + `]}`, 1, 0, 0, ""},
		{"not a CA", `{"keys":[` + x509(&notCA) + `]}`, -1, 0, 0, "not a certificate authority"},
		{"X-24", `{"keys":[` + jwk(t, `,"use":"x509-svid"`) + `,` + jwk(t, `,"use":"x509-svid","x5c":[]`) + `]}`, 0, 0, 0, ""},
		{"X-25", `{"keys":[` + strings.Replace(x509(mine), `"x5c":[`, `"x5c":["`+base64.StdEncoding.EncodeToString(mine.cert.Raw)+`","!"],"old":[`, 1) + `]}`, 1, 0, 0, ""},
		{"another's key", `{"keys":[` + jwk(t, `,"use":"x509-svid","x5c":["`+base64.StdEncoding.EncodeToString(mine.cert.Raw)+`"]`) + `]}`, -1, 0, 0, "do not match"},
		{"private", `{"keys":[` + jwk(t, `,"use":"jwt-svid","kid":"a","d":"`+strings.Repeat("A", 42)+`E"`) + `]}`, -1, 0, 0, ""},
		{"symmetric", `{"keys":[{"kty":"oct","k":"AAAA","use":"jwt-svid","kid":"s"}]}`, 0, 0, 0, ""},
		{"B-3 not a number", `{"keys":[],"spiffe_sequence":"1"}`, -1, 0, 0, "spiffe_sequence"},
		{"B-3 negative", `{"keys":[],"spiffe_sequence":-1}`, -1, 0, 0, "spiffe_sequence"},
		{"B-5 fraction", `{"keys":[],"spiffe_refresh_hint":1.5}`, -1, 0, 0, "spiffe_refresh_hint"},
		{"trailing", `{"keys":[]} {}`, -1, 0, 0, ""},
		{"not an object", `[]`, -1, 0, 0, ""},
		{"nothing", ``, -1, 0, 0, ""},
		{"deep", strings.Repeat("[", 1<<20), -1, 0, 0, ""},
	} {
		t.Run(c.id, func(t *testing.T) {
			b, err := federation.ParseDocument(there, []byte(c.doc))
			switch {
			case c.x509s < 0 && (!errors.Is(err, federation.ErrInvalid) || !strings.Contains(err.Error(), c.why)):
				t.Errorf("got %+v, %v; want ErrInvalid with %q", b, err, c.why)
			case c.x509s >= 0 && (err != nil || len(b.X509) != c.x509s || len(b.JWT) != c.jwts || len(b.WIT) != c.wit):
				t.Errorf("got %+v, %v", b, err)
			}
		})
	}
}

// TestHintIsBounded: a publisher can not make us wait for ever, or wrap around.
func TestHintIsBounded(t *testing.T) {
	for text, want := range map[string]time.Duration{"-5": 0, "300": 5 * time.Minute, "9223372036854775807": 24 * time.Hour} {
		b, err := federation.ParseDocument(there, []byte(`{"keys":[],"spiffe_refresh_hint":`+text+`}`))
		if err != nil || b.RefreshHint != want {
			t.Errorf("a hint of %s s is %v, %v", text, b, err)
		}
	}
}

// TestOrderIsNoNews: publishers that write maps serve another order each time.
func TestOrderIsNoNews(t *testing.T) {
	a, b := jwk(t, `,"use":"jwt-svid","kid":"a"`), jwk(t, `,"use":"jwt-svid","kid":"b"`)
	one, err1 := federation.ParseDocument(there, []byte(`{"keys":[`+a+`,`+b+`]}`))
	two, err2 := federation.ParseDocument(there, []byte(`{"keys":[`+b+`,`+a+`]}`))
	if err := errors.Join(err1, err2); err != nil || !one.Equal(two) {
		t.Errorf("%v differs from %v: %v", one, two, err)
	}
}

// FuzzParseDocument: what is accepted can be published again and is then the same to us and,
// as far as it goes, to go-spiffe.
func FuzzParseDocument(f *testing.F) {
	a := newAuthority(f, there.IDString())
	text, err := newBundle(f, there, a).Document()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(`{"keys":[` + jwk(f, `,"use":"jwt-svid","kid":"a"`) + `],"spiffe_sequence":1,"spiffe_refresh_hint":60}`))
	f.Add([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","use":"wit-svid","kid":"e"}]}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		b, err := federation.ParseDocument(there, text)
		if err != nil {
			if !errors.Is(err, federation.ErrInvalid) {
				t.Fatalf("%v is not ErrInvalid", err)
			}
			return
		}
		again, err := b.Document()
		if err != nil {
			t.Fatal(err)
		}
		same, err := federation.ParseDocument(there, again)
		if err != nil || !same.Equal(b) || same.Sequence != b.Sequence || same.RefreshHint != b.RefreshHint {
			t.Fatalf("published again it is %+v (%v), and was %+v", same, err, b)
		}
		theirs, err := spiffebundle.Parse(there, again)
		if err != nil || len(theirs.X509Authorities()) != len(b.X509) || len(theirs.JWTAuthorities()) != len(b.JWT) {
			t.Fatalf("go-spiffe reads %v (%v) where we read %+v", theirs, err, b)
		}
	})
}
