// SPDX-License-Identifier: Apache-2.0

// Package entries is what operators do with registration entries: one at a time, or whole files of them.
package entries

import (
	"crypto/sha256"
	"fmt"
	"io"
	"os"
	"slices"
	"time"

	"github.com/spf13/cobra"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/assay-id/assay/cmd/assay/cli"
	entrypb "github.com/assay-id/assay/proto/entry"
	"github.com/assay-id/assay/selectors"
)

// Command is `assay entry`.
func Command(shared *cli.App) *cobra.Command {
	a := &app{shared}
	return cli.Group("entry", "Registration entries: which workloads may hold which identity",
		a.entryCreate(), a.entryShow(), a.entryCount(), a.entryUpdate(), a.entryDelete(), a.entryApply(), a.entryDiff(), a.entryExport(), a.entryImport())
}

// app is what the commands share.
type app struct{ *cli.App }

// entryFlags are the fields of an entry as flags.
type entryFlags struct {
	id, spiffeID, parentID, hint, expires string
	selectors, binaries, parents          []string
	dns, federates                        []string
	x509TTL, jwtTTL                       time.Duration
	admin, downstream, storeSVID          bool
	noPrefetch, includeJTI, node          bool
	perProcess, prefetch                  bool
	keyType, grace                        string
}

func (e *entryFlags) register(c *cobra.Command) {
	f := c.Flags()
	f.StringVar(&e.spiffeID, "spiffe-id", "", "identity to give, spiffe://trust-domain/path")
	f.StringVar(&e.parentID, "parent", "", "agent or alias that the workloads run under (see assay node list)")
	f.StringArrayVar(&e.selectors, "selector", nil, "selector that a workload must have; repeat for more")
	f.StringArrayVar(&e.binaries, "binary", nil, "demand the digest of this file: unix:sha256:…")
	f.StringArrayVar(&e.parents, "started-by", nil, "demand that this file started it: parent:sha256:…")
	f.DurationVar(&e.x509TTL, "x509-ttl", 0, "life of X.509-SVIDs (0: the server's default)")
	f.DurationVar(&e.jwtTTL, "jwt-ttl", 0, "life of JWT-SVIDs (0: the server's default)")
	f.StringArrayVar(&e.dns, "dns", nil, "DNS name for X.509-SVIDs; repeat for more")
	f.StringArrayVar(&e.federates, "federates-with", nil, "trust domain whose bundle the workload gets")
	f.StringVar(&e.hint, "hint", "", "what this identity is for, told to the workload")
	f.StringVar(&e.expires, "expires-at", "", "when the entry ends, RFC 3339")
	f.BoolVar(&e.admin, "admin", false, "holders may call the server's admin APIs")
	f.BoolVar(&e.downstream, "downstream", false, "holders are servers below this one")
	f.BoolVar(&e.storeSVID, "store-svid", false, "agents of SPIRE's hand the SVID to a store instead of a workload")
	f.BoolVar(&e.noPrefetch, "disable-x509-svid-prefetch", false, "agents have no X.509-SVID signed before a workload asks")
	f.BoolVar(&e.includeJTI, "jwt-svid-include-jti", false, "each JWT-SVID has an id of its own (jti), and none is given twice")
	f.BoolVar(&e.perProcess, "per-process", false, "each process has SVIDs of its own")
	f.BoolVar(&e.prefetch, "prefetch", false, "agents have the X.509-SVID signed when the program is executed, before it asks; demand unix:path:…")
	f.StringVar(&e.keyType, "key-type", "", "keys of X.509-SVIDs: ec-p256, ec-p384, rsa-2048 or rsa-4096 (default: the agent's)")
	f.StringVar(&e.grace, "grace", "", "how long agents keep SVIDs after the last use, such as 1h (default: 10m)")
}

// attributeFlags are those of fields that are written together (SPIRE's additional_attributes, and our options).
var attributeFlags = []string{"disable-x509-svid-prefetch", "jwt-svid-include-jti", "per-process", "prefetch", "key-type", "grace"}

// fill sets the fields of e whose flags were given, and reports which.
func (f *entryFlags) fill(c *cobra.Command, e *types.Entry) (*types.EntryMask, error) {
	given := c.Flags().Changed
	mask := &types.EntryMask{
		SpiffeId: given("spiffe-id"), ParentId: given("parent"), Selectors: given("selector") || given("binary") || given("started-by"),
		X509SvidTtl: given("x509-ttl"), JwtSvidTtl: given("jwt-ttl"), DnsNames: given("dns"), FederatesWith: given("federates-with"),
		Hint: given("hint"), ExpiresAt: given("expires-at"), Admin: given("admin"), Downstream: given("downstream"), StoreSvid: given("store-svid"),
		AdditionalAttributes: slices.ContainsFunc(attributeFlags, given),
	}
	var err error
	if mask.SpiffeId {
		if e.SpiffeId, err = cli.ParseID(f.spiffeID); err != nil {
			return nil, err
		}
	}
	if mask.ParentId {
		if e.ParentId, err = cli.ParseID(f.parentID); err != nil {
			return nil, err
		}
	}
	if e.Selectors, err = selectorList(f.selectors, f.binaries, f.parents); err != nil {
		return nil, err
	}
	if mask.ExpiresAt {
		at, err := time.Parse(time.RFC3339, f.expires)
		if err != nil {
			return nil, fmt.Errorf("--expires-at: write it as 2027-01-31T12:00:00Z")
		}
		e.ExpiresAt = at.Unix()
	}
	e.X509SvidTtl, e.JwtSvidTtl = int32(f.x509TTL/time.Second), int32(f.jwtTTL/time.Second)
	e.DnsNames, e.FederatesWith, e.Hint, e.Admin, e.Downstream, e.StoreSvid = f.dns, f.federates, f.hint, f.admin, f.downstream, f.storeSVID
	return mask, f.attributes(given, e)
}

// attributes sets those whose flags were given; the others stay.
func (f *entryFlags) attributes(given func(string) bool, e *types.Entry) (err error) {
	if given("disable-x509-svid-prefetch") || given("jwt-svid-include-jti") {
		a := e.AdditionalAttributes
		if a == nil {
			a = &types.Entry_AdditionalAttributes{}
			e.AdditionalAttributes = a
		}
		if given("disable-x509-svid-prefetch") {
			a.DisableX509SvidPrefetch = f.noPrefetch
		}
		if given("jwt-svid-include-jti") {
			a.JwtSvidIncludeJti = f.includeJTI
		}
	}
	if !slices.ContainsFunc(attributeFlags[2:], given) {
		return nil
	}
	o, err := entrypb.Get(e)
	if err != nil {
		return err
	}
	if o == nil {
		o = &entrypb.Options{}
	}
	if given("per-process") {
		o.PerProcess = f.perProcess
	}
	if given("prefetch") {
		o.Prefetch = f.prefetch
	}
	if given("key-type") {
		if o.KeyType, err = parseKeyType(f.keyType); err != nil {
			return err
		}
	}
	if given("grace") {
		if o.Grace, err = parseGrace(f.grace); err != nil {
			return err
		}
	}
	return entrypb.Set(e, o)
}

// selectorList parses selectors and hashes the files that were named instead.
func selectorList(texts, binaries, parents []string) ([]*types.Selector, error) {
	for family, files := range map[string][]string{"unix": binaries, "parent": parents} {
		for _, path := range files {
			data, err := os.ReadFile(path)
			if err != nil {
				return nil, fmt.Errorf("digest of the program: %w", err)
			}
			texts = append(texts, fmt.Sprintf("%s:sha256:%x", family, sha256.Sum256(data)))
		}
	}
	var out []*types.Selector
	for _, text := range texts {
		s, err := selectors.Parse(text)
		if err != nil {
			return nil, err
		}
		out = append(out, &types.Selector{Type: s.Type, Value: s.Value})
	}
	return out, nil
}

func (a *app) entryClient() (entryv1.EntryClient, func(), error) {
	conn, err := cli.Dial(a.ServerSocket)
	if err != nil {
		return nil, nil, err
	}
	return entryv1.NewEntryClient(conn), func() { conn.Close() }, nil
}

func (a *app) entryCreate() *cobra.Command {
	var f entryFlags
	c := &cobra.Command{
		Use:     "create",
		Short:   "Registers an identity",
		Example: "  assay entry create --spiffe-id spiffe://example.org/payments --parent spiffe://example.org/spire/agent/tpm/… --binary /usr/bin/payments",
		Args:    cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			e := &types.Entry{Id: f.id}
			if _, err := f.fill(c, e); err != nil {
				return err
			}
			if f.node {
				e.ParentId = &types.SPIFFEID{TrustDomain: e.SpiffeId.TrustDomain, Path: "/spire/server"}
			}
			client, done, err := a.entryClient()
			if err != nil {
				return err
			}
			defer done()
			resp, err := client.BatchCreateEntry(c.Context(), &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
			if err != nil {
				return err
			}
			r := resp.Results[0]
			if err := cli.Failed("entry was not created", r.Status); err != nil {
				if r.Status.Code == int32(codes.AlreadyExists) && r.Entry != nil {
					return fmt.Errorf("%w; change it with: assay entry update %s …", err, r.Entry.Id)
				}
				return err
			}
			return a.showEntries([]*types.Entry{r.Entry})
		},
	}
	f.register(c)
	c.Flags().StringVar(&f.id, "id", "", "entry id (default: a new UUID)")
	c.Flags().BoolVar(&f.node, "node", false, "the selectors are of nodes: those that have them get this as a second name, to be the parent of entries")
	c.MarkFlagsOneRequired("parent", "node")
	c.MarkFlagsMutuallyExclusive("parent", "node")
	if err := c.MarkFlagRequired("spiffe-id"); err != nil {
		panic(err)
	}
	return c
}

func (a *app) entryUpdate() *cobra.Command {
	var f entryFlags
	c := &cobra.Command{
		Use:   "update ID",
		Short: "Changes the given fields of an entry; lists are replaced whole",
		Args:  cobra.ExactArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			client, done, err := a.entryClient()
			if err != nil {
				return err
			}
			defer done()
			e := &types.Entry{Id: args[0]}
			if slices.ContainsFunc(attributeFlags, c.Flags().Changed) { // the others stay
				old, err := client.GetEntry(c.Context(), &entryv1.GetEntryRequest{Id: e.Id, OutputMask: &types.EntryMask{AdditionalAttributes: true}})
				if err != nil {
					return fmt.Errorf("entry %s: %w", e.Id, err)
				}
				e = old
			}
			mask, err := f.fill(c, e)
			if err != nil {
				return err
			}
			resp, err := client.BatchUpdateEntry(c.Context(), &entryv1.BatchUpdateEntryRequest{Entries: []*types.Entry{e}, InputMask: mask})
			if err != nil {
				return err
			}
			if err := cli.Failed("entry "+args[0]+" was not updated", resp.Results[0].Status); err != nil {
				return err
			}
			return a.showEntries([]*types.Entry{resp.Results[0].Entry})
		},
	}
	f.register(c)
	return c
}

func (a *app) entryDelete() *cobra.Command {
	return &cobra.Command{
		Use:   "delete ID…",
		Short: "Deletes entries; their SVIDs are withdrawn from open streams at once",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(c *cobra.Command, ids []string) error {
			client, done, err := a.entryClient()
			if err != nil {
				return err
			}
			defer done()
			resp, err := client.BatchDeleteEntry(c.Context(), &entryv1.BatchDeleteEntryRequest{Ids: ids})
			if err != nil {
				return err
			}
			for _, r := range resp.Results {
				if err := cli.Failed("entry "+r.Id+" was not deleted", r.Status); err != nil {
					return err
				}
			}
			return a.Show(resp, func(w io.Writer) {
				for _, r := range resp.Results {
					fmt.Fprintf(w, "deleted %s\n", r.Id)
				}
			})
		},
	}
}
