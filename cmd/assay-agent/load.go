// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/user"
	"strconv"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/agent"
)

const loadLong = `Puts the sensor into the kernel, and ends. What is pinned there is the owner's then: an agent of
that user takes it over, without CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN. A sensor of this build that
is there already goes on; one of another build is replaced, so run this before each start of the agent.`

func loadCommand(load func() (agent.Config, error)) *cobra.Command {
	var owner string
	c := &cobra.Command{Use: "load", Short: "Puts the sensor into the kernel for an agent that may not", Long: loadLong, Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			conf, err := load()
			if err != nil {
				return err
			}
			u, err := user.Lookup(owner)
			if err != nil {
				return fmt.Errorf("--owner: %w; name the user that the agent runs as", err)
			}
			uid, errUID := strconv.Atoi(u.Uid)
			gid, errGID := strconv.Atoi(u.Gid)
			if err := errors.Join(errUID, errGID); err != nil {
				return fmt.Errorf("--owner: %w", err)
			}
			return conf.LoadSensor(uid, gid, slog.New(slog.NewTextHandler(os.Stderr, nil)))
		}}
	c.Flags().StringVar(&owner, "owner", "assay-agent", "the user that the agent runs as")
	return c
}
