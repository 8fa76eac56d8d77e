// SPDX-License-Identifier: Apache-2.0

// Package daemon is what the commands of the agent and the server share: a configuration
// file, run, validate, an end on SIGINT or SIGTERM, and what the service manager is told.
package daemon

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/config"
)

// Command is one daemon's command; C is its configuration file.
type Command[C interface{ Validate() error }] struct {
	Name, Short, Version string
	// ConfigPath is where the configuration is by default.
	ConfigPath string
	// Run runs the daemon until ctx ends.
	Run func(ctx context.Context, conf C) error
	// More are further subcommands by name, each with a sentence.
	More []Subcommand[C]
	// Commands that have arguments of their own; load reads the configuration and checks it.
	Commands func(load func() (C, error)) []*cobra.Command
}

// Subcommand does something with the configuration.
type Subcommand[C any] struct {
	Name, Short string
	Run         func(conf C) error
}

// Main runs the command line and returns the exit code.
func (d Command[C]) Main() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := d.root().ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, d.Name+":", err)
		return 1
	}
	return 0
}

func (d Command[C]) root() *cobra.Command {
	var path string
	root := &cobra.Command{Use: d.Name, Short: d.Short, Version: d.Version, SilenceUsage: true, SilenceErrors: true}
	root.PersistentFlags().StringVar(&path, "config", d.ConfigPath, "configuration file (HCL)")
	load := func() (conf C, err error) {
		if err = config.Load(path, &conf); err == nil {
			err = conf.Validate()
		}
		return conf, err
	}
	add := func(name, short string, run func(ctx context.Context, conf C) error) {
		root.AddCommand(&cobra.Command{Use: name, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			conf, err := load()
			if err != nil {
				return err
			}
			return run(c.Context(), conf)
		}})
	}
	add("run", "Runs it in the foreground", d.Run)
	add("validate", "Checks the configuration file", func(context.Context, C) error { return nil })
	for _, m := range d.More {
		add(m.Name, m.Short, func(_ context.Context, conf C) error { return m.Run(conf) })
	}
	if d.Commands != nil {
		root.AddCommand(d.Commands(load)...)
	}
	return root
}
