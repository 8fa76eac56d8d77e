// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"reflect"
	"testing"
)

// WithoutSecret and WithoutCertificate falsify a ticket.
func WithoutSecret(text string) string {
	t, _ := parseTicket(text)
	t.Secret[0] ^= 1
	return t.String()
}

func WithoutCertificate(text string) string {
	t, _ := parseTicket(text)
	t.Certificate[0] ^= 1
	return t.String()
}

func FuzzTicket(f *testing.F) {
	f.Add(ticket{Address: "10.0.0.1:8083", Certificate: make([]byte, 32), Secret: make([]byte, secretSize), TrustDomain: "example.org"}.String())
	f.Add(ticketPrefix)
	f.Fuzz(func(t *testing.T, text string) {
		got, err := parseTicket(text)
		if err != nil {
			return
		}
		again, err := parseTicket(got.String())
		if err != nil || !reflect.DeepEqual(got, again) {
			t.Errorf("%+v became %+v, %v", got, again, err)
		}
	})
}
