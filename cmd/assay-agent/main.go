// SPDX-License-Identifier: Apache-2.0

// Command assay-agent runs on every node: it proves the node to the server and gives the
// node's workloads their identities.
package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/agent"
	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/cmd/daemon"
)

var version = "unknown"

func main() {
	os.Exit(daemon.Command[agent.Config]{
		Name: "assay-agent", Short: "Proves this node and gives its workloads their identities", Version: version,
		ConfigPath: "/etc/assay/agent.hcl",
		Run: func(ctx context.Context, conf agent.Config) error {
			a, err := agent.New(conf, version, os.Stderr)
			if err != nil {
				return err
			}
			a.OnReady(func() { daemon.Ready(ctx, a.Alive) })
			return a.Run(ctx)
		},
		Commands: func(load func() (agent.Config, error)) []*cobra.Command { return []*cobra.Command{loadCommand(load)} },
		More: []daemon.Subcommand[agent.Config]{{
			Name: "unload", Short: "Takes the sensor out of the kernel and forgets its records; stop the agent first",
			Run: func(conf agent.Config) error { return bpf.Unpin(conf.Pins()) },
		}},
	}.Main())
}
