// SPDX-License-Identifier: Apache-2.0

// Package config reads the HCL configuration files of the agent and the server, strictly: an
// unknown key is an error that names the file, the line and the nearest key that exists.
package config

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/agext/levenshtein"
	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/gohcl"
	"github.com/hashicorp/hcl/v2/hclsyntax"
)

// Load reads the file into the struct that into points to (`hcl` tags, see gohcl).
// Every error begins with "file:line,column:".
func Load(path string, into any) error {
	src, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read configuration: %w; name a file with --config", err)
	}
	return Parse(path, src, into)
}

// Parse is Load for a file that was read already.
func Parse(path string, src []byte, into any) error {
	file, diags := hclsyntax.ParseConfig(src, path, hcl.InitialPos)
	if !diags.HasErrors() {
		diags = gohcl.DecodeBody(file.Body, nil, into)
	}
	if !diags.HasErrors() {
		return nil
	}
	return explain(diags, keys(reflect.TypeOf(into)))
}

// At puts the place of a block's key before an error about it, of which Parse could not know: that of
// the block if it has no such key, and none if there is no such block.
func At(path string, src []byte, block, label, key string, err error) error {
	file, diags := hclsyntax.ParseConfig(src, path, hcl.InitialPos)
	if diags.HasErrors() {
		return err
	}
	for _, b := range file.Body.(*hclsyntax.Body).Blocks {
		if b.Type != block || !slices.Equal(b.Labels, []string{label}) {
			continue
		}
		at := b.TypeRange
		if a := b.Body.Attributes[key]; a != nil {
			at = a.NameRange
		}
		return fmt.Errorf("%s:%d,%d: %w", path, at.Start.Line, at.Start.Column, err)
	}
	return err
}

// explain words the first problem as one sentence with its place.
func explain(diags hcl.Diagnostics, known []string) error {
	// A key that is missing is often one that is misspelt: that tells more.
	slices.SortStableFunc(diags, func(a, b *hcl.Diagnostic) int { return misspelt(b) - misspelt(a) })
	for _, d := range diags {
		if d.Severity != hcl.DiagError {
			continue
		}
		place := ""
		if d.Subject != nil {
			place = fmt.Sprintf("%s:%d,%d: ", d.Subject.Filename, d.Subject.Start.Line, d.Subject.Start.Column)
		}
		text := strings.TrimSuffix(d.Detail, ".")
		if misspelt(d) == 1 {
			name := quoted(d.Detail)
			text = fmt.Sprintf("unknown key %q", name)
			if near := nearest(name, known); near != "" {
				text += fmt.Sprintf("; did you mean %q?", near)
			} else {
				text += "; the keys are " + strings.Join(known, ", ")
			}
		}
		return fmt.Errorf("%s%s", place, text)
	}
	return diags
}

// misspelt is 1 for a key that does not exist, else 0.
func misspelt(d *hcl.Diagnostic) int {
	if d.Summary == "Unsupported argument" || d.Summary == "Unsupported block type" {
		return 1
	}
	return 0
}

// quoted returns the first "…" in the text.
func quoted(text string) string {
	_, rest, _ := strings.Cut(text, `"`)
	name, _, _ := strings.Cut(rest, `"`)
	return name
}

// nearest returns the known key within three edits of name, or "".
func nearest(name string, known []string) string {
	best, dist := "", 4
	for _, k := range known {
		if d := levenshtein.Distance(name, k, nil); d < dist {
			best, dist = k, d
		}
	}
	return best
}

// keys lists the hcl names of a struct and of the structs in it.
func keys(t reflect.Type) []string {
	for t.Kind() == reflect.Pointer || t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return nil
	}
	var out []string
	for f := range fields(t) {
		name, kind, _ := strings.Cut(f.Tag.Get("hcl"), ",")
		if name != "" && kind != "label" {
			out = append(out, name)
		}
		if kind == "block" {
			out = append(out, keys(f.Type)...)
		}
	}
	return out
}

func fields(t reflect.Type) func(func(reflect.StructField) bool) {
	return func(yield func(reflect.StructField) bool) {
		for i := range t.NumField() {
			if !yield(t.Field(i)) {
				return
			}
		}
	}
}
