// SPDX-License-Identifier: Apache-2.0

package machines

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/assay/cli"
	"github.com/assay-id/assay/cmd/assay/debian"
	"github.com/assay-id/assay/tpm/ima"
)

func (a *app) tpmAllowlist() *cobra.Command {
	var installed bool
	l := debian.Learner{List: &ima.AllowList{}}
	c := &cobra.Command{
		Use:   "debian PACKAGE…|FILE.deb…|--installed",
		Short: "Writes the list of a set of Debian packages; files that were changed since they were installed are left out",
		RunE: func(c *cobra.Command, args []string) error {
			if installed == (len(args) > 0) {
				return errors.New("name packages or files that end in .deb, or say --installed for all that are installed")
			}
			var names []string
			for _, name := range args {
				if !strings.HasSuffix(name, ".deb") {
					names = append(names, name)
				} else if err := l.File(c.Context(), name); err != nil {
					return err
				}
			}
			if installed || len(names) > 0 {
				if err := l.Installed(names...); err != nil {
					return err
				}
			}
			if err := l.List.Write(c.OutOrStdout()); err != nil {
				return err
			}
			return told(c.ErrOrStderr(), &l)
		},
	}
	c.Flags().BoolVar(&installed, "installed", false, "all packages that are installed")
	c.Flags().StringVar(&l.Root, "root", "/", "folder of the Debian system in which the packages are installed")
	c.Flags().BoolVar(&l.All, "all", false, "every file, for IMA policies that measure what root reads (ima_policy=tcb); default: what is executed, mapped as code or loaded by the kernel")
	return cli.Group("allowlist", "Lists of files that machines may run, for ima_allow in a node_group", c)
}

// told says what is in the list and what is not. Files that were changed are an error, unless they are there to be edited.
func told(w io.Writer, l *debian.Learner) error {
	tampered := 0
	for _, name := range l.Changed {
		what := "not as its package has it"
		if slices.Contains(l.Edited, name) {
			what = "a configuration file that was edited"
		} else {
			tampered++
		}
		fmt.Fprintf(w, "left out: %q, %s\n", name, what)
	}
	for _, name := range l.Without {
		fmt.Fprintf(w, "left out: package %s, of whose files dpkg has no digests\n", name)
	}
	fmt.Fprintf(w, "%d files, %d digests\n", l.Learned, l.List.Len())
	if tampered > 0 {
		return fmt.Errorf("%d files were changed since they were installed, and are not in the list: reinstall their packages (apt-get install --reinstall), or find out who changed them", tampered)
	}
	return nil
}
