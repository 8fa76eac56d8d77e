// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/assay/cli"
	adminpb "github.com/assay-id/assay/proto/agentadmin"
)

func (a *app) agentClient() (adminpb.AgentAdminClient, func(), error) {
	conn, err := cli.Dial(a.AgentSocket)
	if err != nil {
		return nil, nil, err
	}
	return adminpb.NewAgentAdminClient(conn), func() { conn.Close() }, nil
}

func (a *app) agent() *cobra.Command {
	return cli.Group("agent", "The agent of this node", a.health("agent", &a.AgentSocket), profile("agent", &a.AgentSocket), a.history(), &cobra.Command{Use: "status", Short: "Tells how the agent is, and on which kernel hooks it stands", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		client, done, err := a.agentClient()
		if err != nil {
			return err
		}
		defer done()
		s, err := client.Status(c.Context(), &adminpb.StatusRequest{})
		if err != nil {
			return err
		}
		return a.Show(s, func(w io.Writer) {
			fmt.Fprintf(w, "node\t%s until %s\ntier\t%s\nserver\t%s\nview\trevision %d from %s\n", s.AgentId, cli.TimeText(s.SvidExpiresAt), cli.TierText(s.Tier), serverText(s), s.Revision, cli.TimeText(s.SyncedAt))
			for _, text := range s.Degraded {
				fmt.Fprintf(w, "degraded\t%s\n", text)
			}
			fmt.Fprintf(w, "entries\t%d\nsvids\t%d\nstreams\t%d\nlost events\t%d\nrefused tries\t%d\n", s.Entries, s.Svids, s.Streams, s.LostEvents, s.Refused)
			for _, h := range s.Hooks {
				fmt.Fprintf(w, "hook\t%s\t%s\t%s\n", h.Name, h.State, h.Detail)
			}
		})
	}})
}

// serverText is how the agent's conversation with the server is.
func serverText(s *adminpb.StatusResponse) string {
	text := s.State + " since " + cli.TimeText(s.StateSince)
	if s.ServerAddress != "" {
		text += ", last heard " + s.ServerAddress
	}
	if s.NextTry != 0 {
		text += ", next try " + cli.TimeText(s.NextTry)
	}
	if s.StateReason != "" {
		text += ": " + s.StateReason
	}
	return text
}
