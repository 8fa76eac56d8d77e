// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/assay-id/assay/agent/history"
	"github.com/assay-id/assay/cmd/assay/cli"
)

// history is `assay agent history`. It reads the files themselves: the agent need not run, and
// files that were carried off can be verified elsewhere.
func (a *app) history() *cobra.Command {
	var dir string
	var quoted []string
	verify := &cobra.Command{Use: "verify", Short: "Checks that no record of a delivery was changed, by its hash chain and by what the TPM vouched for", Args: cobra.NoArgs, RunE: func(*cobra.Command, []string) error {
		var anchors []history.Anchor
		for _, text := range quoted {
			anchor, err := parseAnchor(text)
			if err != nil {
				return err
			}
			anchors = append(anchors, anchor)
		}
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("there is no folder %s: name the agent's data_dir by --data-dir", dir)
		}
		s, err := history.Verify(dir, anchors...)
		if errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("%w; with protect = true the agent lets nobody read its data_dir: stop it first", err)
		} else if err != nil {
			return err
		}
		return a.Show(s, func(w io.Writer) { historyText(w, s, len(anchors)) })
	}}
	verify.Flags().StringVar(&dir, "data-dir", "/var/lib/assay/agent", "the agent's data_dir, or a copy of its deliveries.log files")
	verify.Flags().StringSliceVar(&quoted, "quoted", nil, "COUNT:HEAD that the node's TPM vouched for (assay node show); the history must agree")
	return cli.Group("history", "What this node's agent delivered", verify)
}

func historyText(w io.Writer, s history.Summary, anchors int) {
	if s.Last == 0 {
		fmt.Fprintln(w, "no deliveries")
		return
	}
	fmt.Fprintf(w, "records\t%d to %d, whole\n", s.First, s.Last)
	fmt.Fprintf(w, "time\t%s to %s\n", s.Since.Format(time.RFC3339), s.Until.Format(time.RFC3339))
	fmt.Fprintf(w, "head\t%d:%s\n", s.Last, s.Head)
	switch {
	case anchors == 0:
		fmt.Fprintln(w, "vouched for\tnot compared: --quoted takes what the server saw quoted")
	case s.Before > 0:
		fmt.Fprintf(w, "vouched for\t%d of %d quotes agree; %d are about records that are no longer kept\n", s.Anchored, anchors, s.Before)
	default:
		fmt.Fprintf(w, "vouched for\tall %d quotes agree\n", anchors)
	}
	if s.Torn > 0 {
		fmt.Fprintf(w, "torn\ta last record of %d bytes is not whole: it is being written, or a crash cut it\n", s.Torn)
	}
}

func parseAnchor(text string) (a history.Anchor, err error) {
	count, head, ok := strings.Cut(text, ":")
	if a.Count, err = strconv.ParseUint(count, 10, 64); err != nil || !ok || len(head) != hex.EncodedLen(len(a.Head)) {
		return a, fmt.Errorf("--quoted %s: want COUNT:HEAD, as assay node show prints it", text)
	}
	if err := a.Head.UnmarshalText([]byte(head)); err != nil {
		return a, fmt.Errorf("--quoted %s: %w", text, err)
	}
	return a, nil
}
