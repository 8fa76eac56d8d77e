// SPDX-License-Identifier: Apache-2.0

// Command assay-server admits nodes, keeps registration entries and signs identities.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/config"
	"github.com/assay-id/assay/server"
	"github.com/assay-id/assay/server/store"
)

var version = "unknown"

const defaultConfig = "/etc/assay/server.hcl"

func main() { os.Exit(run()) }

func run() int {
	if len(os.Args) > 1 && os.Args[1] == store.MemberCommand {
		return store.MemberMain(os.Args[2:])
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "assay-server:", err)
		return 1
	}
	return 0
}

func root() *cobra.Command {
	var path string
	c := &cobra.Command{Use: "assay-server", Short: "Admits nodes, keeps registration entries and signs identities",
		Version: version, SilenceUsage: true, SilenceErrors: true}
	c.PersistentFlags().StringVar(&path, "config", defaultConfig, "configuration file (HCL)")
	load := func() (conf server.Config, err error) {
		if err = config.Load(path, &conf); err == nil {
			err = conf.Validate()
		}
		return conf, err
	}
	c.AddCommand(
		&cobra.Command{Use: "run", Short: "Runs the server in the foreground", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			conf, err := load()
			if err != nil {
				return err
			}
			s, err := server.New(conf, version, os.Stderr)
			if err != nil {
				return err
			}
			return s.Run(c.Context())
		}},
		&cobra.Command{Use: "validate", Short: "Checks the configuration file", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			_, err := load()
			return err
		}},
	)
	return c
}
