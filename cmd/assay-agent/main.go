// SPDX-License-Identifier: Apache-2.0

// Command assay-agent runs on every node: it proves the node to the server and gives the
// node's workloads their identities.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/agent"
	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/cmd/config"
)

var version = "unknown"

const defaultConfig = "/etc/assay/agent.hcl"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "assay-agent:", err)
		return 1
	}
	return 0
}

func root() *cobra.Command {
	var path string
	c := &cobra.Command{Use: "assay-agent", Short: "Proves this node and gives its workloads their identities",
		Version: version, SilenceUsage: true, SilenceErrors: true}
	c.PersistentFlags().StringVar(&path, "config", defaultConfig, "configuration file (HCL)")
	load := func() (conf agent.Config, err error) {
		if err = config.Load(path, &conf); err == nil {
			err = conf.Validate()
		}
		return conf, err
	}
	c.AddCommand(
		&cobra.Command{Use: "run", Short: "Runs the agent in the foreground", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			conf, err := load()
			if err != nil {
				return err
			}
			a, err := agent.New(conf, version, os.Stderr)
			if err != nil {
				return err
			}
			return a.Run(c.Context())
		}},
		&cobra.Command{Use: "validate", Short: "Checks the configuration file", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			_, err := load()
			return err
		}},
		&cobra.Command{Use: "unload", Short: "Takes the sensor out of the kernel and forgets its records; stop the agent first", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
			conf, err := load()
			if err != nil {
				return err
			}
			return bpf.Unpin(conf.Pins())
		}},
	)
	return c
}
