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
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
)

// onServer runs f with a connection to the server's admin socket.
func (a *app) onServer(f func(conn *grpc.ClientConn) error) error {
	conn, err := dial(a.serverSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(conn)
}

func (a *app) node() *cobra.Command {
	one := func(use, short string, call func(c *cobra.Command, client agentv1.AgentClient, id *types.SPIFFEID) error) *cobra.Command {
		return &cobra.Command{Use: use + " SPIFFE-ID", Short: short, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			id, err := parseID(args[0])
			if err != nil {
				return err
			}
			return a.onServer(func(conn *grpc.ClientConn) error { return call(c, agentv1.NewAgentClient(conn), id) })
		}}
	}
	return group("node", "The machines that were attested",
		&cobra.Command{Use: "list", Short: "Lists the attested nodes", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return a.onServer(func(conn *grpc.ClientConn) error { return a.listNodes(c, agentv1.NewAgentClient(conn)) })
		}},
		one("show", "Shows a node and the selectors that it proved", func(c *cobra.Command, client agentv1.AgentClient, id *types.SPIFFEID) error {
			n, err := client.GetAgent(c.Context(), &agentv1.GetAgentRequest{Id: id})
			if err != nil {
				return err
			}
			return a.show(n, func(w io.Writer) { showNode(w, n, true) })
		}),
		one("ban", "Bans a node: its SVID and those of its workloads are no longer renewed, and it can not attest again", func(c *cobra.Command, client agentv1.AgentClient, id *types.SPIFFEID) error {
			_, err := client.BanAgent(c.Context(), &agentv1.BanAgentRequest{Id: id})
			return err
		}),
		one("evict", "Forgets a node; one that can attest anew does so at once", func(c *cobra.Command, client agentv1.AgentClient, id *types.SPIFFEID) error {
			_, err := client.DeleteAgent(c.Context(), &agentv1.DeleteAgentRequest{Id: id})
			return err
		}),
	)
}

func (a *app) listNodes(c *cobra.Command, client agentv1.AgentClient) error {
	var nodes []*types.Agent
	for token := ""; ; {
		resp, err := client.ListAgents(c.Context(), &agentv1.ListAgentsRequest{PageSize: 500, PageToken: token})
		if err != nil {
			return err
		}
		nodes = append(nodes, resp.Agents...)
		if token = resp.NextPageToken; token == "" {
			break
		}
	}
	return a.show(messages(nodes), func(w io.Writer) {
		for _, n := range nodes {
			showNode(w, n, false)
		}
		if len(nodes) == 0 {
			fmt.Fprintln(w, "no nodes")
		}
	})
}

func showNode(w io.Writer, n *types.Agent, all bool) {
	state := "admitted"
	if n.Banned {
		state = "banned"
	}
	fmt.Fprintf(w, "%s\n  state\t%s by %s\n  svid\tserial %s, until %s\n", idText(n.Id), state, n.AttestationType, n.X509SvidSerialNumber, timeText(n.X509SvidExpiresAt))
	for _, s := range n.Selectors {
		if all {
			fmt.Fprintf(w, "  selector\t%s:%s\n", s.Type, s.Value)
		}
	}
	if !all {
		fmt.Fprintf(w, "  selectors\t%d (assay node show)\n", len(n.Selectors))
	}
}

func (a *app) token() *cobra.Command {
	var ttl time.Duration
	var id, alias string
	c := &cobra.Command{Use: "create", Short: "Makes a join token, which admits one node once", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.onServer(func(conn *grpc.ClientConn) error {
			req := &agentv1.CreateJoinTokenRequest{Ttl: int32(ttl / time.Second), Token: id}
			if alias != "" {
				var err error
				if req.AgentId, err = parseID(alias); err != nil {
					return err
				}
			}
			t, err := agentv1.NewAgentClient(conn).CreateJoinToken(c.Context(), req)
			if err != nil {
				return err
			}
			return a.show(t, func(w io.Writer) { fmt.Fprintf(w, "Token: %s\n", t.Value) })
		})
	}}
	c.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the token can be used")
	c.Flags().StringVar(&id, "token", "", "the token's text (default: random)")
	c.Flags().StringVar(&alias, "spiffe-id", "", "a second name for the node, to be the parent of entries")
	return group("token", "Join tokens for nodes without a TPM", c)
}

func (a *app) bundle() *cobra.Command {
	return group("bundle", "The trust domain's authorities", &cobra.Command{Use: "show", Short: "Shows the bundle as PEM", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.onServer(func(conn *grpc.ClientConn) error {
			b, err := bundlev1.NewBundleClient(conn).GetBundle(c.Context(), &bundlev1.GetBundleRequest{})
			if err != nil {
				return err
			}
			return a.show(b, func(w io.Writer) {
				for _, x := range b.X509Authorities {
					_ = pem.Encode(w, &pem.Block{Type: "CERTIFICATE", Bytes: x.Asn1})
				}
			})
		})
	}})
}

func (a *app) server() *cobra.Command {
	return group("server", "The server", &cobra.Command{Use: "status", Short: "Tells how the server is", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.onServer(func(conn *grpc.ClientConn) error {
			info, err := debugv1.NewDebugClient(conn).GetInfo(c.Context(), &debugv1.GetInfoRequest{})
			if err != nil {
				return err
			}
			h, err := healthv1.NewHealthClient(conn).Check(c.Context(), &healthv1.HealthCheckRequest{})
			if err != nil {
				return err
			}
			return a.show(info, func(w io.Writer) {
				fmt.Fprintf(w, "health\t%s\nuptime\t%s\nnodes\t%d\nentries\t%d\n", h.Status, time.Duration(info.Uptime)*time.Second, info.AgentsCount, info.EntriesCount)
				for _, s := range info.SvidChain {
					fmt.Fprintf(w, "svid\t%s until %s\n", idText(s.Id), timeText(s.ExpiresAt))
				}
			})
		})
	}})
}
