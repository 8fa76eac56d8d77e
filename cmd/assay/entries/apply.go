// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/cmd/assay/cli"
)

// applyFlags say what is to be there.
type applyFlags struct {
	paths []string
	set   string
	prune bool
}

const filesUsage = "file with entries (- is standard input): HCL, or JSON of `assay entry show`, of SPIRE's `entry show` or of its -data; repeat for more"

func (f *applyFlags) register(c *cobra.Command) *cobra.Command {
	c.Flags().StringArrayVarP(&f.paths, "file", "f", nil, filesUsage)
	c.Flags().StringVar(&f.set, "set", "", "name of what the files describe, if they do not say it themselves (default: default)")
	c.Flags().BoolVar(&f.prune, "prune", false, "delete the entries that a former apply made from this set and that are no longer in it")
	if err := c.MarkFlagRequired("file"); err != nil {
		panic(err)
	}
	return c
}

var setName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// read returns all that the files hold, and the name of the set.
func (f *applyFlags) read(c *cobra.Command) (set string, want []*types.Entry, err error) {
	set = f.set
	for _, path := range f.paths {
		name, es, err := readFile(c, path)
		if err != nil {
			return "", nil, err
		}
		if name != "" && set != "" && name != set {
			return "", nil, fmt.Errorf("%s is of the set %q and not %q; apply the sets one by one", path, name, set)
		}
		if name != "" {
			set = name
		}
		want = append(want, es...)
	}
	if set == "" {
		set = "default"
	}
	if !setName.MatchString(set) {
		return "", nil, fmt.Errorf("the set %q: a name has up to 64 letters, digits, _ and -", set)
	}
	return set, want, nil
}

func (f *applyFlags) plan(c *cobra.Command, client entryv1.EntryClient) ([]change, error) {
	set, want, err := f.read(c)
	if err != nil {
		return nil, err
	}
	have, err := List(c.Context(), client, nil)
	if err != nil {
		return nil, err
	}
	return planApply(set, want, have, f.prune)
}

func (a *app) entryApply() *cobra.Command {
	var f applyFlags
	return f.register(&cobra.Command{
		Use:   "apply -f FILE",
		Short: "Makes the entries of files exist as written there; entries that were not made by it are left alone",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.onEntries(func(client entryv1.EntryClient) error {
				changes, err := f.plan(c, client)
				if err != nil {
					return err
				}
				return a.carryOut(c, client, changes)
			})
		},
	})
}

func (a *app) entryDiff() *cobra.Command {
	var f applyFlags
	var exitCode bool
	c := f.register(&cobra.Command{
		Use:   "diff -f FILE",
		Short: "Shows what apply would do, and does nothing",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.onEntries(func(client entryv1.EntryClient) error {
				changes, err := f.plan(c, client)
				if err != nil {
					return err
				}
				if err := a.showChanges(changes); err != nil {
					return err
				}
				if n := len(slices.DeleteFunc(slices.Clone(changes), func(c change) bool { return c.Action == unchanged || c.Action == stale })); exitCode && n > 0 {
					return fmt.Errorf("%d entries differ; `assay entry apply` makes them the same", n)
				}
				return nil
			})
		},
	})
	c.Flags().BoolVar(&exitCode, "exit-code", false, "exit with 1 if there is something to do")
	return c
}

func (a *app) onEntries(f func(client entryv1.EntryClient) error) error {
	return a.OnServer(func(conn *grpc.ClientConn) error { return f(entryv1.NewEntryClient(conn)) })
}

func (a *app) entryExport() *cobra.Command {
	var f filterFlags
	var set string
	var ids bool
	c := f.register(&cobra.Command{
		Use:   "export",
		Short: "Writes entries as a file for apply (HCL; JSON with -o json)",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			filter, err := f.filter()
			if err != nil {
				return err
			}
			return a.onEntries(func(client entryv1.EntryClient) error {
				es, err := List(c.Context(), client, filter)
				if err != nil {
					return err
				}
				for _, e := range es {
					if e.RevisionNumber, e.CreatedAt = 0, 0; !ids {
						e.Id = ""
					}
				}
				if a.Format == "json" {
					items, err := withOptions(es)
					if err != nil {
						return err
					}
					return a.Show(items, nil)
				}
				writeHCL(c.OutOrStdout(), set, es)
				return nil
			})
		},
	})
	c.Flags().StringVar(&set, "set", "", "name of the set to write into the file")
	c.Flags().BoolVar(&ids, "ids", false, "with the entries' ids, which apply and import then keep")
	return c
}

func (a *app) entryImport() *cobra.Command {
	var from string
	var paths []string
	var overwrite, dryRun bool
	c := &cobra.Command{
		Use:     "import (--from SOCKET | -f FILE)",
		Short:   "Takes over entries from a server of SPIRE's or ours, or from files, with their ids",
		Example: "  assay entry import --from unix:///tmp/spire-server/private/api.sock --dry-run",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			want, err := importable(c, from, paths)
			if err != nil {
				return err
			}
			return a.onEntries(func(client entryv1.EntryClient) error {
				have, err := List(c.Context(), client, nil)
				if err != nil {
					return err
				}
				changes, err := planImport(want, have, overwrite)
				if err != nil {
					return err
				}
				if dryRun {
					return a.showChanges(changes)
				}
				return a.carryOut(c, client, changes)
			})
		},
	}
	c.Flags().StringVar(&from, "from", "", "private socket of the server to read, unix:///path")
	c.Flags().StringArrayVarP(&paths, "file", "f", nil, filesUsage)
	c.Flags().BoolVar(&overwrite, "update", false, "entries that are here already become what they are there")
	c.Flags().BoolVar(&dryRun, "dry-run", false, "show what would be done, and do nothing")
	c.MarkFlagsOneRequired("from", "file")
	c.MarkFlagsMutuallyExclusive("from", "file")
	return c
}

// importable are the entries of another server, or of files.
func importable(c *cobra.Command, from string, paths []string) (want []*types.Entry, err error) {
	for _, path := range paths {
		_, es, err := readFile(c, path)
		if err != nil {
			return nil, err
		}
		want = append(want, es...)
	}
	if from == "" {
		return want, nil
	}
	conn, err := cli.Dial(from)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if want, err = List(c.Context(), entryv1.NewEntryClient(conn), nil); err != nil {
		return nil, fmt.Errorf("%s: %w", from, err)
	}
	for _, e := range want {
		e.RevisionNumber, e.CreatedAt = 0, 0
	}
	return want, nil
}

// batch is how many entries go into one call.
const batch = 200

// carryOut does what is planned, shows all of it, and fails if one entry did. Deletions come last, so that
// no identity is without an entry in between.
func (a *app) carryOut(c *cobra.Command, client entryv1.EntryClient, changes []change) error {
	for _, step := range []struct {
		action, done string
		call         func(context.Context, entryv1.EntryClient, []*change) ([]*types.Status, error)
	}{{update, "updated", updateAll}, {create, "created", createAll}, {remove, "deleted", deleteAll}} {
		var todo []*change
		for i := range changes {
			if changes[i].Action == step.action {
				todo = append(todo, &changes[i])
			}
		}
		for part := range slices.Chunk(todo, batch) {
			statuses, err := step.call(c.Context(), client, part)
			if err == nil && len(statuses) != len(part) {
				err = errors.New("the server answered for another number of entries than were sent")
			}
			if err != nil {
				return errors.Join(fmt.Errorf("%s entries: %w", step.action, err), a.showChanges(changes))
			}
			for i, s := range statuses {
				part[i].Action = step.done
				if err := cli.Failed("not "+step.done, s); err != nil {
					part[i].Action, part[i].Error = failed, err.Error()
				}
			}
		}
	}
	if err := a.showChanges(changes); err != nil {
		return err
	}
	if n := len(slices.DeleteFunc(slices.Clone(changes), func(c change) bool { return c.Action != failed })); n > 0 {
		return fmt.Errorf("%d of %d entries failed: correct them as told and run this again", n, len(changes))
	}
	return nil
}

func wanted(part []*change) (es []*types.Entry) {
	for _, c := range part {
		es = append(es, c.want)
	}
	return es
}

func createAll(ctx context.Context, client entryv1.EntryClient, part []*change) (out []*types.Status, err error) {
	resp, err := client.BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: wanted(part)})
	for i, r := range resp.GetResults() {
		if i < len(part) && r.Entry != nil {
			part[i].EntryID = r.Entry.Id
		}
		out = append(out, r.Status)
	}
	return out, err
}

func updateAll(ctx context.Context, client entryv1.EntryClient, part []*change) (out []*types.Status, err error) {
	resp, err := client.BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{Entries: wanted(part)})
	for _, r := range resp.GetResults() {
		out = append(out, r.Status)
	}
	return out, err
}

func deleteAll(ctx context.Context, client entryv1.EntryClient, part []*change) (out []*types.Status, err error) {
	req := &entryv1.BatchDeleteEntryRequest{}
	for _, c := range part {
		req.Ids = append(req.Ids, c.EntryID)
	}
	resp, err := client.BatchDeleteEntry(ctx, req)
	for _, r := range resp.GetResults() {
		out = append(out, r.Status)
	}
	return out, err
}

func (a *app) showChanges(changes []change) error {
	if changes == nil {
		changes = []change{}
	}
	return a.Show(changes, func(w io.Writer) {
		count := map[string]int{}
		var order []string
		for _, c := range changes {
			if count[c.Action]++; count[c.Action] == 1 {
				order = append(order, c.Action)
			}
			if c.Action == unchanged {
				continue
			}
			fmt.Fprintf(w, "%s\t%s\t%s\n", c.Action, c.SPIFFEID, c.EntryID)
			for _, f := range c.Fields {
				fmt.Fprintf(w, "\t  %s\t%q → %q\n", f.Field, f.From, f.To)
			}
			if c.Error != "" {
				fmt.Fprintf(w, "\t  %s\n", c.Error)
			}
		}
		var parts []string
		for _, action := range order {
			parts = append(parts, fmt.Sprintf("%d %s", count[action], action))
		}
		if len(parts) == 0 {
			parts = []string{"no entries"}
		}
		fmt.Fprintln(w, strings.Join(parts, ", "))
		if count[stale] > 0 {
			fmt.Fprintln(w, "stale entries were made by a former apply and are no longer in the files: --prune deletes them")
		}
		if count[differs] > 0 {
			fmt.Fprintln(w, "entries that differ are left as they are here: --update makes them what they are there")
		}
	})
}
