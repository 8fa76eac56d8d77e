// SPDX-License-Identifier: Apache-2.0

package selectors

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// EntryOptions say how agents treat the SVIDs of an entry. The zero value is what agents do for SPIRE's entries.
type EntryOptions struct {
	// PerProcess: each process, and each image that it executes, has an X.509-SVID and a WIT-SVID of its own.
	PerProcess bool `json:"per_process,omitempty"`
	// Prefetch: the X.509-SVID is signed when a program of the entry is executed, before it asks. See Entry.Program.
	Prefetch bool `json:"prefetch,omitempty"`
	// KeyType of X.509-SVIDs; zero is the agent's.
	KeyType KeyType `json:"key_type,omitempty"`
	// Grace is how long an agent keeps SVIDs after the last use, in whole seconds up to MaxGrace; zero is the agent's.
	Grace time.Duration `json:"grace,omitempty"`
}

// MaxGrace is how long an SVID may be kept for nobody.
const MaxGrace = 30 * 24 * time.Hour

// Validate reports what of the options can not be done, in one sentence.
func (o EntryOptions) Validate() error {
	switch {
	case o.KeyType >= keyTypes:
		return fmt.Errorf("the key types are %s", strings.Join(keyTypeNames[1:], ", "))
	case o.Grace < 0 || o.Grace > MaxGrace || o.Grace%time.Second != 0:
		return fmt.Errorf("a grace of %v: write whole seconds, up to %v", o.Grace, MaxGrace)
	}
	return nil
}

// Validate reports what of the entry's options can not be done for this entry, in one sentence.
func (e *Entry) Validate() error {
	if e.Options.Prefetch && e.Program() == "" {
		return errors.New("prefetch needs a selector unix:path:…, by which agents know the program when it is executed; add one")
	}
	return e.Options.Validate()
}

// Prefetches reports whether X.509-SVIDs are signed before a workload asks. SPIRE's attribute against it wins.
func (e *Entry) Prefetches() bool {
	return e.Options.Prefetch && (e.Attributes == nil || !e.Attributes.DisableX509SVIDPrefetch)
}

// Program is the path of the program that the entry demands, "" if it demands none.
func (e *Entry) Program() string {
	for _, s := range e.Selectors {
		if path, ok := strings.CutPrefix(s.Value, "path:"); ok && s.Type == "unix" {
			return path
		}
	}
	return ""
}

// KeyType is a kind of private key that an X.509-SVID may be for. Ed25519 is not among them: the X.509-SVID standard does
// not forbid it, but neither SPIRE nor the TLS stacks of many workloads take it.
type KeyType uint8

// The types. Their numbers are those of assay.entry.v1.KeyType, and of what is stored.
const (
	KeyDefault KeyType = iota // the agent's
	KeyECP256
	KeyECP384
	KeyRSA2048
	KeyRSA4096
	keyTypes
)

var keyTypeNames = []string{"", "ec-p256", "ec-p384", "rsa-2048", "rsa-4096"}

// String is the name as SPIRE's configuration has it; KeyDefault has none.
func (t KeyType) String() string {
	if t >= keyTypes {
		return fmt.Sprintf("key type %d", uint8(t))
	}
	return keyTypeNames[t]
}

// ParseKeyType reads what String writes.
func ParseKeyType(name string) (KeyType, error) {
	for t, n := range keyTypeNames {
		if n == name {
			return KeyType(t), nil
		}
	}
	if name == "ed25519" {
		return 0, errors.New("key type ed25519: SPIRE and the TLS stacks of many workloads do not take it; write ec-p256")
	}
	return 0, fmt.Errorf("key type %q: write %s", name, strings.Join(keyTypeNames[1:], ", "))
}
