// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"bytes"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	adminpb "github.com/assay-id/assay/proto/nodeadmin"
)

// csvColumns are the columns of an inventory as CSV. The first is required; a heading may name
// them in another order, and leave some out.
var csvColumns = []string{"ek_hash", "label", "group", "note"}

// readInventory reads a CSV file, a JSON file, or a folder of spire-tpm-plugin's (hash_path),
// where each file's name is a hash.
func readInventory(path string) ([]*adminpb.Device, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return readHashFolder(path)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	parse := parseCSV
	if strings.EqualFold(filepath.Ext(path), ".json") {
		parse = parseJSON
	}
	devices, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return devices, nil
}

func readHashFolder(path string) ([]*adminpb.Device, error) {
	files, err := os.ReadDir(path)
	if err != nil {
		return nil, err
	}
	var devices []*adminpb.Device
	for _, f := range files {
		if strings.HasPrefix(f.Name(), ".") {
			continue
		}
		d, err := newDevice(f.Name(), "", "", "")
		if err != nil || f.IsDir() {
			return nil, fmt.Errorf("%s is not named by an EK hash of 64 hexadecimal digits; move it out of the folder", filepath.Join(path, f.Name()))
		}
		devices = append(devices, d)
	}
	return devices, nil
}

func newDevice(hash, label, group, note string) (*adminpb.Device, error) {
	hash = strings.ToLower(strings.TrimSpace(hash))
	if b, err := hex.DecodeString(hash); err != nil || len(b) != 32 {
		return nil, fmt.Errorf("%q is not an EK hash of 64 hexadecimal digits; `assay tpm ek` prints it on the machine", hash)
	}
	return &adminpb.Device{EkHash: hash, Label: label, Group: group, Note: note}, nil
}

// parseCSV reads lines of hash, label, group and note (RFC 4180), of which the last three may be
// missing; a first line without a hash names the columns.
func parseCSV(data []byte) ([]*adminpb.Device, error) {
	r := csv.NewReader(bytes.NewReader(bytes.TrimPrefix(data, []byte("\ufeff"))))
	r.FieldsPerRecord, r.TrimLeadingSpace, r.Comment = -1, true, '#'
	place := []int{0, 1, 2, 3} // of csvColumns in a line
	var devices []*adminpb.Device
	for first := true; ; first = false {
		fields, err := r.Read()
		if errors.Is(err, io.EOF) {
			return devices, nil
		}
		if err != nil {
			return nil, err
		}
		line, _ := r.FieldPos(0)
		if first && slices.Contains(fields, csvColumns[0]) {
			if place, err = heading(fields); err != nil {
				return nil, err
			}
			continue
		}
		if len(fields) > len(csvColumns) {
			return nil, fmt.Errorf("line %d has %d fields; the fields are %s", line, len(fields), strings.Join(csvColumns, ","))
		}
		at := func(column int) string {
			if i := place[column]; i >= 0 && i < len(fields) {
				return fields[i]
			}
			return ""
		}
		d, err := newDevice(at(0), at(1), at(2), at(3))
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", line, err)
		}
		devices = append(devices, d)
	}
}

// heading returns where each of csvColumns is, or -1.
func heading(fields []string) ([]int, error) {
	place := make([]int, len(csvColumns))
	for i, name := range csvColumns {
		place[i] = slices.Index(fields, name)
	}
	for i, name := range fields {
		if at := slices.Index(csvColumns, name); at < 0 || place[at] != i {
			return nil, fmt.Errorf("line 1: the column %q is unknown or there twice; the columns are %s", name, strings.Join(csvColumns, ","))
		}
	}
	return place, nil
}

// jsonDevice is one element of the JSON form, which is also what `list -o json` prints.
type jsonDevice struct {
	EKHash string `json:"ek_hash"`
	Label  string `json:"label"`
	Group  string `json:"group"`
	Note   string `json:"note"`
	// Of an export; the server sets them anew.
	AddedAt any `json:"added_at"`
	By      any `json:"by"`
}

// parseJSON reads [{"ek_hash": …, "label": …, "group": …, "note": …}, …].
func parseJSON(data []byte) ([]*adminpb.Device, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	var list []jsonDevice
	if err := dec.Decode(&list); err != nil {
		return nil, fmt.Errorf("a JSON inventory is a list of objects with ek_hash, label, group and note: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("there is more after the JSON list")
	}
	var devices []*adminpb.Device
	for i, j := range list {
		d, err := newDevice(j.EKHash, j.Label, j.Group, j.Note)
		if err != nil {
			return nil, fmt.Errorf("element %d: %w", i+1, err)
		}
		devices = append(devices, d)
	}
	return devices, nil
}

// writeCSV writes what parseCSV reads.
func writeCSV(w io.Writer, devices []*adminpb.Device) error {
	out := csv.NewWriter(w)
	lines := [][]string{csvColumns}
	for _, d := range devices {
		lines = append(lines, []string{d.EkHash, d.Label, d.Group, d.Note})
	}
	return out.WriteAll(lines)
}
