// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/cmd/dev"
)

func (a *app) dev() *cobra.Command {
	var verbose bool
	c := &cobra.Command{Use: "dev", Short: "Runs a server, a software TPM and an agent in the foreground, for experiments; leaves nothing behind", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) (err error) {
		o := dev.Options{}
		if verbose {
			o.Log = os.Stderr
		}
		env, err := dev.Start(c.Context(), o)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, env.Close()) }()
		fmt.Fprintf(c.OutOrStdout(), `%s is up, in %s. The node is
  %s
Ctrl-C ends it. In another terminal, as root:

  export ASSAY_SERVER_SOCKET=%s ASSAY_AGENT_SOCKET=%s SPIFFE_ENDPOINT_SOCKET=%s
  assay entry create --spiffe-id spiffe://%s/me --parent %s --selector unix:uid:0
  assay fetch x509
  assay explain --pid $$
`, env.TrustDomain, env.Dir, env.NodeID, env.ServerSocket, env.AgentSocket, env.WorkloadSocket, env.TrustDomain, env.NodeID)
		return env.Wait(c.Context())
	}}
	c.Flags().BoolVarP(&verbose, "verbose", "v", false, "show the logs of the server and the agent")
	return c
}
