// SPDX-License-Identifier: Apache-2.0

// Package authorities is what operators do with what the trust domain signs by: bundles, federation, the
// life of authorities, and SVIDs that are minted by hand. Verbs and flags mean what they mean in SPIRE's CLI.
package authorities

import (
	"io"
	"os"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/assay-id/assay/cmd/assay/cli"
)

// Commands are bundle, federation, localauthority, upstreamauthority, x509, jwt, wit, svid and crl.
func Commands(shared *cli.App) []*cobra.Command {
	a := &app{shared}
	return []*cobra.Command{a.bundle(), a.federation(), a.localAuthority(), a.upstreamAuthority(), a.mintX509(), a.mintJWT(), a.mintWIT(), a.svid(), a.crl()}
}

// app is what the commands share.
type app struct{ *cli.App }

// client runs f with a client of one of the server's services.
func client[C any](a *app, service func(grpc.ClientConnInterface) C, f func(C) error) error {
	return a.OnServer(func(conn *grpc.ClientConn) error { return f(service(conn)) })
}

// readInput reads a file, or standard input for "" and "-".
func readInput(c *cobra.Command, path string) ([]byte, error) {
	if path == "" || path == "-" {
		return io.ReadAll(c.InOrStdin())
	}
	return os.ReadFile(path)
}

// required marks flags that a command can not do without.
func required(c *cobra.Command, names ...string) *cobra.Command {
	for _, name := range names {
		if err := c.MarkFlagRequired(name); err != nil {
			panic(err)
		}
	}
	return c
}
