// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/server/store/cluster"
)

const (
	invitePort = "8083"
	storeLong  = `Tends the server's store on this machine.

A store of one member becomes one of three or five like this. Give every server a block

    cluster {
      name    = "a"               # unique
      address = "10.0.0.1:8082"   # where the other members reach it
    }

then, on the first, stop the server, run "assay-server store init", and start it. For every
other one run "assay-server store invite" on a member, then "assay-server store join TICKET"
on the new machine, and start the server there. It votes as soon as it has the content.`
)

// storeVerb does something with the store that the configuration names.
type storeVerb func(ctx context.Context, c cluster.Config, args []string, out io.Writer) error

func storeCommand(load func() (server.Config, error)) *cobra.Command {
	group := &cobra.Command{Use: "store", Short: "Members, backup and restore of the store", Long: storeLong, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	add := func(use, short string, args int, run storeVerb) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(args), RunE: func(c *cobra.Command, args []string) error {
			conf, err := clusterConfig(load)
			if err != nil {
				return err
			}
			return run(c.Context(), conf, args, c.OutOrStdout())
		}}
		group.AddCommand(c)
		return c
	}
	add("init", "Makes this stopped server's store the first member of a cluster", 0, func(_ context.Context, c cluster.Config, _ []string, out io.Writer) error {
		if err := cluster.Init(c, time.Now()); err != nil {
			return err
		}
		_, err := fmt.Fprintln(out, "This store is the first member of its cluster; start assay-server, then `assay-server store invite`.")
		return err
	})
	var listen string
	var wait time.Duration
	invite := add("invite", "Prints a ticket for one new member and waits for it", 0, func(ctx context.Context, c cluster.Config, _ []string, out io.Writer) error {
		return runInvite(ctx, c, listen, wait, out)
	})
	invite.Flags().StringVar(&listen, "listen", "", "where to wait (default: the host of cluster.address, port "+invitePort+")")
	invite.Flags().DurationVar(&wait, "wait", 15*time.Minute, "how long")
	join := func(replaces func(c cluster.Config) string) storeVerb {
		return func(ctx context.Context, c cluster.Config, args []string, out io.Writer) error {
			if err := cluster.Join(ctx, c, args[0], replaces(c)); err != nil {
				return err
			}
			_, err := fmt.Fprintln(out, "The store's members expect this one; start assay-server.")
			return err
		}
	}
	add("join TICKET", "Makes this new server a member", 1, join(func(cluster.Config) string { return "" }))
	var lost string
	replace := add("replace TICKET", "Makes this new server a member in the place of one that is lost", 1, join(func(c cluster.Config) string {
		if lost != "" {
			return lost
		}
		return c.Name
	}))
	replace.Flags().StringVar(&lost, "member", "", "name of the lost member (default: cluster.name of this server)")
	add("remove NAME", "Removes a member for good, by its name or address", 1, func(ctx context.Context, c cluster.Config, args []string, _ io.Writer) error {
		return cluster.Remove(ctx, c, args[0])
	})
	add("members", "Lists the members and whether they answer", 0, listMembers)
	add("status", "Shows the size of the database, its limit, its revision, who leads, and alarms", 0, showStatus)
	add("backup FILE", "Writes what is in the store to a file, while the server runs", 1, func(ctx context.Context, c cluster.Config, args []string, out io.Writer) error {
		size, err := cluster.Backup(ctx, c, args[0])
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(out, "Wrote %d MiB. The CA's keys are not in it: they are in data_dir.\n", size>>20)
		return err
	})
	add("restore FILE", "Makes a store from a backup, where there is none", 1, func(_ context.Context, c cluster.Config, args []string, out io.Writer) error {
		if err := cluster.Restore(c, args[0]); err != nil {
			return err
		}
		text := "Restored; start assay-server."
		if c.Name != "" {
			text = "Restored; run `assay-server store init`, start assay-server, then invite the other members with empty stores."
		}
		_, err := fmt.Fprintln(out, text)
		return err
	})
	return group
}

func clusterConfig(load func() (server.Config, error)) (cluster.Config, error) {
	conf, err := load()
	if err != nil {
		return cluster.Config{}, err
	}
	return conf.StoreOnDisk()
}

func runInvite(ctx context.Context, c cluster.Config, listen string, wait time.Duration, out io.Writer) error {
	if listen == "" && c.Address != "" {
		host, _, err := net.SplitHostPort(c.Address)
		if err != nil {
			return err
		}
		listen = net.JoinHostPort(host, invitePort)
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	name, err := cluster.Invite(ctx, c, listen, func(ticket string) {
		fmt.Fprintf(out, "On the new machine run within %s:\n\nassay-server store join %s\n\n", wait, ticket)
	})
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s may come in: start assay-server there; it votes once it has the content.\n", name)
	return err
}

func showStatus(ctx context.Context, c cluster.Config, _ []string, out io.Writer) error {
	s, err := cluster.Look(ctx, c)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	leader, answer := "none", 0
	for _, m := range s.Members {
		if m.Role == cluster.Leader {
			leader = m.Name
		}
		if m.Trouble == "" {
			answer++
		}
	}
	fmt.Fprintf(w, "members\t%d, of which %d answer\nleader\t%s, term %d\nrevision\t%d, %d records behind\n", len(s.Members), answer, leader, s.Term, s.Revision, s.Behind)
	fmt.Fprintf(w, "database\t%.1f MiB, %.1f MiB of them in use\nlimit\t%d MiB\n", float64(s.DatabaseBytes)/(1<<20), float64(s.UsedBytes)/(1<<20), s.LimitBytes>>20)
	for _, alarm := range s.Alarms {
		fmt.Fprintf(w, "alarm\t%s\n", alarm)
	}
	return w.Flush()
}

func listMembers(ctx context.Context, c cluster.Config, _ []string, out io.Writer) error {
	all, err := cluster.Members(ctx, c)
	if err != nil {
		return err
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tADDRESS\tROLE\tANSWERS")
	voters := 0
	for _, m := range all {
		answers := "yes"
		if m.Trouble != "" {
			answers = "no: " + m.Trouble
		}
		if m.Role == cluster.Leader || m.Role == cluster.Voter {
			voters++
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", m.Name, m.Address, m.Role, answers)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if voters%2 == 0 {
		_, err = fmt.Fprintf(out, "%d voters can lose no more of them than %d can: add one.\n", voters, voters-1)
	}
	return err
}
