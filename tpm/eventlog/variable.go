// SPDX-License-Identifier: Apache-2.0

package eventlog

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"unicode/utf16"

	"github.com/assay-id/assay/tpm/octets"
)

// guid is an EFI_GUID as it lies in memory.
type guid [16]byte

// Whose variables they are. The EFI global variables hold the platform's state and keys, the
// image security database db and dbx; shim's lock has shim's own.
var (
	guidGlobal   = guid{0x61, 0xdf, 0xe4, 0x8b, 0xca, 0x93, 0xd2, 0x11, 0xaa, 0x0d, 0x00, 0xe0, 0x98, 0x03, 0x2b, 0x8c}
	guidSecurity = guid{0xcb, 0xb2, 0x19, 0xd7, 0x3a, 0x3d, 0x96, 0x45, 0xa3, 0xbc, 0xda, 0xd0, 0x0e, 0x67, 0x65, 0x6f}
	guidShim     = guid{0x50, 0xab, 0x5d, 0x60, 0x46, 0xe0, 0x00, 0x43, 0xab, 0xb6, 0x3d, 0xd8, 0x10, 0xdd, 0x8b, 0x23}
)

func (g guid) String() string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%s-%s", le.Uint32(g[:]), le.Uint16(g[4:]), le.Uint16(g[6:]), hex.EncodeToString(g[8:10]), hex.EncodeToString(g[10:]))
}

// Variable is the value of an EFI variable at boot.
type Variable struct {
	// SHA256 is the digest of Data; zero if the variable is unknown. A variable that is known
	// to be empty or missing has the digest of no bytes.
	SHA256 Digest
	// Data is the value.
	Data []byte
}

// Known reports whether the log told the variable's value.
func (v Variable) Known() bool { return !v.SHA256.IsZero() }

func newVariable(data []byte) Variable { return Variable{sha256.Sum256(data), data} }

// namedVariable is a UEFI_VARIABLE_DATA (PFP 10.4.3): GUID, length of the name in UTF-16 units,
// length of the data, name, data.
type namedVariable struct {
	owner guid
	name  string
	data  []byte
}

func parseVariable(data []byte) (namedVariable, bool) {
	r := octets.Little(data)
	owner, units, size := r.Bytes(16), r.U64(), r.U64()
	if r.Short || units > uint64(len(r.Rest))/2 {
		return namedVariable{}, false
	}
	name := make([]uint16, units)
	for i := range name {
		name[i] = r.U16()
	}
	value := r.Bytes(size)
	if !r.Done() {
		return namedVariable{}, false
	}
	return namedVariable{guid(owner), string(utf16.Decode(name)), value}, true
}

func (v *namedVariable) is(owner guid, name string) bool { return v.owner == owner && v.name == name }

// Signature is one entry of a signature database: a certificate or the digest of an image.
type Signature struct {
	// Type is the GUID of the kind, such as a5c059a1-94e4-4aa7-87b5-ab155c2bf072 for an X.509
	// certificate or c1c41626-504c-4092-aca9-41f936934328 for a SHA-256 (UEFI 2.10, 32.4.1).
	Type string
	// Data is the certificate or the digest.
	Data []byte
}

// Signatures reads PK, KEK, db or dbx as EFI_SIGNATURE_LISTs (UEFI 2.10, 32.4.1): type, sizes of
// list, header and one signature, header, then signatures of an owner's GUID and data each.
func (v Variable) Signatures() ([]Signature, error) {
	var all []Signature
	for r := octets.Little(v.Data); len(r.Rest) > 0; {
		kind, listSize, headerSize, size := r.Bytes(16), r.U32(), r.U32(), r.U32()
		if r.Short || listSize < 28 {
			return nil, errors.New("signature database: a list is cut short")
		}
		list := octets.Little(r.Bytes(uint64(listSize) - 28))
		list.Bytes(uint64(headerSize))
		if r.Short || list.Short || size < 16 || len(list.Rest)%int(size) != 0 {
			return nil, errors.New("signature database: a list's sizes contradict each other")
		}
		for len(list.Rest) > 0 {
			all = append(all, Signature{guid(kind).String(), list.Bytes(uint64(size))[16:]})
		}
	}
	return all, nil
}

// Covers reports whether every signature of least is in v too: a dbx that covers the one of
// last year revokes all that was revoked then. Who owns a signature makes no difference. It
// reports false if v is not known or one of the two is malformed.
func (v Variable) Covers(least Variable) bool {
	have, err1 := v.Signatures()
	want, err2 := least.Signatures()
	if !v.Known() || err1 != nil || err2 != nil {
		return false
	}
	type key struct{ kind, data string }
	set := make(map[key]bool, len(have))
	for _, s := range have {
		set[key{s.Type, string(s.Data)}] = true
	}
	for _, s := range want {
		if !set[key{s.Type, string(s.Data)}] {
			return false
		}
	}
	return true
}

// Authority is what vouched for an image that was run: an entry of a signature database.
type Authority struct {
	// Variable is the database: "db" for the firmware's, "MokListRT", "Shim" or others for shim's.
	Variable string
	// SHA256 is the digest of the certificate in DER form, or of the entry if it is no certificate.
	SHA256 Digest
	// Certificate is the certificate in DER form, or the entry.
	Certificate []byte
}

// newAuthority takes the certificate out of a measured EFI_SIGNATURE_DATA: 16 bytes of owner,
// then the certificate. Shim measures its built-in one without an owner.
func newAuthority(v namedVariable) (Authority, bool) {
	cert := v.data
	if !isDER(cert) {
		if len(cert) < 16 {
			return Authority{}, false
		}
		cert = cert[16:]
	}
	return Authority{v.name, sha256.Sum256(cert), cert}, true
}

// isDER reports whether b is one DER SEQUENCE of 256 to 65,535 bytes, as a certificate is.
func isDER(b []byte) bool {
	return len(b) > 4 && bytes.HasPrefix(b, []byte{0x30, 0x82}) && int(binary.BigEndian.Uint16(b[2:])) == len(b)-4
}
