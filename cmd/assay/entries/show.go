// SPDX-License-Identifier: Apache-2.0

package entries

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/cmd/assay/cli"
	entrypb "github.com/assay-id/assay/proto/entry"
)

// filterFlags say which entries.
type filterFlags struct {
	spiffeID, parentID string
	selectors          []string
}

func (f *filterFlags) register(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&f.spiffeID, "spiffe-id", "", "only entries for this identity")
	c.Flags().StringVar(&f.parentID, "parent", "", "only entries under this parent")
	c.Flags().StringArrayVar(&f.selectors, "selector", nil, "only entries that demand at least these selectors")
	return c
}

func (a *app) entryShow() *cobra.Command {
	var f filterFlags
	return f.register(&cobra.Command{
		Use:   "show [ID…]",
		Short: "Shows entries, all of them or those asked for",
		RunE: func(c *cobra.Command, ids []string) error {
			client, done, err := a.entryClient()
			if err != nil {
				return err
			}
			defer done()
			var entries []*types.Entry
			for _, id := range ids {
				e, err := client.GetEntry(c.Context(), &entryv1.GetEntryRequest{Id: id})
				if err != nil {
					return fmt.Errorf("entry %s: %w", id, err)
				}
				entries = append(entries, e)
			}
			if len(ids) == 0 {
				filter, err := f.filter()
				if err != nil {
					return err
				}
				if entries, err = List(c.Context(), client, filter); err != nil {
					return err
				}
			}
			return a.showEntries(entries)
		},
	})
}

func (a *app) entryCount() *cobra.Command {
	var f filterFlags
	return f.register(&cobra.Command{Use: "count", Short: "Counts entries, all of them or those asked for", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		filter, err := f.filter()
		if err != nil {
			return err
		}
		client, done, err := a.entryClient()
		if err != nil {
			return err
		}
		defer done()
		req := &entryv1.CountEntriesRequest{Filter: &entryv1.CountEntriesRequest_Filter{BySpiffeId: filter.BySpiffeId, ByParentId: filter.ByParentId, BySelectors: filter.BySelectors}}
		n, err := client.CountEntries(c.Context(), req)
		if err != nil {
			return err
		}
		return a.Show(n, func(w io.Writer) { fmt.Fprintln(w, n.Count) })
	}})
}

func (f *filterFlags) filter() (*entryv1.ListEntriesRequest_Filter, error) {
	out := &entryv1.ListEntriesRequest_Filter{}
	var err error
	if f.spiffeID != "" {
		if out.BySpiffeId, err = cli.ParseID(f.spiffeID); err != nil {
			return nil, err
		}
	}
	if f.parentID != "" {
		if out.ByParentId, err = cli.ParseID(f.parentID); err != nil {
			return nil, err
		}
	}
	if len(f.selectors) > 0 {
		list, err := selectorList(f.selectors, nil, nil)
		if err != nil {
			return nil, err
		}
		out.BySelectors = &types.SelectorMatch{Selectors: list, Match: types.SelectorMatch_MATCH_SUPERSET}
	}
	return out, nil
}

// List returns all entries that pass the filter.
func List(ctx context.Context, client entryv1.EntryClient, filter *entryv1.ListEntriesRequest_Filter) (all []*types.Entry, err error) {
	for token := ""; ; {
		resp, err := client.ListEntries(ctx, &entryv1.ListEntriesRequest{Filter: filter, PageSize: 500, PageToken: token})
		if err != nil {
			return nil, err
		}
		all = append(all, resp.Entries...)
		if token = resp.NextPageToken; token == "" {
			return all, nil
		}
	}
}

func (a *app) showEntries(entries []*types.Entry) error {
	items, err := withOptions(entries)
	if err != nil {
		return err
	}
	return a.Show(items, func(w io.Writer) {
		for _, e := range entries {
			fmt.Fprintf(w, "%s\n  entry\t%s, revision %d\n  parent\t%s\n", cli.IDText(e.SpiffeId), e.Id, e.RevisionNumber, cli.IDText(e.ParentId))
			for _, s := range e.Selectors {
				fmt.Fprintf(w, "  selector\t%s:%s\n", s.Type, s.Value)
			}
			for _, d := range e.DnsNames {
				fmt.Fprintf(w, "  dns\t%s\n", d)
			}
			if e.X509SvidTtl != 0 {
				fmt.Fprintf(w, "  x509 ttl\t%s\n", time.Duration(e.X509SvidTtl)*time.Second)
			}
			if e.JwtSvidTtl != 0 {
				fmt.Fprintf(w, "  jwt ttl\t%s\n", time.Duration(e.JwtSvidTtl)*time.Second)
			}
			if e.Hint != "" {
				fmt.Fprintf(w, "  hint\t%s\n", e.Hint)
			}
			if e.ExpiresAt != 0 {
				fmt.Fprintf(w, "  expires\t%s\n", cli.TimeText(e.ExpiresAt))
			}
			for _, td := range e.FederatesWith {
				fmt.Fprintf(w, "  federates\twith %s\n", td)
			}
			if e.Admin || e.Downstream {
				fmt.Fprintf(w, "  rights\tadmin=%v downstream=%v\n", e.Admin, e.Downstream)
			}
			showOptions(w, optionsOf(e))
		}
		if len(entries) == 0 {
			fmt.Fprintln(w, "no entries")
		}
	})
}

func showOptions(w io.Writer, o *entrypb.Options) {
	if o.GetPerProcess() {
		fmt.Fprintln(w, "  SVIDs\tone for each process")
	}
	if o.GetPrefetch() {
		fmt.Fprintln(w, "  prefetch\twhen the program is executed")
	}
	if o.GetKeyType() != entrypb.KeyType_KEY_TYPE_DEFAULT {
		fmt.Fprintf(w, "  key type\t%s\n", keyTypeText(o.KeyType))
	}
	if o.GetGrace() != 0 {
		fmt.Fprintf(w, "  grace\t%s\n", time.Duration(o.Grace)*time.Second)
	}
}
