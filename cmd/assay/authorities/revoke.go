// SPDX-License-Identifier: Apache-2.0

package authorities

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/assay/cli"
	revocationpb "github.com/assay-id/assay/proto/revocation"
)

// reasons of RFC 5280, section 5.3.1, that an SVID may be revoked for.
var reasons = map[string]int32{
	"unspecified": 0, "keyCompromise": 1, "affiliationChanged": 3, "superseded": 4, "cessationOfOperation": 5, "privilegeWithdrawn": 9,
}

func reasonText(code int32) string {
	for name, c := range reasons {
		if c == code {
			return name
		}
	}
	return fmt.Sprint(code)
}

func (a *app) svid() *cobra.Command {
	return cli.Group("svid", "X.509-SVIDs that were issued, taken back before they end", a.svidRevoke(), a.svidRevoked())
}

func (a *app) svidRevoke() *cobra.Command {
	var req revocationpb.RevokeRequest
	var reason, file string
	c := &cobra.Command{Use: "revoke", Short: "Revokes X.509-SVIDs: those issued until now that all of the given flags fit, or the one in a file",
		Long: "Revokes X.509-SVIDs: those issued until now that all of the given flags fit, or the one in a file.\n" +
			"Workloads that are still entitled get new ones at once. JWT- and WIT-SVIDs can not be revoked; they end soon (docs/revocation.md).",
		Example: "assay svid revoke --node spiffe://example.org/spire/agent/tpm/3f… --reason keyCompromise --why \"INC-17\"",
		Args:    cobra.NoArgs}
	f := c.Flags()
	f.StringVar(&req.Serial, "serial", "", "serial number, decimal, or hexadecimal as 0x… or 12:ab:…")
	f.StringVar(&req.AuthorityId, "authority", "", "subject key id of the authority that signed, hexadecimal (assay localauthority x509 show)")
	f.StringVar(&file, "file", "", "PEM file with the certificate, and those between it and the root (- is standard input); the servers need no record of it")
	f.StringVar(&req.SpiffeId, "spiffe-id", "", "identity, of a workload or an agent")
	f.StringVar(&req.EntryId, "entry", "", "id of the registration entry")
	f.StringVar(&req.NodeId, "node", "", "SPIFFE ID of the agent whose workloads hold them")
	f.StringVar(&req.Sha256, "sha256", "", "SHA-256 of the executable that they were issued to, hexadecimal")
	f.StringVar(&reason, "reason", "unspecified", strings.Join(slices.Sorted(maps.Keys(reasons)), ", "))
	f.StringVar(&req.Why, "why", "", "why, for the record")
	c.RunE = func(c *cobra.Command, _ []string) error {
		code, ok := reasons[reason]
		if !ok {
			return fmt.Errorf("--reason %s: write one of %s", reason, strings.Join(slices.Sorted(maps.Keys(reasons)), ", "))
		}
		req.Reason = code
		var err error
		if req.Serial, err = serialText(req.Serial); err != nil {
			return err
		}
		if file != "" {
			data, err := readInput(c, file)
			if err == nil {
				req.Certificates, err = certificates(data)
			}
			if err != nil {
				return fmt.Errorf("--file: %w", err)
			}
		}
		return client(a, revocationpb.NewRevocationClient, func(client revocationpb.RevocationClient) error {
			resp, err := client.Revoke(c.Context(), &req)
			if err != nil {
				return err
			}
			if err := a.Show(resp, func(w io.Writer) {
				fmt.Fprintf(w, "revoked %d\n", resp.Revoked)
				for _, server := range resp.Waiting {
					fmt.Fprintf(w, "waiting for server %s, which revokes what it signed when it is back\n", server)
				}
			}); err != nil {
				return err
			}
			if len(resp.Failed) > 0 {
				return errors.New(strings.Join(resp.Failed, "; "))
			}
			return nil
		})
	}
	return c
}

// serialText returns a serial number in decimal.
func serialText(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	n, base := strings.ReplaceAll(text, ":", ""), 10
	if n != text {
		base = 16
	} else if rest, hex := strings.CutPrefix(text, "0x"); hex {
		n, base = rest, 16
	}
	v, ok := new(big.Int).SetString(n, base)
	if !ok || v.Sign() <= 0 {
		return "", fmt.Errorf("--serial %s: write it in decimal, or in hexadecimal as 0x… or 12:ab:…", text)
	}
	return v.String(), nil
}

func certificates(data []byte) (out [][]byte, err error) {
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			out = append(out, block.Bytes)
		}
	}
	if len(out) == 0 {
		return nil, errors.New("it holds no PEM block CERTIFICATE")
	}
	return out, nil
}

func (a *app) svidRevoked() *cobra.Command {
	return &cobra.Command{Use: "revoked", Short: "Lists the revoked SVIDs that have not expired", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return client(a, revocationpb.NewRevocationClient, func(client revocationpb.RevocationClient) error {
			resp, err := client.ListRevoked(c.Context(), &revocationpb.ListRevokedRequest{})
			if err != nil {
				return err
			}
			return a.Show(cli.Messages(resp.Revoked), func(w io.Writer) {
				fmt.Fprintln(w, "SERIAL\tIDENTITY\tREVOKED\tEXPIRES\tREASON\tBY\tIN A LIST\tWHY")
				for _, r := range resp.Revoked {
					listed := "yes"
					if !r.Listed {
						listed = "no"
					}
					fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", r.Serial, r.SpiffeId, cli.TimeText(r.RevokedAt), cli.TimeText(r.ExpiresAt), reasonText(r.Reason), r.By, listed, r.Why)
				}
			})
		})
	}}
}

func (a *app) crl() *cobra.Command {
	var authority string
	var asPEM bool
	c := &cobra.Command{Use: "show", Short: "Shows the revocation lists of all servers' authorities", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return client(a, revocationpb.NewRevocationClient, func(client revocationpb.RevocationClient) error {
			resp, err := client.ListCRLs(c.Context(), &revocationpb.ListCRLsRequest{})
			if err != nil {
				return err
			}
			if authority != "" {
				resp.Crls = slices.DeleteFunc(resp.Crls, func(l *revocationpb.CRL) bool { return l.AuthorityId != authority })
			}
			var lists []*x509.RevocationList
			for _, l := range resp.Crls {
				list, err := x509.ParseRevocationList(l.Der)
				if err != nil {
					return fmt.Errorf("the list of authority %s: %w", l.AuthorityId, err)
				}
				lists = append(lists, list)
			}
			return a.Show(cli.Messages(resp.Crls), func(w io.Writer) {
				for i, l := range lists {
					if asPEM {
						_ = pem.Encode(w, &pem.Block{Type: "X509 CRL", Bytes: l.Raw}) // the terminal's matter
						continue
					}
					fmt.Fprintf(w, "authority\t%s\nnumber\t%s\nvalid\t%s to %s\n", resp.Crls[i].AuthorityId, l.Number, l.ThisUpdate.Format(time.RFC3339), l.NextUpdate.Format(time.RFC3339))
					for _, e := range l.RevokedCertificateEntries {
						fmt.Fprintf(w, "\t%s\t%s\t%s\n", e.SerialNumber, e.RevocationTime.Format(time.RFC3339), reasonText(int32(e.ReasonCode)))
					}
				}
			})
		})
	}}
	c.Flags().StringVar(&authority, "authority", "", "only this authority's, by its subject key id in hexadecimal")
	c.Flags().BoolVar(&asPEM, "pem", false, "as PEM, for openssl verify -crl_check -CRLfile")
	return cli.Group("crl", "Revocation lists (RFC 5280)", c)
}
