// SPDX-License-Identifier: Apache-2.0

package revocation

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
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

// String is for people.
func (s Scope) String() string {
	var out []string
	digest := ""
	if !s.SHA256.IsZero() {
		digest = s.SHA256.String()
	}
	for _, f := range [][2]string{{"authority", s.Authority}, {"serial", s.Serial}, {"spiffe_id", s.SPIFFEID}, {"node", s.Node}, {"entry", s.Entry}, {"sha256", digest}} {
		if f[1] != "" {
			out = append(out, f[0]+"="+f[1])
		}
	}
	return strings.Join(out, " ")
}

func (s Scope) fits(r *raw) bool {
	same := func(want string, part int) bool { return want == "" || want == string(r.parts[part]) }
	return same(s.Serial, serialPart) && same(s.Node, nodePart) && same(s.Entry, entryPart) && same(s.SPIFFEID, idPart) &&
		same(s.Authority, authorityPart) && (s.SHA256.IsZero() || string(s.SHA256[:]) == string(r.parts[digestPart]))
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

// The parts of a record, in their order.
const (
	authorityPart = iota
	serialPart
	idPart
	nodePart
	entryPart
	digestPart
	parts
)

// raw is a record as it lies in a buffer: most are only looked at.
type raw struct {
	end   uint64
	parts [parts][]byte
}

// read reads what follows a head.
func (r *raw) read(body []byte) (err error) {
	if len(body) == 0 || body[0] != recordForm {
		return errors.New("a record of a form that this version does not know")
	}
	if r.end, body, err = takeUvarint(body[1:]); err != nil {
		return err
	}
	for i := range r.parts {
		var n uint64
		if n, body, err = takeUvarint(body); err != nil || n > uint64(len(body)) {
			return errTorn
		}
		r.parts[i], body = body[:n], body[n:]
	}
	if n := len(r.parts[digestPart]); len(body) != 0 || n != 0 && n != len(selectors.Digest{}) || r.end > math.MaxInt64 {
		return errTorn
	}
	return nil
}

func (r *raw) record() Record {
	out := Record{
		Authority: string(r.parts[authorityPart]), Serial: string(r.parts[serialPart]), SPIFFEID: string(r.parts[idPart]),
		Node: string(r.parts[nodePart]), Entry: string(r.parts[entryPart]), NotAfter: time.Unix(int64(r.end), 0).UTC(),
	}
	copy(out.SHA256[:], r.parts[digestPart])
	return out
}

func takeUvarint(b []byte) (uint64, []byte, error) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, errTorn
	}
	return v, b[n:], nil
}
