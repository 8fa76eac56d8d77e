// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/assay-id/assay/cmd/assay/cli"
	"github.com/assay-id/assay/cmd/config"
	entrypb "github.com/assay-id/assay/proto/entry"
)

// entryFile is our own form of a file of entries, in HCL.
type entryFile struct {
	Set     string       `hcl:"set,optional"`
	Entries []entryBlock `hcl:"entry,block"`
}

type entryBlock struct {
	SPIFFEID   string   `hcl:"spiffe_id,label"`
	ID         string   `hcl:"id,optional"`
	Parent     string   `hcl:"parent"`
	Selectors  []string `hcl:"selectors,optional"`
	Binaries   []string `hcl:"binaries,optional"`
	StartedBy  []string `hcl:"started_by,optional"`
	X509TTL    string   `hcl:"x509_ttl,optional"`
	JWTTTL     string   `hcl:"jwt_ttl,optional"`
	DNS        []string `hcl:"dns,optional"`
	Federates  []string `hcl:"federates_with,optional"`
	Hint       string   `hcl:"hint,optional"`
	ExpiresAt  string   `hcl:"expires_at,optional"`
	Admin      bool     `hcl:"admin,optional"`
	Downstream bool     `hcl:"downstream,optional"`
	StoreSVID  bool     `hcl:"store_svid,optional"`
	NoPrefetch bool     `hcl:"disable_x509_svid_prefetch,optional"`
	IncludeJTI bool     `hcl:"jwt_svid_include_jti,optional"`
	PerProcess bool     `hcl:"per_process,optional"`
	Prefetch   bool     `hcl:"prefetch,optional"`
	KeyType    string   `hcl:"key_type,optional"`
	Grace      string   `hcl:"grace,optional"`
}

func (b *entryBlock) entry() (*types.Entry, error) {
	e := &types.Entry{Id: b.ID, DnsNames: b.DNS, FederatesWith: b.Federates, Hint: b.Hint, Admin: b.Admin, Downstream: b.Downstream, StoreSvid: b.StoreSVID}
	var err error
	if e.SpiffeId, err = cli.ParseID(b.SPIFFEID); err != nil {
		return nil, err
	}
	if e.ParentId, err = cli.ParseID(b.Parent); err != nil {
		return nil, err
	}
	for _, t := range []struct {
		name, text string
		to         *int32
	}{{"x509_ttl", b.X509TTL, &e.X509SvidTtl}, {"jwt_ttl", b.JWTTTL, &e.JwtSvidTtl}} {
		if t.text == "" {
			continue
		}
		ttl, err := time.ParseDuration(t.text)
		if err != nil {
			return nil, fmt.Errorf("entry %s: %s %q: write it as 30m or 1h", b.SPIFFEID, t.name, t.text)
		}
		*t.to = int32(ttl / time.Second)
	}
	if b.ExpiresAt != "" {
		at, err := time.Parse(time.RFC3339, b.ExpiresAt)
		if err != nil {
			return nil, fmt.Errorf("entry %s: expires_at %q: write it as 2027-01-31T12:00:00Z", b.SPIFFEID, b.ExpiresAt)
		}
		e.ExpiresAt = at.Unix()
	}
	if b.NoPrefetch || b.IncludeJTI {
		e.AdditionalAttributes = &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: b.NoPrefetch, JwtSvidIncludeJti: b.IncludeJTI}
	}
	if e.Selectors, err = selectorList(b.Selectors, b.Binaries, b.StartedBy); err != nil {
		return nil, err
	}
	o := &entrypb.Options{PerProcess: b.PerProcess, Prefetch: b.Prefetch}
	if o.KeyType, err = parseKeyType(b.KeyType); err == nil {
		o.Grace, err = parseGrace(b.Grace)
	}
	if err != nil {
		return nil, fmt.Errorf("entry %s: %w", b.SPIFFEID, err)
	}
	return e, entrypb.Set(e, o)
}

// readFile reads entries from a file, or standard input for "-"; set is the name that the file gives them, if it does.
func readFile(c *cobra.Command, path string) (set string, es []*types.Entry, err error) {
	var data []byte
	if path == "-" {
		path = "standard input"
		data, err = io.ReadAll(c.InOrStdin())
	} else {
		data, err = os.ReadFile(path)
	}
	if err != nil {
		return "", nil, fmt.Errorf("read the entries: %w", err)
	}
	if text := bytes.TrimSpace(data); len(text) > 0 && (text[0] == '{' || text[0] == '[') {
		if es, err = parseJSON(text); err != nil {
			return "", nil, fmt.Errorf("%s: %w", path, err)
		}
		return "", es, nil
	}
	var file entryFile
	if err := config.Parse(path, data, &file); err != nil {
		return "", nil, err
	}
	for _, b := range file.Entries {
		e, err := b.entry()
		if err != nil {
			return "", nil, fmt.Errorf("%s: %w", path, err)
		}
		es = append(es, e)
	}
	return file.Set, es, nil
}

// parseJSON reads entries as `assay entry show -o json` prints them, as SPIRE's `entry show -output json` does, and as
// SPIRE's `entry create -data` takes them. A field that is not known is an error: leaving it out could widen an entry.
func parseJSON(text []byte) ([]*types.Entry, error) {
	var items []json.RawMessage
	if text[0] == '[' {
		if err := json.Unmarshal(text, &items); err != nil {
			return nil, err
		}
	} else {
		var list struct {
			Entries []json.RawMessage `json:"entries"`
		}
		if err := json.Unmarshal(text, &list); err != nil {
			return nil, err
		}
		if list.Entries == nil {
			return nil, fmt.Errorf("it has no list of entries")
		}
		items = list.Entries
	}
	out := make([]*types.Entry, 0, len(items))
	for i, item := range items {
		e, err := parseItem(item)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", i+1, err)
		}
		out = append(out, e)
	}
	return out, nil
}

func parseItem(item json.RawMessage) (*types.Entry, error) {
	var kind struct {
		SPIFFEID json.RawMessage `json:"spiffe_id"`
	}
	if err := json.Unmarshal(item, &kind); err != nil {
		return nil, err
	}
	if len(kind.SPIFFEID) > 0 && kind.SPIFFEID[0] == '"' {
		return parseFlat(item)
	}
	e := &types.Entry{}
	item, o, err := takeOptions(item)
	if err != nil {
		return nil, err
	}
	if err := protojson.Unmarshal(item, e); err != nil {
		return nil, err
	}
	if err := entrypb.Set(e, o); err != nil {
		return nil, err
	}
	if e.SpiffeId == nil || e.ParentId == nil {
		return nil, fmt.Errorf("it has no spiffe_id or no parent_id")
	}
	e.RevisionNumber, e.CreatedAt = 0, 0
	return e, nil
}

// flatEntry is an entry of SPIRE's -data files.
type flatEntry struct {
	EntryID       string   `json:"entry_id"`
	SPIFFEID      string   `json:"spiffe_id"`
	ParentID      string   `json:"parent_id"`
	FederatesWith []string `json:"federates_with"`
	DNSNames      []string `json:"dns_names"`
	Hint          string   `json:"hint"`
	X509SVIDTTL   int32    `json:"x509_svid_ttl"`
	JWTSVIDTTL    int32    `json:"jwt_svid_ttl"`
	EntryExpiry   int64    `json:"entryExpiry"`
	Admin         bool     `json:"admin"`
	Downstream    bool     `json:"downstream"`
	StoreSVID     bool     `json:"store_svid"`
	Selectors     []struct {
		Type  string `json:"type"`
		Value string `json:"value"`
	} `json:"selectors"`
	Attributes *struct {
		NoPrefetch bool `json:"disable_x509_svid_prefetch"`
		IncludeJTI bool `json:"jwt_svid_include_jti"`
	} `json:"additional_attributes"`
	RevisionNumber int64 `json:"revision_number"`
	CreatedAt      int64 `json:"created_at"`
}

func parseFlat(item json.RawMessage) (*types.Entry, error) {
	var f flatEntry
	dec := json.NewDecoder(bytes.NewReader(item))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f); err != nil {
		return nil, err
	}
	e := &types.Entry{Id: f.EntryID, DnsNames: f.DNSNames, Hint: f.Hint, X509SvidTtl: f.X509SVIDTTL, JwtSvidTtl: f.JWTSVIDTTL, ExpiresAt: f.EntryExpiry,
		Admin: f.Admin, Downstream: f.Downstream, StoreSvid: f.StoreSVID, FederatesWith: f.FederatesWith}
	var err error
	if e.SpiffeId, err = cli.ParseID(f.SPIFFEID); err != nil {
		return nil, err
	}
	if e.ParentId, err = cli.ParseID(f.ParentID); err != nil {
		return nil, err
	}
	for _, s := range f.Selectors {
		e.Selectors = append(e.Selectors, &types.Selector{Type: s.Type, Value: s.Value})
	}
	if a := f.Attributes; a != nil {
		e.AdditionalAttributes = &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: a.NoPrefetch, JwtSvidIncludeJti: a.IncludeJTI}
	}
	return e, nil
}

// writeHCL writes what readFile reads.
func writeHCL(w io.Writer, set string, es []*types.Entry) {
	if set != "" {
		fmt.Fprintf(w, "set = %s\n\n", quote(set))
	}
	for i, e := range es {
		if i > 0 {
			fmt.Fprintln(w)
		}
		fmt.Fprintf(w, "entry %s {\n", quote(cli.IDText(e.SpiffeId)))
		text := func(name, value string) {
			if value != "" {
				fmt.Fprintf(w, "  %s = %s\n", name, quote(value))
			}
		}
		list := func(name string, values []string) {
			if len(values) > 0 {
				fmt.Fprintf(w, "  %s = [%s]\n", name, strings.Join(values, ", "))
			}
		}
		ttl := func(name string, seconds int32) {
			if seconds != 0 {
				text(name, (time.Duration(seconds) * time.Second).String())
			}
		}
		flag := func(name string, on bool) {
			if on {
				fmt.Fprintf(w, "  %s = true\n", name)
			}
		}
		text("id", e.Id)
		text("parent", cli.IDText(e.ParentId))
		list("selectors", quoteAll(selectorTexts(e)))
		ttl("x509_ttl", e.X509SvidTtl)
		ttl("jwt_ttl", e.JwtSvidTtl)
		list("dns", quoteAll(e.DnsNames))
		list("federates_with", quoteAll(e.FederatesWith))
		text("hint", e.Hint)
		if e.ExpiresAt != 0 {
			text("expires_at", cli.TimeText(e.ExpiresAt))
		}
		flag("admin", e.Admin)
		flag("downstream", e.Downstream)
		flag("store_svid", e.StoreSvid)
		flag("disable_x509_svid_prefetch", e.AdditionalAttributes.GetDisableX509SvidPrefetch())
		flag("jwt_svid_include_jti", e.AdditionalAttributes.GetJwtSvidIncludeJti())
		o := optionsOf(e)
		flag("per_process", o.GetPerProcess())
		flag("prefetch", o.GetPrefetch())
		text("key_type", keyTypeText(o.GetKeyType()))
		ttl("grace", int32(o.GetGrace()))
		fmt.Fprintln(w, "}")
	}
}

// quote writes an HCL string (HCL native syntax, "Template Expressions").
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i, r := range s {
		switch {
		case r == '"', r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case (r == '$' || r == '%') && strings.HasPrefix(s[i+1:], "{"):
			b.WriteRune(r)
			b.WriteRune(r)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

func quoteAll(texts []string) []string {
	out := make([]string, len(texts))
	for i, t := range texts {
		out[i] = quote(t)
	}
	return out
}
