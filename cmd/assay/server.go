// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	debugv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/debug/v1"
	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/assay-id/assay/cmd/assay/cli"
)

func (a *app) token() *cobra.Command {
	var ttl time.Duration
	var id, alias string
	c := &cobra.Command{Use: "create", Short: "Makes a join token, which admits one node once", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.OnServer(func(conn *grpc.ClientConn) error {
			req := &agentv1.CreateJoinTokenRequest{Ttl: int32(ttl / time.Second), Token: id}
			if alias != "" {
				var err error
				if req.AgentId, err = cli.ParseID(alias); err != nil {
					return err
				}
			}
			t, err := agentv1.NewAgentClient(conn).CreateJoinToken(c.Context(), req)
			if err != nil {
				return err
			}
			return a.Show(t, func(w io.Writer) { fmt.Fprintf(w, "Token: %s\n", t.Value) })
		})
	}}
	c.Flags().DurationVar(&ttl, "ttl", 10*time.Minute, "how long the token can be used")
	c.Flags().StringVar(&id, "token", "", "the token's text (default: random)")
	c.Flags().StringVar(&alias, "spiffe-id", "", "a second name for the node, to be the parent of entries")
	return cli.Group("token", "Join tokens for nodes without a TPM", c)
}

func (a *app) server() *cobra.Command {
	return cli.Group("server", "The server", a.health("server", &a.ServerSocket), profile("server", &a.ServerSocket), &cobra.Command{Use: "status", Short: "Tells how the server is", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.OnServer(func(conn *grpc.ClientConn) error {
			info, err := debugv1.NewDebugClient(conn).GetInfo(c.Context(), &debugv1.GetInfoRequest{})
			if err != nil {
				return err
			}
			h, err := healthv1.NewHealthClient(conn).Check(c.Context(), &healthv1.HealthCheckRequest{})
			if err != nil {
				return err
			}
			return a.Show(info, func(w io.Writer) {
				fmt.Fprintf(w, "health\t%s\n", h.Status)
				infoText(w, info)
			})
		})
	}})
}

func (a *app) healthcheck() *cobra.Command {
	return &cobra.Command{Use: "healthcheck", Short: "Tells by its exit status whether the server is healthy", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.OnServer(func(conn *grpc.ClientConn) error {
			h, err := healthv1.NewHealthClient(conn).Check(c.Context(), &healthv1.HealthCheckRequest{})
			if err != nil {
				return err
			}
			if h.Status != healthv1.HealthCheckResponse_SERVING {
				return fmt.Errorf("the server is not healthy (%s): see its log and `assay server status`", h.Status)
			}
			return a.Show(h, func(w io.Writer) { fmt.Fprintln(w, "Server is healthy.") })
		})
	}}
}

func (a *app) debug() *cobra.Command {
	return cli.Group("debug", "What the server says of itself", &cobra.Command{Use: "getinfo", Short: "Shows the server's uptime, counts and own SVID", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.OnServer(func(conn *grpc.ClientConn) error {
			info, err := debugv1.NewDebugClient(conn).GetInfo(c.Context(), &debugv1.GetInfoRequest{})
			if err != nil {
				return err
			}
			return a.Show(info, func(w io.Writer) { infoText(w, info) })
		})
	}})
}

func infoText(w io.Writer, info *debugv1.GetInfoResponse) {
	fmt.Fprintf(w, "uptime\t%s\nnodes\t%d\nentries\t%d\nfederated bundles\t%d\n", time.Duration(info.Uptime)*time.Second, info.AgentsCount, info.EntriesCount, info.FederatedBundlesCount)
	for _, s := range info.SvidChain {
		fmt.Fprintf(w, "svid\t%s until %s\n", cli.IDText(s.Id), cli.TimeText(s.ExpiresAt))
	}
}

// logger is the level of the server's log while it runs.
func (a *app) logger() *cobra.Command {
	var level string
	one := func(use, short string, call func(context.Context, loggerv1.LoggerClient) (*types.Logger, error)) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return a.OnServer(func(conn *grpc.ClientConn) error {
				l, err := call(c.Context(), loggerv1.NewLoggerClient(conn))
				if err != nil {
					return err
				}
				return a.Show(l, func(w io.Writer) {
					fmt.Fprintf(w, "level now\t%s\nlevel at start\t%s\n", strings.ToLower(l.CurrentLevel.String()), strings.ToLower(l.LaunchLevel.String()))
				})
			})
		}}
	}
	set := one("set --level LEVEL", "Changes the level until the server ends", func(ctx context.Context, client loggerv1.LoggerClient) (*types.Logger, error) {
		n, ok := types.LogLevel_value[strings.ToUpper(level)]
		if !ok || n == 0 {
			return nil, fmt.Errorf("--level %s: the levels are panic, fatal, error, warn, info, debug and trace", level)
		}
		return client.SetLogLevel(ctx, &loggerv1.SetLogLevelRequest{NewLevel: types.LogLevel(n)})
	})
	set.Flags().StringVar(&level, "level", "", "panic, fatal, error, warn, info, debug or trace")
	if err := set.MarkFlagRequired("level"); err != nil {
		panic(err)
	}
	return cli.Group("logger", "The server's log", set,
		one("get", "Shows the level", func(ctx context.Context, client loggerv1.LoggerClient) (*types.Logger, error) {
			return client.GetLogger(ctx, &loggerv1.GetLoggerRequest{})
		}),
		one("reset", "Sets the level that the server started with", func(ctx context.Context, client loggerv1.LoggerClient) (*types.Logger, error) {
			return client.ResetLogLevel(ctx, &loggerv1.ResetLogLevelRequest{})
		}))
}
