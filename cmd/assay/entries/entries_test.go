// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/cmd/assay/cli"
	entrypb "github.com/assay-id/assay/proto/entry"
)

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func spiffeID(t *testing.T, text string) *types.SPIFFEID {
	t.Helper()
	id, err := cli.ParseID(text)
	must(t, err)
	return id
}

func entry(t *testing.T, path string, sels ...string) *types.Entry {
	t.Helper()
	list, err := selectorList(sels, nil, nil)
	must(t, err)
	return &types.Entry{SpiffeId: spiffeID(t, "spiffe://example.org"+path), ParentId: spiffeID(t, "spiffe://example.org/node"), Selectors: list}
}

// full has a value in every field that a file can say.
func full(t *testing.T) *types.Entry {
	e := entry(t, "/full", "unix:uid:1", `unix:user:a${b}%{c}"\`, "unix:user:\x01é\U0001f600$$")
	e.Id, e.X509SvidTtl, e.JwtSvidTtl, e.ExpiresAt, e.Hint = "an-id", 90, 60, 1900000000, "line\nbreak"
	e.DnsNames, e.FederatesWith = []string{"b.example", "a.example"}, []string{"other.test"}
	e.Admin, e.Downstream, e.StoreSvid = true, true, true
	e.AdditionalAttributes = &types.Entry_AdditionalAttributes{DisableX509SvidPrefetch: true, JwtSvidIncludeJti: true}
	must(t, entrypb.Set(e, &entrypb.Options{PerProcess: true, Prefetch: true, KeyType: entrypb.KeyType_KEY_TYPE_RSA_2048, Grace: 90}))
	return e
}

// TestFullHasEveryField: a field that a newer API adds does not get lost between export and apply unseen.
func TestFullHasEveryField(t *testing.T) {
	m := full(t).ProtoReflect()
	for i := range m.Descriptor().Fields().Len() {
		f := m.Descriptor().Fields().Get(i)
		if name := f.Name(); !m.Has(f) && name != "revision_number" && name != "created_at" {
			t.Errorf("the field %s is in no file", name)
		}
	}
}

func read(t *testing.T, text string) (set string, es []*types.Entry, err error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return readFile(&cobra.Command{}, path)
}

func TestFormsOfFiles(t *testing.T) {
	want := full(t)
	var hcl bytes.Buffer
	writeHCL(&hcl, "pay", []*types.Entry{want, entry(t, "/second", "unix:uid:2")})
	shown, err := withOptions([]*types.Entry{want})
	must(t, err)
	api := shown[0]
	const flat = `{"entry_id":"an-id","spiffe_id":"spiffe://example.org/full","parent_id":"spiffe://example.org/node",
		"selectors":[{"type":"unix","value":"uid:1"},{"type":"unix","value":"user:a${b}%{c}\"\\"},{"type":"unix","value":"user:\u0001é😀$$"}],
		"x509_svid_ttl":90,"jwt_svid_ttl":60,"entryExpiry":1900000000,"hint":"line\nbreak","dns_names":["b.example","a.example"],"federates_with":["spiffe://other.test"],
		"admin":true,"downstream":true,"store_svid":true,"additional_attributes":{"disable_x509_svid_prefetch":true,"jwt_svid_include_jti":true}}`
	for name, text := range map[string]string{
		"HCL": hcl.String(), "JSON of show": " [" + string(api) + "]", "JSON of SPIRE's show": `{"entries":[` + string(api) + `],"next_page_token":""}`, "SPIRE's -data": `{"entries":[` + flat + `]}`,
	} {
		set, es, err := read(t, text)
		if err != nil {
			t.Errorf("%s: %v\n%s", name, err, text)
			continue
		}
		if (optionsOf(es[0]) == nil) != (name == "SPIRE's -data") {
			t.Errorf("%s: the options are %v", name, optionsOf(es[0]))
		}
		if d := compare(want, es[0]); len(d) > 0 || es[0].Id != "an-id" || (set == "pay") != (name == "HCL") {
			t.Errorf("%s: differs in %v, id %s, set %s", name, d, es[0].Id, set)
		}
	}
	if d := compare(want, entry(t, "/full")); slices.ContainsFunc(d, func(d difference) bool { return d.Field == "grace" }) {
		t.Error("who says nothing of options takes them away")
	}
	for text, wants := range map[string]string{
		`{"entries":[{"spiffe_id":"spiffe://a/b","parent_id":"spiffe://a/c","selektors":[]}]}`:                  "selektors",
		`[{"spiffe_id":{"trust_domain":"a","path":"/b"},"parent_id":{"trust_domain":"a"},"new":1}]`:             "new",
		`[{"spiffe_id":{"trust_domain":"a","path":"/b"}}]`:                                                      "no parent_id",
		`[{"spiffe_id":{"trust_domain":"a","path":"/b"},"parent_id":{"trust_domain":"a"},"options":{"new":1}}]`: "new",
		`{"entires":[]}`: "no list of entries",
		"entry \"spiffe://a/b\" {\n parent = \"spiffe://a/c\"\n key_type = \"ed25519\"\n}": "write ec-p256",
		"entry \"spiffe://a/b\" {\n parent = \"spiffe://a/c\"\n grace = \"1h1ms\"\n}":      "whole seconds",
		`entry "spiffe://a/b" { parnt = "spiffe://a/c" }`:                                  `did you mean "parent"?`,
		`entry "a/b" { parent = "spiffe://a/c" }`:                                          "is not a SPIFFE ID",
		"entry \"spiffe://a/b\" {\n parent = \"spiffe://a/c\"\n x509_ttl = \"1\"\n}":       "write it as 30m or 1h",
	} {
		if _, _, err := read(t, text); err == nil || !strings.Contains(err.Error(), wants) {
			t.Errorf("%s: %v, want %s", text, err, wants)
		}
	}
}

func actions(changes []change) (out []string) {
	for _, c := range changes {
		out = append(out, c.Action+" "+strings.TrimPrefix(c.SPIFFEID, "spiffe://example.org"))
	}
	return out
}

func check(t *testing.T, changes []change, err error, want ...string) {
	t.Helper()
	must(t, err)
	if got := actions(changes); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// apply makes of have what the plan says.
func apply(have []*types.Entry, changes []change) []*types.Entry {
	for _, c := range changes {
		have = slices.DeleteFunc(have, func(e *types.Entry) bool { return e.Id == c.EntryID && (c.Action == remove || c.Action == update) })
		if c.Action == create || c.Action == update {
			have = append(have, proto.CloneOf(c.want))
		}
	}
	return have
}

// TestPruneTakesOnlyItsOwn: what others made stays, also where apply changed it, and so does another set's.
func TestPruneTakesOnlyItsOwn(t *testing.T) {
	theirs, adopted := entry(t, "/theirs", "unix:uid:1"), entry(t, "/adopted", "unix:uid:2")
	theirs.Id, adopted.Id = "1", "apply-not-ours"
	have := []*types.Entry{theirs, adopted}
	first := func() []*types.Entry {
		a := entry(t, "/adopted", "unix:uid:2")
		a.Hint = "changed"
		return []*types.Entry{entry(t, "/mine", "unix:uid:3"), entry(t, "/gone", "unix:uid:4"), a}
	}
	changes, err := planApply("a", first(), have, true)
	check(t, changes, err, "create /mine", "create /gone", "update /adopted")
	have = apply(have, changes)
	changes, err = planApply("a", first(), have, true)
	check(t, changes, err, "unchanged /mine", "unchanged /gone", "unchanged /adopted")
	changes, err = planApply("b", []*types.Entry{entry(t, "/other-set", "unix:uid:5")}, have, true)
	check(t, changes, err, "create /other-set")
	have = apply(have, changes)

	second := func() []*types.Entry { return []*types.Entry{entry(t, "/mine", "unix:uid:3")} }
	changes, err = planApply("a", second(), have, false)
	check(t, changes, err, "unchanged /mine", "stale /gone")
	changes, err = planApply("a", second(), have, true)
	check(t, changes, err, "unchanged /mine", "delete /gone")
	have = apply(have, changes)
	if len(have) != 4 {
		t.Errorf("%d entries are left", len(have))
	}
	changes, err = planApply("a", nil, have, true)
	check(t, changes, err, "delete /mine")
}

// TestDriftIsRepaired: an entry of ours that somebody changed, selectors too, becomes again what the file says.
func TestDriftIsRepaired(t *testing.T) {
	changes, err := planApply("a", []*types.Entry{entry(t, "/w", "unix:uid:1")}, nil, false)
	have := apply(nil, changes)
	must(t, err)
	have[0].Selectors[0].Value = "uid:0"
	changes, err = planApply("a", []*types.Entry{entry(t, "/w", "unix:uid:1")}, have, true)
	check(t, changes, err, "update /w")
	if f := changes[0].Fields; len(f) != 1 || f[0] != (difference{"selectors", "unix:uid:0", "unix:uid:1"}) {
		t.Errorf("%+v", f)
	}
	if _, err := planApply("a", []*types.Entry{entry(t, "/w", "unix:uid:1", "unix:gid:1"), entry(t, "/w", "unix:gid:1", "unix:uid:1")}, nil, false); err == nil {
		t.Error("an entry is there twice")
	}
}

func TestImportLeavesWhatIsHere(t *testing.T) {
	here, there, same := entry(t, "/w", "unix:uid:1"), entry(t, "/w", "unix:uid:1"), entry(t, "/same", "unix:uid:1")
	here.Id, there.Id, there.Hint, same.Id = "here", "there", "h", "same"
	changes, err := planImport([]*types.Entry{there, entry(t, "/new", "unix:uid:1"), same}, []*types.Entry{here, same}, false)
	check(t, changes, err, "differs /w", "create /new", "unchanged /same")
	changes, err = planImport([]*types.Entry{there}, []*types.Entry{here, same}, true)
	check(t, changes, err, "update /w")
	if changes[0].want.Id != "here" {
		t.Error("the id of an entry changes")
	}
}

func FuzzFiles(f *testing.F) {
	f.Add([]byte(`[{"id":"x","spiffe_id":{"trust_domain":"a","path":"/b"},"parent_id":{"trust_domain":"a","path":"/c"},"selectors":[{"type":"unix","value":"uid:1"}]}]`))
	f.Add([]byte(`{"entries":[{"spiffe_id":"spiffe://a/b","parent_id":"spiffe://a/c","selectors":[{"type":"unix","value":"user:${x}"}],"hint":"\u0000"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		data = bytes.TrimSpace(data)
		if len(data) == 0 || data[0] != '{' && data[0] != '[' {
			return
		}
		es, err := parseJSON(data)
		if err != nil {
			return
		}
		for _, e := range es {
			if compare(e, e) != nil || e.SpiffeId == nil || e.ParentId == nil {
				t.Fatalf("%v", e)
			}
			if s := quote(e.Hint); strings.ContainsAny(s, "\n\r\x00") {
				t.Fatalf("%q becomes %s", e.Hint, s)
			}
		}
	})
}
