// SPDX-License-Identifier: Apache-2.0

// Package explain tells why a process gets the identities that it gets: as its agent sees it, and as the server does.
package explain

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/assay/cli"
	adminpb "github.com/assay-id/assay/proto/agentadmin"
	evidencepb "github.com/assay-id/assay/proto/evidence"
)

// Command is `assay explain`.
func Command(shared *cli.App) *cobra.Command {
	a := &app{App: shared}
	c := &cobra.Command{
		Use:   "explain (REFERENCE | --last-denials N | --spiffe-id SPIFFE-ID | --pid N | --node SPIFFE-ID (--pid N | --facts FILE | --selector …))",
		Short: "Tells which identities a process gets, which it nearly gets, and what is missing",
		Long: `Tells which identities a process gets, which it nearly gets, and what is missing.

A caller who was given nothing was told a REFERENCE: the agent of this machine tells what it saw then.
--last-denials lists the last of them. --spiffe-id tells which entries of this node are for it, who was given
it lately, and who nearly. With --pid alone the agent answers by what it knows of the process now.

With --node the server's entries
are asked, also those that are not for that node; the process is one of this machine (--pid, if its agent is
that node), or what "assay explain --pid N -o json" printed on the node (--facts), or made up (--selector).`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(c *cobra.Command, args []string) error {
			switch {
			case len(args) == 1 && asks(c):
				return errors.New("a reference says all: leave the flags away, or the reference")
			case len(args) == 1:
				return a.onDenials(c.Context(), &adminpb.ListDenialsRequest{Reference: args[0]})
			case a.lastDenials > 0:
				return a.onDenials(c.Context(), &adminpb.ListDenialsRequest{Limit: a.lastDenials})
			case a.spiffeID != "":
				return a.onIdentity(c.Context())
			}
			if a.node != "" {
				return a.onServer(c)
			}
			if !c.Flags().Changed("pid") && a.facts == "" && len(a.selectors) == 0 {
				return errors.New("say what to explain: the reference that a denied caller was told, --last-denials N, --spiffe-id SPIFFE-ID, or --pid N")
			}
			if !c.Flags().Changed("pid") {
				return errors.New("--facts and --selector are for --node SPIFFE-ID (see assay node list)")
			}
			return a.onAgent(c.Context())
		},
	}
	f := c.Flags()
	f.Int32Var(&a.pid, "pid", 0, "process of this machine")
	f.StringVar(&a.node, "node", "", "ask the server, for this node")
	f.StringVar(&a.facts, "facts", "", "file with what `assay explain --pid N -o json` printed on the node (- is standard input)")
	f.StringArrayVar(&a.selectors, "selector", nil, "selector that the process would have; repeat for more")
	f.IntVar(&a.nearest, "nearest", 5, "how many entries that do not match to show")
	f.Int32Var(&a.lastDenials, "last-denials", 0, "list the last `N` callers who were given nothing")
	f.StringVar(&a.spiffeID, "spiffe-id", "", "tell who may have and who was given this SPIFFE ID on this node")
	c.MarkFlagsMutuallyExclusive("pid", "facts", "selector", "last-denials", "spiffe-id")
	c.MarkFlagsMutuallyExclusive("node", "last-denials", "spiffe-id")
	return c
}

// app is the command with its flags.
type app struct {
	*cli.App
	pid         int32
	node, facts string
	selectors   []string
	nearest     int
	lastDenials int32
	spiffeID    string
}

// asks reports whether a flag says what to explain.
func asks(c *cobra.Command) bool {
	return slices.ContainsFunc([]string{"pid", "node", "facts", "selector", "last-denials", "spiffe-id"}, c.Flags().Changed)
}

func (a *app) client() (adminpb.AgentAdminClient, func(), error) {
	conn, err := cli.Dial(a.AgentSocket)
	if err != nil {
		return nil, nil, err
	}
	return adminpb.NewAgentAdminClient(conn), func() { conn.Close() }, nil
}

// ask returns what the agent of this machine says of the process, and of itself.
func (a *app) ask(ctx context.Context) (*adminpb.ExplainResponse, *adminpb.StatusResponse, error) {
	client, done, err := a.client()
	if err != nil {
		return nil, nil, err
	}
	defer done()
	s, err := client.Status(ctx, &adminpb.StatusRequest{})
	if err != nil {
		return nil, nil, err
	}
	x, err := client.Explain(ctx, &adminpb.ExplainRequest{Pid: a.pid})
	return x, s, err
}

func (a *app) onAgent(ctx context.Context) error {
	x, s, err := a.ask(ctx)
	if err != nil {
		return err
	}
	return a.Show(x, func(w io.Writer) {
		agentText(w, a.pid, x)
		fmt.Fprintln(w, viewText(s))
	})
}

// viewText says how old an agent's view of the entries is.
func viewText(s *adminpb.StatusResponse) string {
	if s.SyncedAt == 0 {
		return "the agent has no entries yet: it has not reached its server"
	}
	age := max(0, time.Since(time.Unix(s.SyncedAt, 0))).Round(time.Second)
	text := fmt.Sprintf("the agent's view: %d entries of revision %d, known to be right %s ago", s.Entries, s.Revision, age)
	if !s.Connected {
		text += "; the server is not reached now"
	}
	return text
}

func agentText(w io.Writer, pid int32, x *adminpb.ExplainResponse) {
	if x.Refusal != "" {
		fmt.Fprintf(w, "process %d gets no identity: %s\n", pid, x.Refusal)
		return
	}
	factsText(w, x.Facts, x.Selectors)
	for _, m := range x.Matches {
		fmt.Fprintf(w, "matches entry %s: %s\n", m.EntryId, m.SpiffeId)
	}
	if len(x.Matches) == 0 {
		fmt.Fprintln(w, "matches no entry")
	}
	nearestText(w, x.Nearest)
}

func factsText(w io.Writer, f *evidencepb.Facts, selectors []string) {
	fmt.Fprintf(w, "process %d runs %s (exec %d, tier %s)\n", f.GetProcess().GetTgid(), f.GetExecutable().GetPath(), f.GetProcess().GetExecId(), cli.TierText(f.GetTier()))
	for i, anc := range f.GetAncestors() {
		what := anc.GetExecutable().GetPath()
		if what == "" {
			what = "unknown: no process runs it any more, or its file can change while it runs"
		}
		fmt.Fprintf(w, "  ancestor %d\t%s\n", i+1, what)
	}
	for _, s := range selectors {
		fmt.Fprintf(w, "  has\t%s\n", s)
	}
}

func nearestText(w io.Writer, list []*adminpb.Match) {
	for _, m := range list {
		fmt.Fprintf(w, "not entry %s: %s, it lacks\n", m.EntryId, m.SpiffeId)
		for _, s := range m.Missing {
			fmt.Fprintf(w, "  lacks\t%s\n", s)
		}
	}
}
