// SPDX-License-Identifier: Apache-2.0

// Package cli is what all commands of `assay` share: the sockets that they speak to, and how
// they print.
package cli

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
)

// App holds the flags of every command, once they were parsed.
type App struct {
	ServerSocket, AgentSocket, WorkloadSocket string
	// Format is text or json.
	Format string
	// Command is the one that runs.
	Command *cobra.Command
}

// New returns the root of the commands, with the flags that all of them have.
func New(name, short string) (*App, *cobra.Command) {
	a := &App{}
	c := &cobra.Command{
		Use:           name,
		Short:         short,
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			a.Command = cmd
			if a.Format != "text" && a.Format != "json" {
				return fmt.Errorf("-o %s: the formats are text and json", a.Format)
			}
			return nil
		},
	}
	f := c.PersistentFlags()
	f.StringVarP(&a.Format, "output", "o", "text", "text or json")
	f.StringVar(&a.ServerSocket, "server-socket", env("ASSAY_SERVER_SOCKET", "/run/assay/server/admin.sock"), "the server's admin socket (ASSAY_SERVER_SOCKET)")
	f.StringVar(&a.AgentSocket, "agent-socket", env("ASSAY_AGENT_SOCKET", "/run/assay/agent/admin.sock"), "the agent's admin socket (ASSAY_AGENT_SOCKET)")
	f.StringVar(&a.WorkloadSocket, "workload-socket", env("SPIFFE_ENDPOINT_SOCKET", "unix:///run/assay/agent/api.sock"), "the Workload API (SPIFFE_ENDPOINT_SOCKET)")
	return a, c
}

func env(name, fallback string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return fallback
}

// Group is a command that only holds others.
func Group(use, short string, children ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	c.AddCommand(children...)
	return c
}

// OnServer runs f with a connection to the server's admin socket.
func (a *App) OnServer(f func(conn *grpc.ClientConn) error) error {
	conn, err := Dial(a.ServerSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(conn)
}
