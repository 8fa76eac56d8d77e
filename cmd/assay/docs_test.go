// SPDX-License-Identifier: Apache-2.0

package main

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var write = flag.Bool("update", false, "write docs/cli.md")

// TestDocs: docs/cli.md is what the commands say of themselves (go test ./cmd/assay -update).
func TestDocs(t *testing.T) {
	for _, name := range []string{"ASSAY_SERVER_SOCKET", "ASSAY_AGENT_SOCKET", "SPIFFE_ENDPOINT_SOCKET"} {
		t.Setenv(name, "")
	}
	const path = "../../docs/cli.md"
	want := reference(root())
	if *write {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the commands say; run: go test ./cmd/assay -update", path)
	}
}

// TestCommandsSayWhatTheyDo: each command and flag has a sentence, and no command takes what it does not look at.
func TestCommandsSayWhatTheyDo(t *testing.T) {
	walk(root(), func(c *cobra.Command) {
		if c.Short == "" || strings.HasSuffix(c.Short, ".") {
			t.Errorf("%s: %q", c.CommandPath(), c.Short)
		}
		if !c.HasSubCommands() && c.Args == nil && !strings.Contains(c.Use, "…") {
			t.Errorf("%s takes any arguments", c.CommandPath())
		}
		c.LocalFlags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s says nothing", c.CommandPath(), f.Name)
			}
		})
	})
}

func walk(c *cobra.Command, visit func(*cobra.Command)) {
	visit(c)
	for _, child := range c.Commands() {
		if !child.Hidden && child.Name() != "help" && child.Name() != "completion" {
			walk(child, visit)
		}
	}
}

// reference is the text of docs/cli.md.
func reference(root *cobra.Command) string {
	var b strings.Builder
	b.WriteString("<!-- Written by go test ./cmd/assay -update; do not edit. -->\n# `assay`\n\n" + root.Short + ". The server's socket speaks SPIRE's own API, so `spire-server`'s commands work on it, too\n" +
		"(`-socketPath`); verbs and flags that both have mean the same.\n\nFlags of all commands:\n\n" + flags(root.PersistentFlags()))
	walk(root, func(c *cobra.Command) {
		if c == root {
			return
		}
		fmt.Fprintf(&b, "\n%s `%s`\n\n", strings.Repeat("#", 1+len(strings.Fields(c.CommandPath()))-len(strings.Fields(root.CommandPath()))), c.CommandPath())
		if text := c.Long; text != "" {
			b.WriteString(text + "\n")
		} else {
			b.WriteString(c.Short + ".\n")
		}
		if c.HasSubCommands() {
			return
		}
		fmt.Fprintf(&b, "\n    %s\n", c.UseLine())
		if c.Example != "" {
			fmt.Fprintf(&b, "\nExample:\n\n    %s\n", strings.TrimSpace(c.Example))
		}
		if text := flags(c.LocalNonPersistentFlags()); text != "" {
			b.WriteString("\n" + text)
		}
	})
	return b.String()
}

// flags are a list, in the order of their names.
func flags(set *pflag.FlagSet) string {
	var b strings.Builder
	set.VisitAll(func(f *pflag.Flag) {
		if f.Name == "help" || f.Name == "version" {
			return
		}
		name := "--" + f.Name
		if f.Shorthand != "" {
			name = "-" + f.Shorthand + ", " + name
		}
		if kind := f.Value.Type(); kind != "bool" {
			name += " " + strings.TrimSuffix(strings.NewReplacer("Array", "…", "Slice", "…").Replace(kind), "32")
		}
		fmt.Fprintf(&b, "- `%s`: %s", name, f.Usage)
		if v := f.DefValue; v != "" && v != "false" && v != "[]" && v != "0" && v != "0s" {
			fmt.Fprintf(&b, " (default `%s`)", v)
		}
		b.WriteString("\n")
	})
	return b.String()
}
