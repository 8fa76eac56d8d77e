// SPDX-License-Identifier: Apache-2.0

// Package selectors is the vocabulary that the agent and the server share: facts about a
// process become selectors, registration entries demand selectors, and an index says which
// entries a set of selectors satisfies. It is pure: no kernel, no disk, no network, no clock.
//
// The agent and the server run the same Derive on the same Facts, so the server never takes
// the agent's word for a selector.
//
// One file holds one family of selectors, headed by its table: what it looks like, on what
// evidence it stands, and what it does not prove. Names are forever.
package selectors

import (
	"errors"
	"fmt"
	"strings"
)

// Selector is one statement about a workload or a node, written "type:value"
// (SPIFFE/SPIRE registration API, spire.api.types.Selector).
type Selector struct {
	// Type names the family; it is not empty and holds no colon.
	Type string `json:"type"`
	// Value is the rest; it is not empty and may hold colons.
	Value string `json:"value"`
}

// String returns "type:value".
func (s Selector) String() string { return s.Type + ":" + s.Value }

// ErrMalformed is wrapped by every error that Parse and Validate return.
var ErrMalformed = errors.New("malformed selector")

// Parse reads "type:value". The first colon ends the type.
func Parse(text string) (Selector, error) {
	t, v, ok := strings.Cut(text, ":")
	if !ok {
		return Selector{}, fmt.Errorf("%w %q: want type:value, for example unix:uid:1000", ErrMalformed, text)
	}
	s := Selector{Type: t, Value: v}
	return s, s.Validate()
}

// Validate reports whether the type and the value are what an entry may hold.
func (s Selector) Validate() error {
	switch {
	case s.Type == "":
		return fmt.Errorf("%w %q: the type is empty", ErrMalformed, s)
	case strings.Contains(s.Type, ":"):
		return fmt.Errorf("%w %q: the type contains a colon", ErrMalformed, s)
	case s.Value == "":
		return fmt.Errorf("%w %q: the value is empty", ErrMalformed, s)
	}
	return nil
}

// Compare orders selectors by type, then by value.
func (s Selector) Compare(o Selector) int {
	if c := strings.Compare(s.Type, o.Type); c != 0 {
		return c
	}
	return strings.Compare(s.Value, o.Value)
}
