// SPDX-License-Identifier: Apache-2.0

package federation

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// Uses of a JWK (SPIFFE Trust Domain and Bundle §4.2.2, WIT-SVID §6.1).
const (
	x509Use = "x509-svid"
	jwtUse  = "jwt-svid"
	witUse  = "wit-svid"
)

// Document is the bundle in the SPIFFE bundle format. Equal bundles give equal bytes.
func (b *Bundle) Document() ([]byte, error) {
	doc := struct {
		Keys     []jose.JSONWebKey `json:"keys"`
		Sequence uint64            `json:"spiffe_sequence"`
		Hint     int64             `json:"spiffe_refresh_hint,omitempty"`
	}{Keys: []jose.JSONWebKey{}, Sequence: b.Sequence, Hint: int64(math.Ceil(b.RefreshHint.Seconds()))}
	for _, cert := range b.X509 {
		doc.Keys = append(doc.Keys, jose.JSONWebKey{Key: cert.PublicKey, Certificates: []*x509.Certificate{cert}, Use: x509Use})
	}
	for _, a := range b.JWT {
		doc.Keys = append(doc.Keys, jose.JSONWebKey{Key: a.PublicKey, KeyID: a.ID, Use: jwtUse})
	}
	for _, a := range b.WIT {
		doc.Keys = append(doc.Keys, jose.JSONWebKey{Key: a.PublicKey, KeyID: a.ID, Use: witUse})
	}
	text, err := json.MarshalIndent(doc, "", "    ")
	if err != nil {
		return nil, fmt.Errorf("encode the bundle of %s: %w", b.TrustDomain.Name(), err)
	}
	return text, nil
}

// ParseDocument reads a bundle of the trust domain in the SPIFFE bundle format. Keys of a type or use
// that is not known are left out. What is known must be right, or the whole document is refused: an
// authority must not go missing unseen. So is a document with a member twice, which readers could
// understand differently. Errors are ErrInvalid.
func ParseDocument(td spiffeid.TrustDomain, text []byte) (*Bundle, error) {
	b, err := parseDocument(td, text)
	if err == nil {
		err = b.Validate()
	} else {
		err = fmt.Errorf("%w bundle: %w", ErrInvalid, err)
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

func parseDocument(td spiffeid.TrustDomain, text []byte) (*Bundle, error) {
	if err := uniqueMembers(text); err != nil {
		return nil, err
	}
	var doc map[string]json.RawMessage // and not a struct, which would take "KEYS" for "keys"
	if err := json.Unmarshal(text, &doc); err != nil {
		return nil, err
	}
	b := &Bundle{TrustDomain: td}
	if raw, ok := doc["spiffe_sequence"]; ok {
		if err := json.Unmarshal(raw, &b.Sequence); err != nil {
			return nil, fmt.Errorf("spiffe_sequence: %w", err)
		}
		b.sequenced = true
	}
	if raw, ok := doc["spiffe_refresh_hint"]; ok {
		var seconds int64
		if err := json.Unmarshal(raw, &seconds); err != nil {
			return nil, fmt.Errorf("spiffe_refresh_hint: %w", err)
		}
		b.RefreshHint = time.Duration(min(max(seconds, 0), int64(longestPoll/time.Second))) * time.Second
	}
	var keys []json.RawMessage
	if err := json.Unmarshal(doc["keys"], &keys); err != nil || keys == nil {
		return nil, errors.New("it has no list of keys")
	}
	for i, raw := range keys {
		if err := b.addKey(raw); err != nil {
			return nil, fmt.Errorf("key %d: %w", i+1, err)
		}
	}
	b.sort()
	return b, nil
}

// sort makes the order our own: publishers (go-spiffe's for one) change theirs with each answer, and
// that is no news.
func (b *Bundle) sort() {
	slices.SortFunc(b.X509, func(x, y *x509.Certificate) int { return bytes.Compare(x.Raw, y.Raw) })
	b.X509 = slices.CompactFunc(b.X509, (*x509.Certificate).Equal)
	byID := func(x, y Authority) int { return strings.Compare(x.ID, y.ID) }
	slices.SortFunc(b.JWT, byID)
	slices.SortFunc(b.WIT, byID)
}

func (b *Bundle) addKey(raw json.RawMessage) error {
	var members map[string]any
	if err := json.Unmarshal(raw, &members); err != nil {
		return err
	}
	use, _ := members["use"].(string)
	if use != x509Use && use != jwtUse && use != witUse || !knownKey(members) {
		return nil
	}
	if use == x509Use { // without x5c it is ignored, and of several values all but the first (X509-SVID §6.2)
		list, _ := members["x5c"].([]any)
		if len(list) == 0 {
			return nil
		}
		members["x5c"] = list[:1]
		var err error
		if raw, err = json.Marshal(members); err != nil {
			return err
		}
	}
	var key jose.JSONWebKey
	if err := key.UnmarshalJSON(raw); err != nil {
		return err
	}
	if !key.IsPublic() || !key.Valid() {
		return errors.New("it is not a valid public key")
	}
	switch use {
	case x509Use:
		b.X509 = append(b.X509, key.Certificates[0])
	case jwtUse:
		b.JWT = append(b.JWT, Authority{ID: key.KeyID, PublicKey: key.Key})
	case witUse:
		b.WIT = append(b.WIT, Authority{ID: key.KeyID, PublicKey: key.Key})
	}
	return nil
}

// knownKey reports whether the type (and curve) of a JWK is one that we can use.
func knownKey(members map[string]any) bool {
	curve, _ := members["crv"].(string)
	switch members["kty"] {
	case "RSA":
		return true
	case "EC":
		return curve == "P-256" || curve == "P-384" || curve == "P-521"
	case "OKP":
		return curve == "Ed25519"
	}
	return false
}

// uniqueMembers refuses a JSON text in which an object has a member twice; encoding/json would
// silently take the last.
func uniqueMembers(text []byte) error {
	type level struct {
		seen map[string]bool // nil: an array
		name bool            // the next token is a member's name
	}
	var levels []level
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	for {
		token, err := dec.Token()
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
		var top *level
		if n := len(levels); n > 0 {
			top = &levels[n-1]
		}
		delim, _ := token.(json.Delim)
		switch {
		case delim == '}' || delim == ']':
			levels = levels[:len(levels)-1]
			continue
		case top != nil && top.name:
			name := token.(string)
			if top.seen[name] {
				return fmt.Errorf("member %q is there twice", name)
			}
			top.seen[name], top.name = true, false
			continue
		case top != nil && top.seen != nil:
			top.name = true
		}
		switch delim {
		case '{':
			levels = append(levels, level{seen: map[string]bool{}, name: true})
		case '[':
			levels = append(levels, level{})
		}
	}
}
