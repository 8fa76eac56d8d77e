// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/pem"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/assay-id/assay/cmd/assay/cli"
)

func (a *app) token() *cobra.Command {
	var ttl time.Duration
	var id, alias string
	c := &cobra.Command{Use: "create", Short: "Makes a join token, which admits one node once", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.OnServer(func(conn *grpc.ClientConn) error {
			req := &agentv1.CreateJoinTokenRequest{Ttl: int32(ttl / time.Second), Token: id}
			if alias != "" {
				var err error
				if req.AgentId, err = cli.ParseID(alias); err != nil {
					return err
				}
			}
			t, err := agentv1.NewAgentClient(conn).CreateJoinToken(c.Context(), req)
			if err != nil {
				return err
			}
			return a.Show(t, func(w io.Writer) { fmt.Fprintf(w, "Token: %s\n", t.Value) })
		})
	}}
	c.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the token can be used")
	c.Flags().StringVar(&id, "token", "", "the token's text (default: random)")
	c.Flags().StringVar(&alias, "spiffe-id", "", "a second name for the node, to be the parent of entries")
	return cli.Group("token", "Join tokens for nodes without a TPM", c)
}

func (a *app) bundle() *cobra.Command {
	return cli.Group("bundle", "The trust domain's authorities", &cobra.Command{Use: "show", Short: "Shows the bundle as PEM", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.OnServer(func(conn *grpc.ClientConn) error {
			b, err := bundlev1.NewBundleClient(conn).GetBundle(c.Context(), &bundlev1.GetBundleRequest{})
			if err != nil {
				return err
			}
			return a.Show(b, func(w io.Writer) {
				for _, x := range b.X509Authorities {
					_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: x.Asn1})
				}
			})
		})
	}})
}

func (a *app) server() *cobra.Command {
	return cli.Group("server", "The server", &cobra.Command{Use: "status", Short: "Tells how the server is", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.OnServer(func(conn *grpc.ClientConn) error {
			info, err := debugv1.NewDebugClient(conn).GetInfo(c.Context(), &debugv1.GetInfoRequest{})
			if err != nil {
				return err
			}
			h, err := healthv1.NewHealthClient(conn).Check(c.Context(), &healthv1.HealthCheckRequest{})
			if err != nil {
				return err
			}
			return a.Show(info, func(w io.Writer) {
				fmt.Fprintf(w, "health\t%s\nuptime\t%s\nnodes\t%d\nentries\t%d\n", h.Status, time.Duration(info.Uptime)*time.Second, info.AgentsCount, info.EntriesCount)
				for _, s := range info.SvidChain {
					fmt.Fprintf(w, "svid\t%s until %s\n", cli.IDText(s.Id), cli.TimeText(s.ExpiresAt))
				}
			})
		})
	}})
}
