// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	adminpb "github.com/assay-id/assay/proto/nodeadmin"
)

var hash = strings.Repeat("aB", 32)

func TestParseInventory(t *testing.T) {
	for text, want := range map[string]*adminpb.Device{
		hash: {}, hash + "\n": {}, "# comment\n" + hash + "\n\n": {},
		hash + ",rack 7, db ,\"a, b\"":                        {Label: "rack 7", Group: "db ", Note: "a, b"},
		"ek_hash\n" + hash:                                    {},
		"group,ek_hash,label\ndb," + hash + ",rack 7":         {Label: "rack 7", Group: "db"},
		"\ufeffek_hash,note\r\n" + hash + ",n\r\n":            {Note: "n"},
		`[{"ek_hash":"` + hash + `","group":"db"}]`:           {Group: "db"},
		`[{"ek_hash":"` + hash + `","added_at":"7","by":""}]`: {},
	} {
		parse := parseCSV
		if strings.HasPrefix(text, "[") {
			parse = parseJSON
		}
		got, err := parse([]byte(text))
		want.EkHash = strings.ToLower(hash)
		if err != nil || len(got) != 1 || !proto.Equal(got[0], want) {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{
		"x": "line 1: \"x\" is not an EK hash", hash + "\n" + hash[2:]: "line 2", hash + ",a,b,c,d": "5 fields",
		"ek_hash,colour\n": `"colour" is unknown`, "ek_hash,ek_hash\n": "twice", "ek_hash,label\n" + hash + "\n" + `"`: "line",
		"label,ek_hash\nrack 7": "not an EK hash",
	} {
		if got, err := parseCSV([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("CSV %q: %v, %v; want %q", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"": "list of objects", "{}": "list of objects", `[{"hash":"x"}]`: "hash", `[{"ek_hash":"x"}]`: "element 1", "[] []": "more after",
	} {
		if got, err := parseJSON([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("JSON %q: %v, %v; want %q", text, got, err, want)
		}
	}
}

func TestReadHashFolder(t *testing.T) {
	dir := t.TempDir()
	write := func(name string) {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(hash)
	write(".gitkeep")
	got, err := readInventory(dir)
	if err != nil || len(got) != 1 || got[0].EkHash != strings.ToLower(hash) {
		t.Errorf("%v, %v", got, err)
	}
	write("README")
	if _, err := readInventory(dir); err == nil || !strings.Contains(err.Error(), "README is not named by an EK hash") {
		t.Error(err)
	}
}

// FuzzCSV: what is read is written so that it is read again.
func FuzzCSV(f *testing.F) {
	f.Add([]byte(hash + ",rack 7,db,\"a\"\"b\"\n"))
	f.Add([]byte("note,ek_hash\n# c\n\"x\ny\"," + hash))
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip(t, parseCSV, data) })
}

// FuzzJSON: likewise.
func FuzzJSON(f *testing.F) {
	f.Add([]byte(`[{"ek_hash":"` + hash + `","label":"rack 7","group":"db","note":"\"\n"}]`))
	f.Fuzz(func(t *testing.T, data []byte) { roundTrip(t, parseJSON, data) })
}

func roundTrip(t *testing.T, parse func([]byte) ([]*adminpb.Device, error), data []byte) {
	devices, err := parse(data)
	if err != nil {
		return
	}
	var out bytes.Buffer
	if err := writeCSV(&out, devices); err != nil {
		t.Fatal(err)
	}
	again, err := parseCSV(out.Bytes())
	if err != nil || len(again) != len(devices) {
		t.Fatalf("%d devices became %d, %v:\n%s", len(devices), len(again), err, out.Bytes())
	}
	for i, d := range devices {
		if len(d.EkHash) != 64 || again[i].EkHash != d.EkHash {
			t.Fatalf("%v became %v", d, again[i])
		}
	}
}
