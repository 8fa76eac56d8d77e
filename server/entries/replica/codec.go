// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// A stored entry is
//
//	1 │ created, revision │ path, parent's path │ selectors │ rest
//
// where texts and lists carry their length before them, integers are varints, the id is the
// key's unless the rest says otherwise, the trust domain is the server's, and the rest is absent
// if it says nothing. Before 2026-11-22 it was the entry as JSON, which starts with '{'.
const version = 1

const (
	flagAdmin = 1 << iota
	flagDownstream
	flagStoreSVID
	flagAttributes
	flagNoPrefetch
	flagJTI
	flagExpires
	flagOptions
)

const (
	optionPerProcess = 1 << iota
	optionPrefetch
	optionsEnd
)

// Encode returns what is stored under the key. The entry must be of the replica's trust domain.
func Encode(key Key, e *selectors.Entry) []byte {
	b := make([]byte, 0, 256)
	b = append(b, version)
	b = binary.AppendVarint(b, e.CreatedAt.Unix())
	b = binary.AppendUvarint(b, uint64(e.Revision))
	b = appendText(b, e.SPIFFEID.Path())
	b = appendText(b, e.ParentID.Path())
	b = binary.AppendUvarint(b, uint64(len(e.Selectors)))
	for _, s := range e.Selectors {
		b = appendText(appendText(b, s.Type), s.Value)
	}
	return appendRest(b, key, e)
}

// appendRest appends what few entries have, or nothing.
func appendRest(b []byte, key Key, e *selectors.Entry) []byte {
	id := e.ID
	if id == key.String() {
		id = ""
	}
	flags := restFlags(e)
	if flags == 0 && id == "" && e.X509SVIDTTL == 0 && e.JWTSVIDTTL == 0 && e.Hint == "" && len(e.FederatesWith)+len(e.DNSNames) == 0 {
		return b
	}
	b = append(b, flags)
	b = appendText(b, id)
	b = binary.AppendVarint(b, int64(e.X509SVIDTTL))
	b = binary.AppendVarint(b, int64(e.JWTSVIDTTL))
	if flags&flagExpires != 0 {
		b = binary.AppendVarint(b, e.ExpiresAt.Unix())
		b = binary.AppendUvarint(b, uint64(e.ExpiresAt.Nanosecond()))
	}
	b = appendText(b, e.Hint)
	b = appendTexts(appendTexts(b, e.FederatesWith), e.DNSNames)
	if o := e.Options; flags&flagOptions != 0 {
		b = append(b, optionPerProcess*bit(o.PerProcess)|optionPrefetch*bit(o.Prefetch), byte(o.KeyType))
		b = binary.AppendUvarint(b, uint64(o.Grace/time.Second))
	}
	return b
}

func bit(on bool) byte {
	if on {
		return 1
	}
	return 0
}

func restFlags(e *selectors.Entry) (flags byte) {
	set := func(on bool, flag byte) {
		if on {
			flags |= flag
		}
	}
	set(e.Admin, flagAdmin)
	set(e.Downstream, flagDownstream)
	set(e.StoreSVID, flagStoreSVID)
	set(!e.ExpiresAt.IsZero(), flagExpires)
	set(e.Options != selectors.EntryOptions{}, flagOptions)
	if a := e.Attributes; a != nil {
		set(true, flagAttributes)
		set(a.DisableX509SVIDPrefetch, flagNoPrefetch)
		set(a.JWTSVIDIncludeJTI, flagJTI)
	}
	return flags
}

func appendText(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func appendTexts(b []byte, ss []string) []byte {
	b = binary.AppendUvarint(b, uint64(len(ss)))
	for _, s := range ss {
		b = appendText(b, s)
	}
	return b
}

// Decode reads what is stored under the key.
func Decode(td spiffeid.TrustDomain, key Key, value []byte) (*selectors.Entry, error) {
	if len(value) > 0 && value[0] == '{' {
		return decodeJSON(td, value)
	}
	if len(value) == 0 || value[0] != version {
		return nil, errors.New("it is of a form that this version does not know")
	}
	d := decoder{b: value[1:]}
	e := &selectors.Entry{CreatedAt: time.Unix(d.varint(), 0).UTC(), Revision: int64(d.uvarint())}
	e.SPIFFEID = d.id(td)
	e.ParentID = d.id(td)
	if n := d.count(2); n > 0 {
		e.Selectors = make([]selectors.Selector, n)
		for i := range e.Selectors {
			e.Selectors[i] = selectors.Selector{Type: d.text(), Value: d.text()}
		}
	}
	d.rest(key, e)
	if len(d.b) > 0 {
		d.fail("bytes are left over")
	}
	if d.err != nil {
		return nil, d.err
	}
	return e, nil
}

func decodeJSON(td spiffeid.TrustDomain, value []byte) (*selectors.Entry, error) {
	e := new(selectors.Entry)
	if err := json.Unmarshal(value, e); err != nil {
		return nil, err
	}
	if !e.SPIFFEID.MemberOf(td) || !e.ParentID.MemberOf(td) || e.ID == "" {
		return nil, fmt.Errorf("it has no id, or is not of trust domain %q", td.Name())
	}
	e.CreatedAt = e.CreatedAt.UTC()
	return e, nil
}

// decoder takes values off bytes; after the first error it yields zeros.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail(why string) {
	if d.err == nil {
		d.err = errors.New(why)
	}
	d.b = nil
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail("an integer is cut short or too large")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail("an integer is cut short or too large")
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count of things that take at least size bytes each.
func (d *decoder) count(size uint64) int {
	n := d.uvarint()
	if n > uint64(len(d.b))/size {
		d.fail("a list or text is longer than what is stored")
		return 0
	}
	return int(n)
}

func (d *decoder) text() string {
	n := d.count(1)
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) texts() []string {
	n := d.count(1)
	if n == 0 {
		return nil
	}
	out := make([]string, n)
	for i := range out {
		out[i] = d.text()
	}
	return out
}

func (d *decoder) id(td spiffeid.TrustDomain) spiffeid.ID {
	path := d.text()
	if d.err != nil {
		return spiffeid.ID{}
	}
	id, err := spiffeid.FromPath(td, path)
	if err != nil {
		d.fail(fmt.Sprintf("path %q: %v", path, err))
	}
	return id
}

func (d *decoder) rest(key Key, e *selectors.Entry) {
	e.ID = key.String()
	if len(d.b) == 0 {
		return
	}
	flags := d.byte()
	if id := d.text(); id != "" {
		e.ID = id
	}
	e.Admin, e.Downstream, e.StoreSVID = flags&flagAdmin != 0, flags&flagDownstream != 0, flags&flagStoreSVID != 0
	if flags&flagAttributes != 0 {
		e.Attributes = &selectors.EntryAttributes{DisableX509SVIDPrefetch: flags&flagNoPrefetch != 0, JWTSVIDIncludeJTI: flags&flagJTI != 0}
	}
	e.X509SVIDTTL, e.JWTSVIDTTL = time.Duration(d.varint()), time.Duration(d.varint())
	if flags&flagExpires != 0 {
		seconds, nanos := d.varint(), d.uvarint()
		if nanos >= uint64(time.Second) {
			d.fail("a time has too many nanoseconds")
		}
		e.ExpiresAt = time.Unix(seconds, int64(nanos)).UTC()
	}
	e.Hint, e.FederatesWith, e.DNSNames = d.text(), d.texts(), d.texts()
	if flags&flagOptions != 0 {
		d.options(e)
	}
}

func (d *decoder) options(e *selectors.Entry) {
	options, kind, grace := d.byte(), selectors.KeyType(d.byte()), d.uvarint()
	e.Options = selectors.EntryOptions{PerProcess: options&optionPerProcess != 0, Prefetch: options&optionPrefetch != 0, KeyType: kind,
		Grace: time.Duration(min(grace, uint64(selectors.MaxGrace/time.Second)+1)) * time.Second}
	if err := e.Options.Validate(); options >= optionsEnd || err != nil || e.Options == (selectors.EntryOptions{}) {
		d.fail("it has options that this version does not know")
	}
}

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail("it is cut short")
		return 0
	}
	b := d.b[0]
	d.b = d.b[1:]
	return b
}
