// SPDX-License-Identifier: Apache-2.0

// Package machines is what operators do with machines: the nodes that the server knows, and TPMs.
package machines

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/cmd/assay/cli"
	adminpb "github.com/assay-id/assay/proto/nodeadmin"
)

// Commands are `assay node` and `assay tpm`.
func Commands(shared *cli.App) []*cobra.Command {
	a := &app{shared}
	return []*cobra.Command{a.node(), a.tpm()}
}

// app is what the commands share.
type app struct{ *cli.App }

// onNodes runs f with the server's service for nodes.
func (a *app) onNodes(f func(client adminpb.NodeAdminClient) error) error {
	return a.OnServer(func(conn *grpc.ClientConn) error { return f(adminpb.NewNodeAdminClient(conn)) })
}

func (a *app) node() *cobra.Command {
	one := func(use, short string, call func(ctx context.Context, client adminpb.NodeAdminClient, id string) (*adminpb.Node, error)) *cobra.Command {
		return &cobra.Command{Use: use + " SPIFFE-ID", Short: short, Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
			return a.onNodes(func(client adminpb.NodeAdminClient) error {
				n, err := call(c.Context(), client, args[0])
				if err != nil {
					return err
				}
				return a.Show(n, func(w io.Writer) { showNode(w, n, c.Name() == "show") })
			})
		}}
	}
	var why string
	reason := func(c *cobra.Command) *cobra.Command {
		c.Flags().StringVar(&why, "reason", "", "why, for the record and for the node's operator")
		return c
	}
	return cli.Group("node", "The machines that were attested",
		a.nodeList(),
		one("show", "Shows a node: its state and why, what was checked, and the selectors that it proved", func(ctx context.Context, client adminpb.NodeAdminClient, id string) (*adminpb.Node, error) {
			return client.GetNode(ctx, &adminpb.GetNodeRequest{SpiffeId: id})
		}),
		one("approve", "Lets in a node that is pending: its TPM goes into the inventory, and it attests again by itself", func(ctx context.Context, client adminpb.NodeAdminClient, id string) (*adminpb.Node, error) {
			return client.Approve(ctx, &adminpb.ApproveRequest{SpiffeId: id})
		}),
		reason(one("suspend", "Stops serving a node until it is readmitted; the X.509-SVIDs of its workloads are revoked (unless revocation { on_suspend = false })", func(ctx context.Context, client adminpb.NodeAdminClient, id string) (*adminpb.Node, error) {
			return client.Suspend(ctx, &adminpb.SuspendRequest{SpiffeId: id, Reason: why})
		})),
		one("readmit", "Ends a suspension; a node with a TPM must attest again in full", func(ctx context.Context, client adminpb.NodeAdminClient, id string) (*adminpb.Node, error) {
			return client.Readmit(ctx, &adminpb.ReadmitRequest{SpiffeId: id})
		}),
		reason(one("ban", "Bans a node: its SVID and those of its workloads are no longer renewed, and it can not attest again", func(ctx context.Context, client adminpb.NodeAdminClient, id string) (*adminpb.Node, error) {
			return client.Ban(ctx, &adminpb.BanRequest{SpiffeId: id, Reason: why})
		})),
		a.nodeEvict(),
	)
}

func (a *app) nodeEvict() *cobra.Command {
	return &cobra.Command{Use: "evict SPIFFE-ID", Short: "Forgets a node; one that can attest anew does so at once", Args: cobra.ExactArgs(1), RunE: func(c *cobra.Command, args []string) error {
		id, err := cli.ParseID(args[0])
		if err != nil {
			return err
		}
		return a.OnServer(func(conn *grpc.ClientConn) error {
			_, err := agentv1.NewAgentClient(conn).DeleteAgent(c.Context(), &agentv1.DeleteAgentRequest{Id: id})
			return err
		})
	}}
}

func (a *app) nodeList() *cobra.Command {
	var state string
	c := &cobra.Command{Use: "list", Short: "Lists the attested nodes", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		switch state {
		case "", "pending", "admitted", "suspended", "banned":
		default:
			return fmt.Errorf("--state %s: the states are pending, admitted, suspended and banned", state)
		}
		var nodes []*adminpb.Node
		err := a.onNodes(func(client adminpb.NodeAdminClient) error {
			for token := ""; ; {
				resp, err := client.ListNodes(c.Context(), &adminpb.ListNodesRequest{State: state, PageSize: 500, PageToken: token})
				if err != nil {
					return err
				}
				nodes = append(nodes, resp.Nodes...)
				if token = resp.NextPageToken; token == "" {
					return nil
				}
			}
		})
		if err != nil {
			return err
		}
		return a.Show(cli.Messages(nodes), func(w io.Writer) {
			for _, n := range nodes {
				showNode(w, n, false)
			}
			if len(nodes) == 0 {
				fmt.Fprintln(w, "no nodes")
			}
		})
	}}
	c.Flags().StringVar(&state, "state", "", "only nodes that are pending, admitted, suspended or banned")
	return c
}

func showNode(w io.Writer, n *adminpb.Node, all bool) {
	fmt.Fprintf(w, "%s\n  state\t%s\n", n.SpiffeId, standingText(n.Standing))
	fmt.Fprintf(w, "  attested\tby %s, %s\n", n.AttestationType, cli.TimeText(n.AttestedAt))
	if n.SvidSerial == "" {
		fmt.Fprintln(w, "  svid\tnone")
	} else {
		fmt.Fprintf(w, "  svid\tserial %s, until %s\n", n.SvidSerial, cli.TimeText(n.SvidExpiresAt))
	}
	if d := n.Device; d != nil {
		fmt.Fprintf(w, "  inventory\t%s\n", deviceText(d))
	}
	switch n.Standing.GetState() {
	case "pending":
		fmt.Fprintf(w, "  next\tassay node approve %s\n", n.SpiffeId)
	case "suspended":
		fmt.Fprintf(w, "  next\tassay node readmit %s\n", n.SpiffeId)
	case "banned":
		fmt.Fprintf(w, "  next\tassay node evict %s, to let it attest again\n", n.SpiffeId)
	}
	if !all {
		return
	}
	if n.AgentVersion != "" {
		fmt.Fprintf(w, "  agent\tversion %s\n", n.AgentVersion)
	}
	fmt.Fprintf(w, "  known\tsince %s\n", cli.TimeText(n.CreatedAt))
	for i := len(n.History) - 1; i >= 0; i-- {
		fmt.Fprintf(w, "  before\t%s\n", standingText(n.History[i]))
	}
	for _, v := range n.Vouched[max(0, len(n.Vouched)-vouchedShown):] {
		fmt.Fprintf(w, "  delivered\t%d:%x by %s, vouched for by the TPM\n", v.Count, v.Head, cli.TimeText(v.At))
	}
	for _, c := range n.Checks {
		fmt.Fprintf(w, "  checked\t%s: %s\n", c.Name, c.Detail)
	}
	for _, s := range n.Selectors {
		fmt.Fprintf(w, "  selector\t%s\n", s)
	}
}

// vouchedShown are the last ones; with -o json all that the server knows are shown.
const vouchedShown = 3

// standingText is "suspended since <time> by drift: <reason>".
func standingText(s *adminpb.Standing) string {
	text := s.GetState() + " since " + cli.TimeText(s.GetSince())
	if s.GetBy() != "" {
		text += " by " + s.GetBy()
	}
	if s.GetReason() != "" {
		text += ": " + s.GetReason()
	}
	return text
}

// deviceText is what an operator wrote about a TPM.
func deviceText(d *adminpb.Device) string {
	var parts []string
	for _, p := range []struct{ name, text string }{{"label", d.Label}, {"group", d.Group}, {"note", d.Note}} {
		if p.text != "" {
			parts = append(parts, p.name+" "+p.text)
		}
	}
	parts = append(parts, "added "+cli.TimeText(d.AddedAt)+" by "+d.By)
	return strings.Join(parts, ", ")
}
