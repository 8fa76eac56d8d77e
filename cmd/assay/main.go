// SPDX-License-Identifier: Apache-2.0

// Command assay is the one program that people type: it speaks to the server's and the
// agent's admin sockets and to the Workload API.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/cmd/assay/authorities"
	"github.com/assay-id/assay/cmd/assay/cli"
	"github.com/assay-id/assay/cmd/assay/entries"
	"github.com/assay-id/assay/cmd/assay/explain"
	"github.com/assay-id/assay/cmd/assay/machines"
	"github.com/assay-id/assay/cmd/assay/policies"
)

var version = "unknown"

func main() { os.Exit(run()) }

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := root().ExecuteContext(ctx); err != nil {
		text := err.Error()
		if s, ok := status.FromError(err); ok {
			text = s.Message()
		}
		fmt.Fprintln(os.Stderr, "assay:", text)
		return 1
	}
	return 0
}

// app is what the commands of this folder share.
type app struct{ *cli.App }

func root() *cobra.Command {
	shared, c := cli.New("assay", "Identities for workloads that the kernel and the TPM vouch for")
	c.Version = version
	a := &app{shared}
	c.AddCommand(machines.Commands(shared)...)
	c.AddCommand(authorities.Commands(shared)...)
	c.AddCommand(entries.Command(shared), a.token(), a.fetch(), a.watch(), explain.Command(shared), policies.Command(shared), a.server(), a.healthcheck(), a.debug(), a.logger(), a.agent(), a.dev())
	return c
}
