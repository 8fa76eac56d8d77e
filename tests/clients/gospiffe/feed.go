// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// feed writes each new SVID to a folder and signals whose PID is in a file: what spiffe-helper does.
func feed(ctx context.Context, _ *ledger, args []string) error {
	signals := map[string]syscall.Signal{"SIGHUP": syscall.SIGHUP, "SIGUSR2": syscall.SIGUSR2}
	if len(args) != 3 || signals[args[2]] == 0 {
		return errors.New("feed: say a folder, a file with a PID, and SIGHUP or SIGUSR2")
	}
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.WatchX509Context(ctx, files{dir: args[0], pid: args[1], signal: signals[args[2]]})
}

type files struct {
	dir, pid string
	signal   syscall.Signal
}

func (f files) OnX509ContextUpdate(x *workloadapi.X509Context) {
	if err := f.update(x); err != nil {
		fmt.Fprintln(os.Stderr, "feed:", err)
	}
}

func (f files) OnX509ContextWatchError(err error) { fmt.Fprintln(os.Stderr, "feed:", err) }

func (f files) update(x *workloadapi.X509Context) error {
	svid := x.DefaultSVID()
	chain, key, err := svid.Marshal()
	if err != nil {
		return err
	}
	var bundle *x509bundle.Bundle
	if bundle, err = x.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain()); err != nil {
		return err
	}
	roots, err := bundle.Marshal()
	if err != nil {
		return err
	}
	for name, text := range map[string][]byte{"svid.pem": chain, "svid.pem.key": key, "bundle.pem": roots} {
		part := filepath.Join(f.dir, name+".part")
		if err := errors.Join(os.WriteFile(part, text, 0o600), os.Rename(part, filepath.Join(f.dir, name))); err != nil {
			return err
		}
	}
	text, err := os.ReadFile(f.pid)
	if errors.Is(err, os.ErrNotExist) {
		return nil // it has not started yet
	}
	if err != nil {
		return err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s: %w", f.pid, err)
	}
	return syscall.Kill(pid, f.signal)
}
