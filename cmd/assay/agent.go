// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/assay/cli"
	adminpb "github.com/assay-id/assay/proto/agentadmin"
	evidencepb "github.com/assay-id/assay/proto/evidence"
)

func (a *app) agentClient() (adminpb.AgentAdminClient, func(), error) {
	conn, err := cli.Dial(a.AgentSocket)
	if err != nil {
		return nil, nil, err
	}
	return adminpb.NewAgentAdminClient(conn), func() { conn.Close() }, nil
}

func tierText(t evidencepb.Tier) string {
	switch t {
	case evidencepb.Tier_TIER_T1:
		return "T1 (BPF LSM)"
	case evidencepb.Tier_TIER_T2:
		return "T2 (tracepoints and cgroup programs)"
	case evidencepb.Tier_TIER_T3:
		return "T3 (pidfd and /proc)"
	}
	return "none"
}

func (a *app) agent() *cobra.Command {
	return cli.Group("agent", "The agent of this node", a.history(), &cobra.Command{Use: "status", Short: "Tells how the agent is, and on which kernel hooks it stands", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
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
			fmt.Fprintf(w, "node\t%s until %s\ntier\t%s\nserver\tconnected=%v, view of revision %d from %s\n", s.AgentId, cli.TimeText(s.SvidExpiresAt), tierText(s.Tier), s.Connected, s.Revision, cli.TimeText(s.SyncedAt))
			fmt.Fprintf(w, "entries\t%d\nsvids\t%d\nstreams\t%d\nlost events\t%d\nrefused tries\t%d\n", s.Entries, s.Svids, s.Streams, s.LostEvents, s.Refused)
			for _, h := range s.Hooks {
				fmt.Fprintf(w, "hook\t%s\t%s\t%s\n", h.Name, h.State, h.Detail)
			}
		})
	}})
}

func (a *app) explain() *cobra.Command {
	var pid int32
	c := &cobra.Command{Use: "explain --pid N", Short: "Tells what the agent knows of a process, and which identity it gets or lacks what for", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		client, done, err := a.agentClient()
		if err != nil {
			return err
		}
		defer done()
		x, err := client.Explain(c.Context(), &adminpb.ExplainRequest{Pid: pid})
		if err != nil {
			return err
		}
		return a.Show(x, func(w io.Writer) { explainText(w, pid, x) })
	}}
	c.Flags().Int32Var(&pid, "pid", 0, "process to explain")
	if err := c.MarkFlagRequired("pid"); err != nil {
		panic(err)
	}
	return c
}

func explainText(w io.Writer, pid int32, x *adminpb.ExplainResponse) {
	if x.Refusal != "" {
		fmt.Fprintf(w, "process %d gets no identity: %s\n", pid, x.Refusal)
		return
	}
	f := x.Facts
	fmt.Fprintf(w, "process %d runs %s (exec %d, tier %s)\n", pid, f.GetExecutable().GetPath(), f.GetProcess().GetExecId(), tierText(f.GetTier()))
	for i, anc := range f.GetAncestors() {
		what := anc.GetExecutable().GetPath()
		if what == "" {
			what = "unknown: no process runs it any more, or its file can change while it runs"
		}
		fmt.Fprintf(w, "  ancestor %d\t%s\n", i+1, what)
	}
	for _, s := range x.Selectors {
		fmt.Fprintf(w, "  has\t%s\n", s)
	}
	for _, m := range x.Matches {
		fmt.Fprintf(w, "matches entry %s: %s\n", m.EntryId, m.SpiffeId)
	}
	if len(x.Matches) == 0 {
		fmt.Fprintln(w, "matches no entry")
	}
	for _, m := range x.Nearest {
		fmt.Fprintf(w, "not entry %s: %s, it lacks\n", m.EntryId, m.SpiffeId)
		for _, s := range m.Missing {
			fmt.Fprintf(w, "  lacks\t%s\n", s)
		}
	}
}
