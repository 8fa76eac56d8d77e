// SPDX-License-Identifier: Apache-2.0

package ca

import (
	"testing"
	"time"

	"github.com/assay-id/assay/server/ca/bundle"
)

// FuzzJournal: whatever is in the store, a journal that is read has only authorities that can be
// written again.
func FuzzJournal(f *testing.F) {
	f.Add([]byte(`{"authorities":[]}`))
	f.Add([]byte(`{"authorities":[{"kind":"jwt","status":"old","id":"a","key_name":"jwt-a","public_key":"MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEaxfR8uEsQkf4vOblY6RA8ncDfYEt6zOg9KE5RdiYwpZP40Li/hp/m47n60p8D54WK84zV2sxXs7LtkBoN79R9Q==","anchor":"b/jwt/a"}]}`))
	f.Add([]byte(`{"authorities":[{"kind":"x509","status":"active"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		all, err := readJournal(data)
		if err != nil {
			return
		}
		for k, s := range all {
			for _, a := range []*authority{s.current, s.next} {
				if a == nil {
					continue
				}
				if a.kind != bundle.Kind(k) || a.public == nil || a.kind == X509 && len(a.chain) == 0 {
					t.Errorf("read %+v", a)
				}
				if _, err := a.entry(statusOld); err != nil {
					t.Error(err)
				}
				a.left(time.Time{})
			}
		}
	})
}
