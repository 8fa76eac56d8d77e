// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// FuzzResult: whatever a policy answers, a yes is one that says allow: true and denies nothing, and
// what is said to people is short and on one line.
func FuzzResult(f *testing.F) {
	for _, seed := range []string{
		`[]`, `[{"allow":true,"ttl":60,"minimum_tier":"t2","per_process":false}]`, `[{"allow":true,"deny":["a\nb",""]}]`, `[{"deny":""}]`, `[{"allow":1}]`, `[{"ttl":1e99}]`,
		`{"allow":[true],"reason":[["x"]]}`, `[{"allow_if_admin":true}]`, `[[]]`, `null`,
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, text string) {
		dec := json.NewDecoder(bytes.NewReader([]byte(text)))
		dec.UseNumber()
		var answer any
		if dec.Decode(&answer) != nil {
			return
		}
		fields, _ := one(answer)
		r, err := readResult(answer)
		if err == nil {
			if r.allow && fields["allow"] != true {
				t.Errorf("%s allows", text)
			}
			if list, is := fields["deny"].([]any); is && len(list) > 0 && r.deny == "" {
				t.Errorf("%s denies, and is not heard", text)
			}
			if r.ttl < 0 || r.ttl%time.Second != 0 {
				t.Errorf("%s lives for %v", text, r.ttl)
			}
		}
		c := &Call{Local: true}
		allowed, _, spireErr := c.readSPIRE(answer)
		if allowed && (spireErr != nil || fields["allow"] != true && fields["allow_if_local"] != true) {
			t.Errorf("%s allows a caller at SPIRE", text)
		}
		allowed, reason, authzErr := readAuthorization(answer)
		if allowed && authzErr != nil {
			t.Errorf("%s allows, with %v", text, authzErr)
		}
		words := r.deny + reason
		for _, err := range []error{err, spireErr, authzErr} {
			if err != nil {
				words += err.Error()
			}
		}
		if strings.ContainsAny(words, "\n\r\x00\x1b") || len(words) > 3*(maxReasons+1)*(maxSentence+8) {
			t.Errorf("%s: %q", text, words)
		}
	})
}
