// SPDX-License-Identifier: Apache-2.0

// Package policies is `assay policy`: policies in Rego, checked and tested before a server reads them.
package policies

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/assay/cli"
	"github.com/assay-id/assay/server/rego"
)

// Command returns `assay policy`.
func Command(a *cli.App) *cobra.Command {
	return cli.Group("policy", "Policies in Rego, of who may call what and which SVIDs are signed", check(a), test(a))
}

func data(c *cobra.Command) *string {
	return c.Flags().String("data", "", "JSON file that the policy sees as data (policy_data_path in the server's configuration)")
}

func check(a *cli.App) *cobra.Command {
	c := &cobra.Command{
		Use:   "check PATH",
		Short: "Compiles a policy, a file or a folder, as the server does, and tells what it is asked and its digest",
		Args:  cobra.ExactArgs(1),
	}
	path := data(c)
	c.RunE = func(c *cobra.Command, args []string) error {
		answers, digest, err := rego.Check(c.Context(), args[0], *path)
		if err != nil {
			return err
		}
		out := struct {
			Asked  []string `json:"asked"`
			Digest string   `json:"digest"`
		}{answers, digest}
		return a.Show(out, func(w io.Writer) {
			fmt.Fprintf(w, "asked about:\t%s\ndigest:\t%s\n", strings.Join(answers, ", "), digest)
		})
	}
	return c
}

func test(a *cli.App) *cobra.Command {
	c := &cobra.Command{
		Use:   "test PATH",
		Short: "Runs the rules test_… in the files *_test.rego of a folder, as opa test does; fails if one does",
		Args:  cobra.ExactArgs(1),
	}
	path := data(c)
	verbose := c.Flags().BoolP("verbose", "v", false, "name each test, also those that pass")
	c.RunE = func(c *cobra.Command, args []string) error {
		return rego.Test(c.Context(), args[0], *path, *verbose, c.OutOrStdout())
	}
	return c
}
