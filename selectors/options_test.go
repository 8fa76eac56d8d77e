// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"testing"
	"time"
)

func TestEntryOptions(t *testing.T) {
	path := []Selector{{Type: "unix", Value: "path:/usr/bin/x"}}
	for _, c := range []struct {
		name string
		e    Entry
		ok   bool
	}{
		{"none", Entry{}, true},
		{"all", Entry{Selectors: path, Options: EntryOptions{PerProcess: true, Prefetch: true, KeyType: KeyRSA4096, Grace: MaxGrace}}, true},
		{"a key type that is not known", Entry{Options: EntryOptions{KeyType: KeyRSA4096 + 1}}, false},
		{"a grace below zero", Entry{Options: EntryOptions{Grace: -time.Second}}, false},
		{"a grace for ever", Entry{Options: EntryOptions{Grace: MaxGrace + time.Second}}, false},
		{"half a second", Entry{Options: EntryOptions{Grace: time.Second / 2}}, false},
		{"prefetch of any program", Entry{Selectors: []Selector{{Type: "unix", Value: "uid:0"}, {Type: "parent", Value: "path:/x"}}, Options: EntryOptions{Prefetch: true}}, false},
	} {
		if err := c.e.Validate(); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	e := Entry{Selectors: path, Options: EntryOptions{Prefetch: true}}
	if !e.Prefetches() || e.Program() != "/usr/bin/x" {
		t.Error("no prefetch")
	}
	if e.Attributes = (&EntryAttributes{DisableX509SVIDPrefetch: true}); e.Prefetches() {
		t.Error("SPIRE's attribute was ignored")
	}
}

func TestKeyTypes(t *testing.T) {
	for k := KeyDefault; k < keyTypes; k++ {
		if got, err := ParseKeyType(k.String()); err != nil || got != k {
			t.Errorf("%q is read as %v, %v", k, got, err)
		}
	}
	for _, name := range []string{"ed25519", "rsa-1024", "EC-P256"} {
		if got, err := ParseKeyType(name); err == nil {
			t.Errorf("%q is read as %v", name, got)
		}
	}
}
