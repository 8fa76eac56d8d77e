// SPDX-License-Identifier: Apache-2.0

// Package ima replays the log of Linux' Integrity Measurement Architecture against a quoted PCR 10, as
// the log grows. It reads /sys/kernel/security/ima/binary_runtime_measurements in
// little-endian byte order:
//
//	entry := PCR u32 │ SHA-1 of the template data │ size u32 │ template's name │ template data
//	data  := size u32 │ fields, each of them: size u32 │ bytes          (all templates but "ima")
//	data  := SHA-1 of the file │ size u32 │ name                        (template "ima")
//	field 1 := [type ":"] algorithm ":" NUL │ digest of the file,  field 2 := name NUL,  field 3… as the template says
//
// What PCR 10 vouches for is the template data of each entry in order, by its SHA-256: not the
// template's name, which is therefore held against the number of fields and believed no
// further; and of a violation (a file that was written while it was measured) that there was one,
// but not of which file. A file's name is what the machine called it: a claim, chosen by whoever
// may name files there, never an identity.
//
// The SHA-256 bank only. In other banks kernels extend the SHA-1, padded with zeros, when they
// lacked that hash at the start of IMA (seen in the SHA-384 bank of Debian's 6.1).
package ima

import (
	"bytes"
	"crypto/sha1" // the log holds it; nothing here relies on it
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/assay-id/assay/selectors"
	"github.com/assay-id/assay/tpm/octets"
)

// Limits of a log that is accepted.
const (
	MaxChunk    = 64 << 20 // bytes given to one Advance; a million entries have about 100 MB
	MaxTemplate = 1 << 20  // bytes of one entry's template data
	maxName     = 255      // bytes of a template's name
	oldName     = 256      // bytes of a file's name in the hash of template "ima", with its NULs
)

// Digest is a SHA-256 digest.
type Digest = selectors.Digest

// Entry is one measurement.
type Entry struct {
	// Number is the entry's place in the log since boot. The boot aggregate has number 0.
	Number uint64
	// Violation: the kernel could not measure a file, because it was open for writing, or was
	// opened for writing while measured. Which file it was is not known, and all below is empty.
	Violation bool
	// Kind is "" or "ima" for the digest of a file's content, "verity" for that of its fs-verity tree.
	Kind string
	// Algorithm is that of FileDigest, as "sha256".
	Algorithm string
	// FileDigest is the digest of a file, or of a buffer such as the command line of kexec. The two look the same.
	FileDigest []byte
	// Name is the file's path, or the buffer's name: a claim.
	Name string
}

// SHA256 returns the SHA-256 of the file's content, if the kernel measured that.
func (e *Entry) SHA256() (Digest, bool) {
	if e.Violation || e.Algorithm != "sha256" || len(e.FileDigest) != sha256.Size || (e.Kind != "" && e.Kind != "ima") {
		return Digest{}, false
	}
	return Digest(e.FileDigest), true
}

// templates are the kernel's own, with their numbers of fields (Documentation/security/IMA-templates.rst).
var templates = map[string]int{
	"ima": 2, "ima-ng": 2, "ima-ngv2": 2, "ima-sig": 3, "ima-sigv2": 3, "ima-buf": 3, "ima-modsig": 5, "evm-sig": 9,
}

var errShort = errors.New("the log ends within it")

// readEntry reads one entry and returns what it extends PCR 10 with.
func readEntry(r *octets.Reader) (Entry, Digest, error) {
	var none Digest
	pcr, sum := r.U32(), r.Bytes(sha1.Size)
	template := string(r.Sized32(maxName))
	if r.Short {
		return Entry{}, none, errShort
	}
	fields, known := templates[template]
	switch {
	case pcr != 10:
		return Entry{}, none, fmt.Errorf("it is for PCR %d; only IMA policies without pcr= are understood", pcr)
	case !known:
		return Entry{}, none, fmt.Errorf("its template %.40q is not one of the kernel's own; boot with ima_template=ima-ng or ima-sig", template)
	}
	data := templateData(r, template)
	switch {
	case r.Short:
		return Entry{}, none, errShort
	case bytes.Equal(sum, make([]byte, sha1.Size)):
		return Entry{Violation: true}, violation, nil
	}
	if computed := sha1.Sum(data); !bytes.Equal(sum, computed[:]) {
		return Entry{}, none, errors.New("its SHA-1 is not that of its data")
	}
	e, err := parseData(template, fields, data)
	return e, sha256.Sum256(data), err
}

// violation is what a violation extends (IMA documentation: all ones).
var violation = Digest(bytes.Repeat([]byte{0xff}, sha256.Size))

// templateData reads the template data as the kernel hashes it. Names in template "ima" have 255
// bytes at most, and are hashed with NULs up to 256.
func templateData(r *octets.Reader, template string) []byte {
	if template != "ima" {
		return r.Sized32(MaxTemplate)
	}
	data := make([]byte, sha1.Size+oldName)
	copy(data, r.Bytes(sha1.Size))
	copy(data[sha1.Size:], r.Sized32(oldName-1))
	return data
}

func parseData(template string, fields int, data []byte) (Entry, error) {
	if template == "ima" {
		name := bytes.TrimRight(data[sha1.Size:], "\x00")
		if bytes.IndexByte(name, 0) >= 0 {
			return Entry{}, errors.New("its second field is not a name")
		}
		return Entry{Algorithm: "sha1", FileDigest: data[:sha1.Size], Name: string(name)}, nil
	}
	parts := octets.Little(data)
	digest, name := parts.Sized32(MaxTemplate), parts.Sized32(MaxTemplate)
	for range fields - 2 {
		parts.Sized32(MaxTemplate)
	}
	if !parts.Done() {
		return Entry{}, fmt.Errorf("its data does not have the %d fields of template %s", fields, template)
	}
	e := Entry{}
	algorithm, value, ok := bytes.Cut(digest, []byte(":\x00"))
	if kind, rest, typed := bytes.Cut(algorithm, []byte(":")); typed {
		e.Kind, algorithm = string(kind), rest
	}
	if e.Algorithm, e.FileDigest = string(algorithm), value; !ok || len(algorithm) == 0 || len(value) == 0 {
		return Entry{}, errors.New("its first field is not a digest")
	}
	name, ok = bytes.CutSuffix(name, []byte{0})
	if !ok || bytes.IndexByte(name, 0) >= 0 {
		return Entry{}, errors.New("its second field is not a name")
	}
	e.Name = string(name)
	return e, nil
}
