// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/pem"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/cmd/assay/cli"
)

// fetched is an X.509-SVID as printed; never its key.
type fetched struct {
	SPIFFEID    string    `json:"spiffe_id"`
	Serial      string    `json:"serial"`
	NotAfter    time.Time `json:"not_after"`
	DNSNames    []string  `json:"dns_names,omitempty"`
	Hint        string    `json:"hint,omitempty"`
	Authorities int       `json:"authorities"`
}

func summary(x *workloadapi.X509Context) []fetched {
	var out []fetched
	for _, s := range x.SVIDs {
		leaf := s.Certificates[0]
		n := 0
		if b, ok := x.Bundles.Get(s.ID.TrustDomain()); ok {
			n = len(b.X509Authorities())
		}
		out = append(out, fetched{s.ID.String(), leaf.SerialNumber.String(), leaf.NotAfter.UTC(), leaf.DNSNames, s.Hint, n})
	}
	return out
}

func fetchedText(w io.Writer, list []fetched) {
	for _, f := range list {
		fmt.Fprintf(w, "%s\n  serial\t%s\n  until\t%s\n  authorities\t%d\n", f.SPIFFEID, f.Serial, f.NotAfter.Format(time.RFC3339), f.Authorities)
		for _, d := range f.DNSNames {
			fmt.Fprintf(w, "  dns\t%s\n", d)
		}
		if f.Hint != "" {
			fmt.Fprintf(w, "  hint\t%s\n", f.Hint)
		}
	}
}

func (a *app) fetch() *cobra.Command {
	var dir string
	var timeout time.Duration
	c := &cobra.Command{Use: "x509", Short: "Fetches this process's own X.509-SVIDs from the Workload API", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		ctx, cancel := context.WithTimeout(c.Context(), timeout)
		defer cancel()
		x, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(a.WorkloadSocket))
		if err != nil {
			return err
		}
		if dir != "" {
			if err := writeSVIDs(dir, x); err != nil {
				return err
			}
		}
		list := summary(x)
		return a.Show(list, func(w io.Writer) { fetchedText(w, list) })
	}}
	c.Flags().StringVar(&dir, "write", "", "folder to write svid.N.pem, svid.N.key and bundle.N.pem to")
	c.Flags().DurationVar(&timeout, "timeout", 5*time.Second, "how long to wait")
	return cli.Group("fetch", "What this process would receive as a workload", c)
}

// writeSVIDs writes keys with mode 0600, in the names of SPIRE's `api fetch x509 -write`.
func writeSVIDs(dir string, x *workloadapi.X509Context) error {
	for i, s := range x.SVIDs {
		certs, key, err := s.Marshal()
		if err != nil {
			return fmt.Errorf("encode SVID: %w", err)
		}
		var bundle []byte
		if b, ok := x.Bundles.Get(s.ID.TrustDomain()); ok {
			for _, c := range b.X509Authorities() {
				bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
			}
		}
		for name, data := range map[string][]byte{"svid.%d.pem": certs, "svid.%d.key": key, "bundle.%d.pem": bundle} {
			if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf(name, i)), data, 0o600); err != nil {
				return fmt.Errorf("write SVID: %w", err)
			}
		}
	}
	return nil
}

func (a *app) watch() *cobra.Command {
	return &cobra.Command{Use: "watch", Short: "Prints this process's identities and every change of them as it happens", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		client, err := workloadapi.New(c.Context(), workloadapi.WithAddr(a.WorkloadSocket))
		if err != nil {
			return err
		}
		defer client.Close()
		err = client.WatchX509Context(c.Context(), &watcher{a})
		if status.Code(err) == codes.Canceled {
			return nil
		}
		return err
	}}
}

type watcher struct{ a *app }

func (w *watcher) OnX509ContextUpdate(x *workloadapi.X509Context) {
	list := summary(x)
	if err := w.a.Show(list, func(out io.Writer) {
		fmt.Fprintf(out, "%s\n", time.Now().UTC().Format("15:04:05.000"))
		fetchedText(out, list)
	}); err != nil {
		fmt.Fprintln(os.Stderr, "assay:", err)
	}
}

func (w *watcher) OnX509ContextWatchError(err error) { fmt.Fprintln(os.Stderr, "assay:", err) }
