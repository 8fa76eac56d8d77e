// SPDX-License-Identifier: Apache-2.0

// Command assay-server admits nodes, keeps registration entries and signs identities.
package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/daemon"
	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/server/store/member"
)

var version = "unknown"

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
			s, err := server.New(conf, version, os.Stderr)
			if err != nil {
				return err
			}
			s.OnReady(func() { daemon.Ready(ctx, s.Alive) })
			return s.Run(ctx)
		},
	}.Main()
}
