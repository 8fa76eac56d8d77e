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

// app is what every command shares.
type app struct {
	serverSocket, agentSocket, workloadSocket string
	format                                    string
	cmd                                       *cobra.Command
}

func root() *cobra.Command {
	a := &app{}
	c := &cobra.Command{
		Use:           "assay",
		Short:         "Identities for workloads that the kernel and the TPM vouch for",
		Version:       version,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.cmd = cmd
			if a.format != "text" && a.format != "json" {
				return fmt.Errorf("-o %s: the formats are text and json", a.format)
			}
			return nil
		},
	}
	f := c.PersistentFlags()
	f.StringVarP(&a.format, "output", "o", "text", "text or json")
	f.StringVar(&a.serverSocket, "server-socket", env("ASSAY_SERVER_SOCKET", "/run/assay/server/admin.sock"), "the server's admin socket (ASSAY_SERVER_SOCKET)")
	f.StringVar(&a.agentSocket, "agent-socket", env("ASSAY_AGENT_SOCKET", "/run/assay/agent/admin.sock"), "the agent's admin socket (ASSAY_AGENT_SOCKET)")
	f.StringVar(&a.workloadSocket, "workload-socket", env("SPIFFE_ENDPOINT_SOCKET", "unix:///run/assay/agent/api.sock"), "the Workload API (SPIFFE_ENDPOINT_SOCKET)")
	c.AddCommand(a.entry(), a.node(), a.tpm(), a.token(), a.bundle(), a.fetch(), a.watch(), a.explain(), a.server(), a.agent(), a.dev())
	return c
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// group is a command that only holds others.
func group(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(children...)
	return c
}
