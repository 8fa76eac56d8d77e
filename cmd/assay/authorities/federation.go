// SPDX-License-Identifier: Apache-2.0

package authorities

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	trustdomainv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/trustdomain/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/cmd/assay/cli"
)

func (a *app) federation() *cobra.Command {
	var create, update relationFlags
	return cli.Group("federation", "Other trust domains, and where their bundles are fetched",
		create.register(&cobra.Command{Use: "create", Short: "Federates with a trust domain (or those of --data)", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return a.relate(c, &create, "created", func(client trustdomainv1.TrustDomainClient, rs []*types.FederationRelationship) (out []relationResult, err error) {
				resp, err := client.BatchCreateFederationRelationship(c.Context(), &trustdomainv1.BatchCreateFederationRelationshipRequest{FederationRelationships: rs})
				for _, r := range resp.GetResults() {
					out = append(out, r)
				}
				return out, err
			})
		}}),
		update.register(&cobra.Command{Use: "update", Short: "Replaces a relationship; the bundle that is kept stays unless another is given", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return a.relate(c, &update, "updated", func(client trustdomainv1.TrustDomainClient, rs []*types.FederationRelationship) (out []relationResult, err error) {
				resp, err := client.BatchUpdateFederationRelationship(c.Context(), &trustdomainv1.BatchUpdateFederationRelationshipRequest{FederationRelationships: rs})
				for _, r := range resp.GetResults() {
					out = append(out, r)
				}
				return out, err
			})
		}}),
		a.relationDelete(), a.relationList(), a.relationShow(), a.relationRefresh())
}

func (a *app) onRelations(f func(trustdomainv1.TrustDomainClient) error) error {
	return client(a, trustdomainv1.NewTrustDomainClient, f)
}

// relationFlags are the fields of a relationship as flags.
type relationFlags struct{ td, url, profile, endpointID, bundlePath, bundleFormat, data string }

func (f *relationFlags) register(c *cobra.Command) *cobra.Command {
	s := c.Flags()
	s.StringVar(&f.td, "trust-domain", "", "trust domain to federate with")
	s.StringVar(&f.url, "bundle-endpoint-url", "", "https://… where it publishes its bundle")
	s.StringVar(&f.profile, "bundle-endpoint-profile", "", "https_web (the endpoint shows a certificate that web clients know) or https_spiffe (an SVID)")
	s.StringVar(&f.endpointID, "endpoint-spiffe-id", "", "SPIFFE ID of the endpoint, for https_spiffe")
	s.StringVar(&f.bundlePath, "trust-domain-bundle-path", "", "file with its bundle, which https_spiffe needs to begin with")
	s.StringVar(&f.bundleFormat, "trust-domain-bundle-format", formatPEM, formatUsage)
	s.StringVar(&f.data, "data", "", "file with relationships in SPIRE's JSON form (- is standard input), in place of the flags above")
	return c
}

// relationItem is one relationship of a --data file, as SPIRE's CLI reads it.
type relationItem struct {
	TrustDomain  string          `json:"trustDomain"`
	URL          string          `json:"bundleEndpointURL"`
	Profile      string          `json:"bundleEndpointProfile"`
	EndpointID   string          `json:"endpointSPIFFEID"`
	Bundle       json.RawMessage `json:"trustDomainBundle"`
	BundleFormat string          `json:"trustDomainBundleFormat"`
}

func (f *relationFlags) read(c *cobra.Command) ([]*types.FederationRelationship, error) {
	if f.data == "" {
		if f.td == "" || f.url == "" || f.profile == "" {
			return nil, fmt.Errorf("--trust-domain, --bundle-endpoint-url and --bundle-endpoint-profile are needed (or --data FILE)")
		}
		var bundle []byte
		if f.bundlePath != "" {
			var err error
			if bundle, err = readInput(c, f.bundlePath); err != nil {
				return nil, fmt.Errorf("read the bundle: %w", err)
			}
		}
		r, err := relation(&relationItem{TrustDomain: f.td, URL: f.url, Profile: f.profile, EndpointID: f.endpointID, BundleFormat: f.bundleFormat}, bundle)
		return []*types.FederationRelationship{r}, err
	}
	data, err := readInput(c, f.data)
	if err != nil {
		return nil, fmt.Errorf("read the relationships: %w", err)
	}
	var file struct {
		Relationships []relationItem `json:"federationRelationships"`
	}
	if err := json.Unmarshal(data, &file); err != nil {
		return nil, fmt.Errorf("%s: %w", f.data, err)
	}
	if len(file.Relationships) == 0 {
		return nil, fmt.Errorf("%s holds no federationRelationships", f.data)
	}
	var out []*types.FederationRelationship
	for i := range file.Relationships {
		item := &file.Relationships[i]
		bundle := []byte(item.Bundle)
		var text string
		if json.Unmarshal(item.Bundle, &text) == nil { // a bundle as a string: PEM, or a document in quotes
			bundle = []byte(text)
		}
		r, err := relation(item, bundle)
		if err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, nil
}

func relation(item *relationItem, bundle []byte) (*types.FederationRelationship, error) {
	td, err := trustDomain(item.TrustDomain)
	if err != nil {
		return nil, err
	}
	r := &types.FederationRelationship{TrustDomain: td.Name(), BundleEndpointUrl: item.URL}
	switch item.Profile {
	case "https_web":
		if item.EndpointID != "" {
			return nil, fmt.Errorf("%s: https_web does not look at the endpoint's SPIFFE ID; leave it out, or choose https_spiffe", td.Name())
		}
		r.BundleEndpointProfile = &types.FederationRelationship_HttpsWeb{HttpsWeb: &types.HTTPSWebProfile{}}
	case "https_spiffe":
		if item.EndpointID == "" {
			return nil, fmt.Errorf("%s: https_spiffe needs the endpoint's SPIFFE ID", td.Name())
		}
		r.BundleEndpointProfile = &types.FederationRelationship_HttpsSpiffe{HttpsSpiffe: &types.HTTPSSPIFFEProfile{EndpointSpiffeId: item.EndpointID}}
	default:
		return nil, fmt.Errorf("%s: profile %q: the profiles are https_web and https_spiffe", td.Name(), item.Profile)
	}
	if len(bundle) == 0 {
		return r, nil
	}
	format := item.BundleFormat
	if format == "" {
		format = formatPEM
	}
	if err := checkFormat("trust-domain-bundle-format", format); err != nil {
		return nil, err
	}
	r.TrustDomainBundle, err = readBundle(td, format, bundle)
	return r, err
}

// relationResult is an item of the answer to create and update.
type relationResult interface {
	GetStatus() *types.Status
	GetFederationRelationship() *types.FederationRelationship
}

// relate creates or updates relationships, and shows all that came of it before it fails for one.
func (a *app) relate(c *cobra.Command, f *relationFlags, done string, call func(trustdomainv1.TrustDomainClient, []*types.FederationRelationship) ([]relationResult, error)) error {
	rs, err := f.read(c)
	if err != nil {
		return err
	}
	return a.onRelations(func(client trustdomainv1.TrustDomainClient) error {
		results, err := call(client, rs)
		if err != nil {
			return err
		}
		var good []*types.FederationRelationship
		var failed error
		for i, r := range results {
			if err := cli.Failed(rs[i].TrustDomain+" was not "+done, r.GetStatus()); err == nil {
				good = append(good, r.GetFederationRelationship())
			} else if failed == nil {
				failed = err
			}
		}
		if err := a.showRelations(good); err != nil {
			return err
		}
		return failed
	})
}

func (a *app) relationDelete() *cobra.Command {
	var id string
	c := &cobra.Command{Use: "delete --id TRUST-DOMAIN", Short: "Ends a relationship; the bundle that was fetched stays (assay bundle delete)", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		td, err := trustDomain(id)
		if err != nil {
			return err
		}
		return a.onRelations(func(client trustdomainv1.TrustDomainClient) error {
			resp, err := client.BatchDeleteFederationRelationship(c.Context(), &trustdomainv1.BatchDeleteFederationRelationshipRequest{TrustDomains: []string{td.Name()}})
			if err != nil {
				return err
			}
			if err := cli.Failed("the relationship with "+td.Name()+" was not deleted", resp.Results[0].Status); err != nil {
				return err
			}
			return a.Show(resp, func(w io.Writer) { fmt.Fprintf(w, "deleted the relationship with %s\n", td.Name()) })
		})
	}}
	c.Flags().StringVar(&id, "id", "", "trust domain")
	return required(c, "id")
}

func (a *app) relationList() *cobra.Command {
	return &cobra.Command{Use: "list", Short: "Lists the relationships", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.onRelations(func(client trustdomainv1.TrustDomainClient) error {
			var all []*types.FederationRelationship
			for token := ""; ; {
				resp, err := client.ListFederationRelationships(c.Context(), &trustdomainv1.ListFederationRelationshipsRequest{PageSize: 100, PageToken: token})
				if err != nil {
					return err
				}
				all = append(all, resp.FederationRelationships...)
				if token = resp.NextPageToken; token == "" {
					return a.showRelations(all)
				}
			}
		})
	}}
}

func (a *app) relationShow() *cobra.Command {
	var id string
	c := &cobra.Command{Use: "show --trust-domain NAME", Short: "Shows the relationship with a trust domain", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		td, err := trustDomain(id)
		if err != nil {
			return err
		}
		return a.onRelations(func(client trustdomainv1.TrustDomainClient) error {
			r, err := client.GetFederationRelationship(c.Context(), &trustdomainv1.GetFederationRelationshipRequest{TrustDomain: td.Name()})
			if err != nil {
				return err
			}
			return a.showRelations([]*types.FederationRelationship{r})
		})
	}}
	c.Flags().StringVar(&id, "trust-domain", "", "trust domain")
	return required(c, "trust-domain")
}

func (a *app) relationRefresh() *cobra.Command {
	var id string
	c := &cobra.Command{Use: "refresh --id TRUST-DOMAIN", Short: "Fetches the bundle of a trust domain now", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		td, err := trustDomain(id)
		if err != nil {
			return err
		}
		return a.onRelations(func(client trustdomainv1.TrustDomainClient) error {
			resp, err := client.RefreshBundle(c.Context(), &trustdomainv1.RefreshBundleRequest{TrustDomain: td.Name()})
			if err != nil {
				return err
			}
			return a.Show(resp, func(w io.Writer) { fmt.Fprintf(w, "fetched the bundle of %s\n", td.Name()) })
		})
	}}
	c.Flags().StringVar(&id, "id", "", "trust domain")
	return required(c, "id")
}

func (a *app) showRelations(rs []*types.FederationRelationship) error {
	return a.Show(cli.Messages(rs), func(w io.Writer) {
		for _, r := range rs {
			profile := "https_web"
			if s := r.GetHttpsSpiffe(); s != nil {
				profile = "https_spiffe, " + s.EndpointSpiffeId
			}
			fmt.Fprintf(w, "%s\n  url\t%s\n  profile\t%s\n  bundle\t%s\n", r.TrustDomain, r.BundleEndpointUrl, profile, bundleSummary(r.TrustDomainBundle))
		}
		if len(rs) == 0 {
			fmt.Fprintln(w, "no relationships")
		}
	})
}

// bundleSummary says how much is in a bundle.
func bundleSummary(b *types.Bundle) string {
	if b == nil {
		return "none yet"
	}
	var parts []string
	for _, p := range []struct {
		kind string
		n    int
	}{{"X.509", len(b.X509Authorities)}, {"JWT", len(b.JwtAuthorities)}, {"WIT", len(b.WitAuthorities)}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, p.kind))
		}
	}
	if len(parts) == 0 {
		return fmt.Sprintf("empty, sequence %d", b.SequenceNumber)
	}
	return fmt.Sprintf("%s, sequence %d", strings.Join(parts, ", "), b.SequenceNumber)
}
