// SPDX-License-Identifier: Apache-2.0

package store

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

const (
	// MemberCommand is the hidden command that runs RunMember.
	MemberCommand = "store-member"

	exitNoSpace = 75 // EX_TEMPFAIL: the file system is full

	maxRequestBytes = 8 << 20
	quotaBytes      = 8 << 30
	memberName      = "assay"
	lockWait        = 5 * time.Second
)

// MemberConfig is for the child process.
type MemberConfig struct {
	// Dir is Config.Dir of the parent.
	Dir string
	// Stdin is the parent's life line: the member stops when it ends.
	Stdin io.Reader
	// Log receives JSON lines.
	Log io.Writer
}

// MemberMain runs the member; it is the whole command `assay-server store-member --dir DIR`,
// which only the supervisor calls, and returns the exit code.
func MemberMain(args []string) int {
	if len(args) != 2 || args[0] != "--dir" {
		fmt.Fprintf(os.Stderr, "%s is started by assay-server itself\n", MemberCommand)
		return 2
	}
	err := RunMember(context.Background(), MemberConfig{Dir: args[1], Stdin: os.Stdin, Log: os.Stderr})
	switch {
	case err == nil:
		return 0
	case errors.Is(err, syscall.ENOSPC):
		return exitNoSpace
	}
	return 1
}

// RunMember runs one etcd member until the context or the life line ends. It may end the
// process: etcd does so when a write to its disk fails.
func RunMember(ctx context.Context, cfg MemberConfig) error {
	log := slog.New(slog.NewJSONHandler(cfg.Log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	err := runMember(ctx, cfg, log)
	if err != nil {
		log.Error("the store's member can not run", "error", err.Error()) // the parent reads it here
	}
	return err
}

func runMember(ctx context.Context, cfg MemberConfig, log *slog.Logger) error {
	if err := makeDirs(cfg.Dir); err != nil {
		return err
	}
	lock, err := lockFile(filepath.Join(cfg.Dir, "member.lock"), lockWait)
	if err != nil {
		return fmt.Errorf("another member still runs: %w", err)
	}
	defer lock.Close()
	// Sockets are named relative to here, so that a long path does not matter to etcd.
	if err := os.Chdir(filepath.Join(cfg.Dir, runDir)); err != nil {
		return fmt.Errorf("enter the store's folder: %w", err)
	}
	syscall.Umask(0o077)
	core := &zapToSlog{log: log, closing: new(atomic.Bool)}
	etcd, err := embed.StartEtcd(embedConfig(cfg.Dir, core))
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
			ready = nil
		case <-orphan:
			return nil
		case <-ctx.Done():
			return nil
		case err := <-etcd.Err():
			return fmt.Errorf("serve etcd: %w", err)
		}
	}
}

// embedConfig holds the settings that were measured with a million entries and fsync on. No
// setting trades durability for speed.
func embedConfig(dir string, core zapcore.Core) *embed.Config {
	c := embed.NewConfig()
	c.Name = memberName
	c.Dir = filepath.Join(dir, "member")
	client := url.URL{Scheme: "unix", Host: clientSocket}
	peer := url.URL{Scheme: "unix", Host: "peer.sock"} // etcd insists on one, also alone
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = memberName + "=" + peer.String()
	c.InitialClusterToken = "assay"
	c.EnableGRPCGateway = false
	c.PreVote = true
	c.StrictReconfigCheck = true
	c.SnapshotCount = 10_000
	c.SnapshotCatchUpEntries = 5_000
	c.BackendFreelistType = "map"
	c.QuotaBackendBytes = quotaBytes
	c.MaxTxnOps = 2 * MaxOps
	c.MaxRequestBytes = maxRequestBytes
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = "5m"
	c.WatchProgressNotifyInterval = 10 * time.Second
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(core))
	return c
}

// zapToSlog writes etcd's log to ours, and tells a full disk from other ends.
type zapToSlog struct {
	log     *slog.Logger
	closing *atomic.Bool // from then on it reports its closed sockets as errors
	fields  []zapcore.Field
}

func (z *zapToSlog) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && !z.closing.Load()
}

func (z *zapToSlog) With(fields []zapcore.Field) zapcore.Core {
	return &zapToSlog{z.log, z.closing, append(append([]zapcore.Field{}, z.fields...), fields...)}
}

func (z *zapToSlog) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if z.Enabled(e.Level) {
		return ce.AddCore(e, z)
	}
	return ce
}

func (z *zapToSlog) Sync() error { return nil }

func (z *zapToSlog) Write(e zapcore.Entry, fields []zapcore.Field) error {
	enc := zapcore.NewMapObjectEncoder()
	full := false
	for _, f := range append(append([]zapcore.Field{}, z.fields...), fields...) {
		f.AddTo(enc)
		if err, ok := f.Interface.(error); ok && errors.Is(err, syscall.ENOSPC) {
			full = true
		}
	}
	attrs := make([]any, 0, 2*len(enc.Fields))
	for k, v := range enc.Fields {
		attrs = append(attrs, k, v)
	}
	z.log.Log(context.Background(), slogLevel(e.Level), e.Message, attrs...)
	if full && e.Level > zapcore.ErrorLevel {
		os.Exit(exitNoSpace) // zap would end the process now, with a code that says nothing
	}
	return nil
}

func slogLevel(l zapcore.Level) slog.Level {
	if l >= zapcore.ErrorLevel {
		return slog.LevelError
	}
	return slog.LevelDebug // etcd warns of much in its ordinary life
}
