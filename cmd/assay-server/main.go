// SPDX-License-Identifier: Apache-2.0

// Command assay-server admits nodes, keeps registration entries and signs identities.
package main

import (
	"context"
	"os"
	"runtime/debug"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/daemon"
	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/server/store/member"
)

var version = "unknown"

// collectAt is how much garbage there may be for what is alive, in percent. Thousands of streams of agents are alive
// and make little garbage; the million entries of a replica hold no pointers and cost a collection nothing.
const collectAt = 50

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) > 1 && os.Args[1] == member.Command {
		return member.Main(os.Args[2:])
	}
	return daemon.Command[server.Config]{
		Name: "assay-server", Short: "Admits nodes, keeps registration entries and signs identities", Version: version,
		ConfigPath: "/etc/assay/server.hcl",
		Commands:   func(load func() (server.Config, error)) []*cobra.Command { return []*cobra.Command{storeCommand(load)} },
		Run: func(ctx context.Context, conf server.Config) error {
			if os.Getenv("GOGC") == "" {
				debug.SetGCPercent(collectAt)
			}
			s, err := server.New(conf, version, os.Stderr)
			if err != nil {
				return err
			}
			s.OnReady(func() { daemon.Ready(ctx, s.Alive) })
			return s.Run(ctx)
		},
	}.Main()
}
