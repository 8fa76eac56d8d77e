// SPDX-License-Identifier: Apache-2.0

// Package pkcs11 is how assay-server uses keys in an HSM without loading the HSM's module, a C
// library of its vendor that may crash or hang: a small program of its own, assay-pkcs11, loads it.
// Helper is the server's side of the conversation with that program, Serve is the program's.
//
// Each message is a frame: its length (4 bytes, big endian), then JSON. The server asks, the program
// answers, in any order; the first question is OpOpen. The PIN is in that question and nowhere else.
package pkcs11

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
)

// Version of the messages. Both sides must be of the same one.
const Version = 1

// maxFrame bounds what a side believes of a length, in bytes.
const maxFrame = 1 << 20

// maxLabel is the longest label of a key, in bytes.
const maxLabel = 512

// Op is what the server asks for.
type Op string

// The operations. Labels name keys, as CKA_LABEL.
const (
	OpOpen     Op = "open"     // Open → Sessions
	OpList     Op = "list"     // Label, a prefix → Labels
	OpGenerate Op = "generate" // Label, Type → PublicKey
	OpFind     Op = "find"     // Label → PublicKey
	OpSign     Op = "sign"     // Label, Data → Signature, as the module gives it
	OpDelete   Op = "delete"   // Label
)

var ops = []Op{OpOpen, OpList, OpGenerate, OpFind, OpSign, OpDelete}

// Open says which module and which token. Without a slot the label chooses the token; with both, both must fit.
type Open struct {
	Version    int     `json:"version"`
	Module     string  `json:"module"`
	TokenLabel string  `json:"token_label,omitempty"`
	Slot       *uint64 `json:"slot,omitempty"`
	PIN        []byte  `json:"pin,omitempty"`
}

// Request is a question of the server.
type Request struct {
	ID    uint64 `json:"id"`
	Op    Op     `json:"op"`
	Open  *Open  `json:"open,omitempty"`
	Label string `json:"label,omitempty"`
	Type  string `json:"type,omitempty"`
	Data  []byte `json:"data,omitempty"`
}

// Response answers the Request of that ID.
type Response struct {
	ID        uint64   `json:"id"`
	Error     *Error   `json:"error,omitempty"`
	Sessions  int      `json:"sessions,omitempty"` // requests that the token serves at once
	Labels    []string `json:"labels,omitempty"`
	PublicKey []byte   `json:"public_key,omitempty"` // PKIX
	Signature []byte   `json:"signature,omitempty"`
}

// Kind of an error, for whoever decides.
type Kind string

// The kinds.
const (
	Failed   Kind = "failed"
	Exists   Kind = "exists"    // there is a key of that label
	NotFound Kind = "not-found" // there is none
	PIN      Kind = "pin"       // the token refuses the PIN, and trying again would lock it
	Broken   Kind = "broken"    // the module should be loaded anew
)

// Error is one of the program.
type Error struct {
	Kind Kind   `json:"kind"`
	Text string `json:"text"`
}

func (e *Error) Error() string { return e.Text }

// KindOf an error of the program; "" of any other.
func KindOf(err error) Kind {
	var e *Error
	if !errors.As(err, &e) {
		return ""
	}
	return e.Kind
}

func failed(format string, args ...any) *Error {
	return &Error{Failed, fmt.Sprintf(format, args...)}
}

var errFrame = errors.New("a message between assay-server and assay-pkcs11 is malformed")

func writeFrame(w io.Writer, message any) error {
	body, err := json.Marshal(message)
	if err != nil {
		return err
	}
	if len(body) > maxFrame {
		return fmt.Errorf("%w: %d bytes", errFrame, len(body))
	}
	_, err = w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(body))), body...))
	return err
}

// readFrame returns io.EOF if the other side ended between two messages.
func readFrame(r io.Reader, message any) error {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n == 0 || n > maxFrame {
		return fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(r, body); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.DisallowUnknownFields()
	if err := d.Decode(message); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	return nil
}

// check reports what no server of ours asks.
func (q *Request) check() error {
	switch {
	case !slices.Contains(ops, q.Op):
		return fmt.Errorf("%w: no operation %q", errFrame, q.Op)
	case (q.Op == OpOpen) != (q.Open != nil):
		return fmt.Errorf("%w: %s with other settings than it has", errFrame, q.Op)
	case q.Op != OpOpen && q.Label == "", len(q.Label) > maxLabel:
		return fmt.Errorf("%w: a label of %d bytes", errFrame, len(q.Label))
	case q.Op == OpSign && len(q.Data) == 0:
		return fmt.Errorf("%w: nothing to sign", errFrame)
	}
	return nil
}
