// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"context"
	"fmt"
	"io"

	"github.com/assay-id/assay/cmd/assay/cli"
	adminpb "github.com/assay-id/assay/proto/agentadmin"
)

func (a *app) onDenials(ctx context.Context, req *adminpb.ListDenialsRequest) error {
	client, done, err := a.client()
	if err != nil {
		return err
	}
	defer done()
	resp, err := client.ListDenials(ctx, req)
	if err != nil {
		return err
	}
	return a.Show(resp, func(w io.Writer) {
		if len(resp.Denials) == 0 {
			fmt.Fprintln(w, "nobody was denied since the agent started")
		}
		for _, d := range resp.Denials {
			denialText(w, d, req.Reference != "")
		}
	})
}

// denialText tells of one denial in a line, or in full.
func denialText(w io.Writer, d *adminpb.Denial, full bool) {
	if !full {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", d.Reference, cli.TimeText(d.Time), d.Facts.GetExecutable().GetPath(), d.Reason)
		return
	}
	fmt.Fprintf(w, "%s was denied at %s: %s\n", d.Reference, cli.TimeText(d.Time), d.Reason)
	if d.Facts == nil {
		fmt.Fprintln(w, "nothing else is known of the caller: it could not be attested")
		return
	}
	factsText(w, d.Facts, d.Selectors)
	nearestText(w, d.Nearest)
}

func (a *app) onIdentity(ctx context.Context) error {
	client, done, err := a.client()
	if err != nil {
		return err
	}
	defer done()
	resp, err := client.ExplainIdentity(ctx, &adminpb.ExplainIdentityRequest{SpiffeId: a.spiffeID})
	if err != nil {
		return err
	}
	return a.Show(resp, func(w io.Writer) { identityText(w, a.spiffeID, resp) })
}

func identityText(w io.Writer, id string, x *adminpb.ExplainIdentityResponse) {
	if len(x.Entries) == 0 {
		fmt.Fprintf(w, "this node has no entry for %s\n", id)
	}
	for _, e := range x.Entries {
		fmt.Fprintf(w, "entry %s demands\n", e.EntryId)
		for _, s := range e.Missing {
			fmt.Fprintf(w, "  demands\t%s\n", s)
		}
	}
	for _, d := range x.Deliveries {
		state := "has ended, or runs another program"
		if d.Running {
			state = "still runs"
		}
		fmt.Fprintf(w, "given at %s\t%s %s\tprocess %d (sha256 %.12s…), which %s\n", cli.TimeText(d.Time), d.Kind, d.Serial, d.Process.GetTgid(), d.Sha256, state)
		if d.Via != "" {
			fmt.Fprintf(w, "  by way of\t%s\n", d.Via)
		}
	}
	for _, d := range x.Denials {
		fmt.Fprint(w, "nearly:\t")
		denialText(w, d, false)
	}
}
