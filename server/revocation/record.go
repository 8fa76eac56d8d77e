// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"github.com/assay-id/assay/selectors"
)

// Record is one X.509-SVID that a server signed.
type Record struct {
	// Authority that signed: its subject key id in hex. Serial in decimal.
	Authority string `json:"authority"`
	Serial    string `json:"serial"`
	SPIFFEID  string `json:"spiffe_id,omitempty"`
	// Node is the SPIFFE ID of the agent that it was signed for, Entry the id of the entry; both may be empty.
	Node  string `json:"node,omitempty"`
	Entry string `json:"entry,omitempty"`
	// SHA256 of the executable that it was signed for; zero if that is not known.
	SHA256   selectors.Digest `json:"sha256,omitzero"`
	NotAfter time.Time        `json:"not_after"`
}

// Scope says which SVIDs are meant: those that fit all fields that are not empty.
type Scope struct {
	Authority string           `json:"authority,omitempty"`
	Serial    string           `json:"serial,omitempty"`
	SPIFFEID  string           `json:"spiffe_id,omitempty"`
	Node      string           `json:"node,omitempty"`
	Entry     string           `json:"entry,omitempty"`
	SHA256    selectors.Digest `json:"sha256,omitzero"`
}

// specific: it is about something, and not just about all that an authority signed.
func (s Scope) specific() bool {
	s.Authority = ""
	return s != Scope{}
}

func (s Scope) fits(r *Record) bool {
	same := func(want, have string) bool { return want == "" || want == have }
	return same(s.Authority, r.Authority) && same(s.Serial, r.Serial) && same(s.SPIFFEID, r.SPIFFEID) &&
		same(s.Node, r.Node) && same(s.Entry, r.Entry) && (s.SHA256.IsZero() || s.SHA256 == r.SHA256)
}

// In the journal a record is its length and its CRC-32C, four bytes each, little-endian, and then:
//
//	1 | end, Unix seconds, uvarint | authority, serial, SPIFFE ID, node, entry, SHA-256: uvarint length and bytes each
const (
	recordForm = 1
	headBytes  = 8
	// maxRecord is far more than the parts of a record may take together.
	maxRecord = 16 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var errTorn = errors.New("a record is damaged or not whole")

func appendRecord(out []byte, r *Record) ([]byte, error) {
	start := len(out)
	out = append(out, make([]byte, headBytes)...)
	out = append(out, recordForm)
	out = binary.AppendUvarint(out, uint64(r.NotAfter.Unix()))
	var digest []byte
	if !r.SHA256.IsZero() {
		digest = r.SHA256[:]
	}
	for _, part := range []string{r.Authority, r.Serial, r.SPIFFEID, r.Node, r.Entry, string(digest)} {
		out = binary.AppendUvarint(out, uint64(len(part)))
		out = append(out, part...)
	}
	body := out[start+headBytes:]
	if len(body) > maxRecord {
		return out[:start], fmt.Errorf("the record of SVID %s has %d bytes, the most is %d", r.Serial, len(body), maxRecord)
	}
	binary.LittleEndian.PutUint32(out[start:], uint32(len(body)))
	binary.LittleEndian.PutUint32(out[start+4:], crc32.Checksum(body, castagnoli))
	return out, nil
}

// readRecord reads what follows a head.
func readRecord(body []byte) (r Record, err error) {
	if len(body) == 0 || body[0] != recordForm {
		return r, errors.New("a record of a form that this version does not know")
	}
	body = body[1:]
	end, body, err := takeUvarint(body)
	if err != nil {
		return r, err
	}
	r.NotAfter = time.Unix(int64(end), 0).UTC()
	var digest string
	for _, part := range []*string{&r.Authority, &r.Serial, &r.SPIFFEID, &r.Node, &r.Entry, &digest} {
		var n uint64
		if n, body, err = takeUvarint(body); err != nil || n > uint64(len(body)) {
			return r, errTorn
		}
		*part, body = string(body[:n]), body[n:]
	}
	if len(body) != 0 || len(digest) != 0 && len(digest) != len(r.SHA256) {
		return r, errTorn
	}
	copy(r.SHA256[:], digest)
	return r, nil
}

func takeUvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, errTorn
	}
	return v, b[n:], nil
}
