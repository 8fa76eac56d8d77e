// SPDX-License-Identifier: Apache-2.0

package authorities

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/cmd/assay/cli"
)

func (a *app) bundle() *cobra.Command {
	return cli.Group("bundle", "The trust domain's authorities, and those of others", a.bundleShow(), a.bundleList(), a.bundleSet(), a.bundleDelete(), a.bundleCount())
}

func (a *app) onBundles(f func(bundlev1.BundleClient) error) error {
	return client(a, bundlev1.NewBundleClient, f)
}

func (a *app) bundleShow() *cobra.Command {
	var format string
	c := &cobra.Command{Use: "show", Short: "Shows our own bundle", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		if err := checkFormat("format", format); err != nil {
			return err
		}
		return a.onBundles(func(client bundlev1.BundleClient) error {
			b, err := client.GetBundle(c.Context(), &bundlev1.GetBundleRequest{})
			if err != nil {
				return err
			}
			text, err := bundleText(b, format)
			if err != nil {
				return err
			}
			return a.Show(b, func(w io.Writer) { fmt.Fprint(w, text) })
		})
	}}
	c.Flags().StringVar(&format, "format", formatPEM, formatUsage)
	return c
}

func (a *app) bundleList() *cobra.Command {
	var id, format string
	c := &cobra.Command{Use: "list", Short: "Shows the bundles of other trust domains, or of one", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		if err := checkFormat("format", format); err != nil {
			return err
		}
		return a.onBundles(func(client bundlev1.BundleClient) error {
			bundles, err := federated(c, client, id)
			if err != nil {
				return err
			}
			texts := make([]string, len(bundles))
			for i, b := range bundles {
				if texts[i], err = bundleText(b, format); err != nil {
					return err
				}
			}
			return a.Show(cli.Messages(bundles), func(w io.Writer) {
				for i, b := range bundles {
					if id == "" {
						fmt.Fprintf(w, "# %s\n", b.TrustDomain)
					}
					fmt.Fprint(w, texts[i])
				}
			})
		})
	}}
	c.Flags().StringVar(&id, "id", "", "only the bundle of this trust domain")
	c.Flags().StringVar(&format, "format", formatPEM, formatUsage)
	return c
}

// federated returns the bundle of one other trust domain, or of all for "".
func federated(c *cobra.Command, client bundlev1.BundleClient, id string) (all []*types.Bundle, err error) {
	if id != "" {
		td, err := trustDomain(id)
		if err != nil {
			return nil, err
		}
		b, err := client.GetFederatedBundle(c.Context(), &bundlev1.GetFederatedBundleRequest{TrustDomain: td.Name()})
		return []*types.Bundle{b}, err
	}
	for token := ""; ; {
		resp, err := client.ListFederatedBundles(c.Context(), &bundlev1.ListFederatedBundlesRequest{PageSize: 100, PageToken: token})
		if err != nil {
			return nil, err
		}
		all = append(all, resp.Bundles...)
		if token = resp.NextPageToken; token == "" {
			return all, nil
		}
	}
}

func (a *app) bundleSet() *cobra.Command {
	var id, path, format string
	c := &cobra.Command{Use: "set --id TRUST-DOMAIN", Short: "Creates or replaces the bundle of another trust domain, from a file or standard input", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		td, err := trustDomain(id)
		if err != nil {
			return err
		}
		if err := checkFormat("format", format); err != nil {
			return err
		}
		data, err := readInput(c, path)
		if err != nil {
			return fmt.Errorf("read the bundle: %w", err)
		}
		b, err := readBundle(td, format, data)
		if err != nil {
			return err
		}
		return a.onBundles(func(client bundlev1.BundleClient) error {
			resp, err := client.BatchSetFederatedBundle(c.Context(), &bundlev1.BatchSetFederatedBundleRequest{Bundle: []*types.Bundle{b}})
			if err != nil {
				return err
			}
			r := resp.Results[0]
			if err := cli.Failed("the bundle of "+td.Name()+" was not set", r.Status); err != nil {
				return err
			}
			return a.Show(r.Bundle, func(w io.Writer) { fmt.Fprintf(w, "set the bundle of %s\n", td.Name()) })
		})
	}}
	c.Flags().StringVar(&id, "id", "", "trust domain")
	c.Flags().StringVar(&path, "path", "", "file with the bundle (default: standard input)")
	c.Flags().StringVar(&format, "format", formatPEM, formatUsage)
	return required(c, "id")
}

func (a *app) bundleDelete() *cobra.Command {
	modes := map[string]bundlev1.BatchDeleteFederatedBundleRequest_Mode{
		"restrict": bundlev1.BatchDeleteFederatedBundleRequest_RESTRICT, "delete": bundlev1.BatchDeleteFederatedBundleRequest_DELETE, "dissociate": bundlev1.BatchDeleteFederatedBundleRequest_DISSOCIATE,
	}
	var id, mode string
	c := &cobra.Command{Use: "delete --id TRUST-DOMAIN", Short: "Deletes the bundle of another trust domain", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		td, err := trustDomain(id)
		if err != nil {
			return err
		}
		m, ok := modes[mode]
		if !ok {
			return fmt.Errorf("--mode %s: the modes are restrict, delete and dissociate", mode)
		}
		return a.onBundles(func(client bundlev1.BundleClient) error {
			resp, err := client.BatchDeleteFederatedBundle(c.Context(), &bundlev1.BatchDeleteFederatedBundleRequest{TrustDomains: []string{td.Name()}, Mode: m})
			if err != nil {
				return err
			}
			if err := cli.Failed("the bundle of "+td.Name()+" was not deleted", resp.Results[0].Status); err != nil {
				return err
			}
			return a.Show(resp, func(w io.Writer) { fmt.Fprintf(w, "deleted the bundle of %s\n", td.Name()) })
		})
	}}
	c.Flags().StringVar(&id, "id", "", "trust domain")
	c.Flags().StringVar(&mode, "mode", "restrict", "what happens to entries that federate with it: restrict (it is not deleted then), delete (they are, too) or dissociate (they no longer federate with it)")
	return required(c, "id")
}

func (a *app) bundleCount() *cobra.Command {
	return &cobra.Command{Use: "count", Short: "Counts the bundles, our own included", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.onBundles(func(client bundlev1.BundleClient) error {
			n, err := client.CountBundles(c.Context(), &bundlev1.CountBundlesRequest{})
			if err != nil {
				return err
			}
			return a.Show(n, func(w io.Writer) { fmt.Fprintln(w, n.Count) })
		})
	}}
}
