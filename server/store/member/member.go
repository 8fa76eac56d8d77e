// SPDX-License-Identifier: Apache-2.0

// Package member runs one etcd member in a process of its own, and lays out the folder that it
// shares with its parent, server/store.
package member

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
)

const (
	// Command is the hidden command that runs Run.
	Command = "store-member"

	// ExitNoSpace (EX_TEMPFAIL): the file system is full. ExitRemoved: the cluster has
	// removed this member.
	ExitNoSpace = 75
	ExitRemoved = 76

	// MaxOps is how many puts and deletes a transaction may hold.
	MaxOps = 2048
	// MaxRequestBytes is how much.
	MaxRequestBytes = 8 << 20

	// AloneName is the member's own while it is in no cluster.
	AloneName = "assay"
	lockWait  = 5 * time.Second
	stopWait  = 3 * time.Second
)

// errRemoved: the others have gone on without this member.
var errRemoved = errors.New("the store's cluster has removed this member")

// Config is for the child process.
type Config struct {
	// Dir is the store's folder.
	Dir string
	// Stdin is the parent's life line: the member stops when it ends.
	Stdin io.Reader
	// Log receives JSON lines.
	Log io.Writer
}

// Main runs the member; it is the whole command `assay-server store-member --dir DIR`,
// which only the supervisor calls, and returns the exit code.
func Main(args []string) int {
	if len(args) != 2 || args[0] != "--dir" {
		fmt.Fprintf(os.Stderr, "%s is started by assay-server itself\n", Command)
		return 2
	}
	err := Run(context.Background(), Config{Dir: args[1], Stdin: os.Stdin, Log: os.Stderr})
	switch {
	case err == nil:
		return 0
	case errors.Is(err, syscall.ENOSPC):
		return ExitNoSpace
	case errors.Is(err, errRemoved):
		return ExitRemoved
	}
	return 1
}

// Run runs one etcd member until the context or the life line ends. It may end the
// process: etcd does so when a write to its disk fails.
func Run(ctx context.Context, cfg Config) error {
	log := slog.New(slog.NewJSONHandler(cfg.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	err := run(ctx, cfg, log)
	if err != nil {
		log.Error("the store's member can not run", "error", err.Error()) // the parent reads it here
	}
	return err
}

func run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := MakeDirs(cfg.Dir); err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(cfg.Dir, "member.lock"), lockWait)
	if err != nil {
		return fmt.Errorf("another member still runs: %w", err)
	}
	defer lock.Close()
	spec, err := readSpec(cfg.Dir)
	if err != nil {
		return fmt.Errorf("read what the server wants of its store: %w", err)
	}
	// Sockets are named relative to here, so that a long path does not matter to etcd.
	if err := os.Chdir(filepath.Join(cfg.Dir, runDir)); err != nil {
		return fmt.Errorf("enter the store's folder: %w", err)
	}
	syscall.Umask(0o077)
	core := newLogCore(log)
	conf, err := spec.embedConfig(cfg.Dir, core)
	if err != nil {
		return err
	}
	etcd, err := embed.StartEtcd(conf)
	if err != nil {
		return fmt.Errorf("start etcd: %w", err)
	}
	defer etcd.Close()
	defer core.closing.Store(true)
	orphan := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, cfg.Stdin)
		close(orphan)
	}()
	ready := etcd.Server.ReadyNotify()
	for {
		select {
		case <-ready:
			debug.SetGCPercent(50) // it started with a generous one
			debug.FreeOSMemory()
			ready = nil
		case <-etcd.Server.StopNotify():
			return errRemoved
		case <-orphan:
			return nil
		case <-ctx.Done():
			return nil
		case err := <-etcd.Err():
			select {
			case <-etcd.Server.StopNotify(): // by itself it stops for this reason only
				return errRemoved
			case <-time.After(stopWait):
				return fmt.Errorf("serve etcd: %w", err)
			}
		}
	}
}
