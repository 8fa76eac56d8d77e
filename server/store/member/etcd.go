// SPDX-License-Identifier: Apache-2.0

package member

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// embedConfig holds the settings that were measured with a million entries and fsync on. No
// setting trades durability for speed.
func (s Spec) embedConfig(dir string, core zapcore.Core) (*embed.Config, error) {
	c := embed.NewConfig()
	c.Name = AloneName
	c.Dir = DataDir(dir)
	client := url.URL{Scheme: "unix", Host: clientSocket}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.InitialClusterToken = "assay"
	c.EnableGRPCGateway = false
	c.PreVote = true
	c.StrictReconfigCheck = true
	// One commit may hold hundreds of entries. What etcd keeps of the log, it keeps in memory,
	// and reads again when it starts.
	c.SnapshotCount, c.SnapshotCatchUpEntries = 1_000, 100
	if s.Clustered() {
		c.SnapshotCatchUpEntries = 1_000 // for a member that was away for a moment
	}
	c.BackendFreelistType = "map"
	c.QuotaBackendBytes = s.QuotaBytes
	c.MaxTxnOps = 2 * MaxOps
	c.MaxRequestBytes = MaxRequestBytes
	c.AutoCompactionMode = embed.CompactorModePeriodic
	c.AutoCompactionRetention = "5m"
	c.WatchProgressNotifyInterval = 10 * time.Second
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.New(core))
	return c, s.peers(c, dir)
}

// peers says how the member meets others.
func (s Spec) peers(c *embed.Config, dir string) error {
	advertise, err := url.Parse(s.PeerURL())
	if err != nil {
		return err
	}
	listen, err := url.Parse(s.listenURL())
	if err != nil {
		return err
	}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{*listen}, []url.URL{*advertise}
	if s.Clustered() {
		c.Name = s.Name
		leaf := filepath.Join(dir, peerDir, leafFile)
		c.PeerTLSInfo.CertFile, c.PeerTLSInfo.KeyFile = leaf, leaf
		c.PeerTLSInfo.TrustedCAFile = filepath.Join(dir, peerDir, caFile)
		c.PeerTLSInfo.ClientCertAuth = true
		c.PeerTLSInfo.AllowedHostnames = []string{PeerName(s.TrustDomain)}
		c.PeerTLSInfo.SkipClientSANVerify = true // the name above says more than an address
		c.PeerTLSInfo.MinVersion = tls.VersionTLS13
		c.CorruptCheckTime = time.Hour
	}
	c.InitialCluster = c.Name + "=" + s.PeerURL()
	join, joins, err := readJoin(dir)
	if joins {
		c.InitialCluster, c.ClusterState = join.Members, embed.ClusterStateFlagExisting
	}
	return err
}

// zapToSlog writes etcd's log to ours, and tells a full disk from other ends.
type zapToSlog struct {
	log     *slog.Logger
	closing *atomic.Bool // from then on it reports its closed sockets as errors
	fields  []zapcore.Field
}

func newLogCore(log *slog.Logger) *zapToSlog {
	return &zapToSlog{log: log, closing: new(atomic.Bool)}
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
		os.Exit(ExitNoSpace) // zap would end the process now, with a code that says nothing
	}
	return nil
}

func slogLevel(l zapcore.Level) slog.Level {
	if l >= zapcore.ErrorLevel {
		return slog.LevelError
	}
	return slog.LevelDebug // etcd warns of much in its ordinary life
}
