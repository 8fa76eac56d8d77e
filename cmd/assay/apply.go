// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/cmd/assay/cli"
	"github.com/assay-id/assay/cmd/config"
)

// entryFile is what `assay entry apply` reads.
type entryFile struct {
	Entries []entryBlock `hcl:"entry,block"`
}

type entryBlock struct {
	SPIFFEID   string   `hcl:"spiffe_id,label"`
	Parent     string   `hcl:"parent"`
	Selectors  []string `hcl:"selectors,optional"`
	Binaries   []string `hcl:"binaries,optional"`
	StartedBy  []string `hcl:"started_by,optional"`
	X509TTL    string   `hcl:"x509_ttl,optional"`
	DNS        []string `hcl:"dns,optional"`
	Federates  []string `hcl:"federates_with,optional"`
	Hint       string   `hcl:"hint,optional"`
	Admin      bool     `hcl:"admin,optional"`
	Downstream bool     `hcl:"downstream,optional"`
}

func (b *entryBlock) entry() (*types.Entry, error) {
	e := &types.Entry{DnsNames: b.DNS, FederatesWith: b.Federates, Hint: b.Hint, Admin: b.Admin, Downstream: b.Downstream}
	var err error
	if e.SpiffeId, err = cli.ParseID(b.SPIFFEID); err != nil {
		return nil, err
	}
	if e.ParentId, err = cli.ParseID(b.Parent); err != nil {
		return nil, err
	}
	if b.X509TTL != "" {
		ttl, err := time.ParseDuration(b.X509TTL)
		if err != nil {
			return nil, fmt.Errorf("entry %s: x509_ttl %q: write it as 30m or 1h", b.SPIFFEID, b.X509TTL)
		}
		e.X509SvidTtl = int32(ttl / time.Second)
	}
	e.Selectors, err = selectorList(b.Selectors, b.Binaries, b.StartedBy)
	return e, err
}

// key is what makes two entries the same registration.
func key(e *types.Entry) string {
	var sels []string
	for _, s := range e.Selectors {
		sels = append(sels, s.Type+":"+s.Value)
	}
	slices.Sort(sels)
	return cli.IDText(e.ParentId) + "\n" + cli.IDText(e.SpiffeId) + "\n" + strings.Join(slices.Compact(sels), "\n")
}

func (a *app) entryApply() *cobra.Command {
	var path string
	c := &cobra.Command{
		Use:   "apply -f FILE",
		Short: "Makes the entries of an HCL file exist as written there; others are left alone",
		Args:  cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var file entryFile
			if err := config.Load(path, &file); err != nil {
				return err
			}
			client, done, err := a.entryClient()
			if err != nil {
				return err
			}
			defer done()
			have, err := listEntries(c, client, nil)
			if err != nil {
				return err
			}
			return a.apply(c, client, file.Entries, have)
		},
	}
	c.Flags().StringVarP(&path, "file", "f", "", "HCL file with entry blocks")
	if err := c.MarkFlagRequired("file"); err != nil {
		panic(err)
	}
	return c
}

// applied is one line of the result.
type applied struct {
	Action   string `json:"action"`
	SPIFFEID string `json:"spiffe_id"`
	EntryID  string `json:"entry_id"`
}

func (a *app) apply(c *cobra.Command, client entryv1.EntryClient, blocks []entryBlock, have []*types.Entry) error {
	known := map[string]*types.Entry{}
	for _, e := range have {
		known[key(e)] = e
	}
	var done []applied
	for _, b := range blocks {
		want, err := b.entry()
		if err != nil {
			return err
		}
		action, id, err := applyOne(c, client, want, known[key(want)])
		if err != nil {
			return err
		}
		done = append(done, applied{action, b.SPIFFEID, id})
	}
	return a.Show(done, func(w io.Writer) {
		for _, d := range done {
			fmt.Fprintf(w, "%s\t%s\t%s\n", d.Action, d.SPIFFEID, d.EntryID)
		}
	})
}

func applyOne(c *cobra.Command, client entryv1.EntryClient, want, have *types.Entry) (action, id string, err error) {
	if have == nil {
		resp, err := client.BatchCreateEntry(c.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{want}})
		if err != nil {
			return "", "", err
		}
		r := resp.Results[0]
		return "created", r.Entry.GetId(), cli.Failed(cli.IDText(want.SpiffeId), r.Status)
	}
	merged := proto.CloneOf(have)
	merged.X509SvidTtl, merged.DnsNames, merged.FederatesWith, merged.Hint = want.X509SvidTtl, want.DnsNames, want.FederatesWith, want.Hint
	merged.Admin, merged.Downstream = want.Admin, want.Downstream
	if proto.Equal(merged, have) {
		return "unchanged", have.Id, nil
	}
	resp, err := client.BatchUpdateEntry(c.Context(), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{merged}})
	if err != nil {
		return "", "", err
	}
	return "updated", have.Id, cli.Failed(cli.IDText(want.SpiffeId), resp.Results[0].Status)
}
