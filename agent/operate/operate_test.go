// SPDX-License-Identifier: Apache-2.0

package operate

import (
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math"
	"net/url"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	loggerpb "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/proto/loglevel"
)

// node is the far side: an identity or none.
type node struct{ svid *x509svid.SVID }

func (n *node) GetX509SVID() (*x509svid.SVID, error) {
	if n.svid == nil {
		return nil, errors.New("none")
	}
	return n.svid, nil
}

func TestDebug(t *testing.T) {
	start, synced, n := time.Unix(1000, 0), time.Time{}, &node{}
	d := &debug{cfg: Config{Identity: n, Counts: func() (int, int, time.Time) { return 3, math.MaxInt32 + 1, synced }, Started: start, Now: func() time.Time { return start.Add(90 * time.Second) }}}
	got, err := d.GetInfo(t.Context(), nil)
	//lint:ignore SA1019 see GetInfo
	if err != nil || got.Uptime != 90 || got.SvidsCount != 3 || got.CachedX509SvidsCount != 3 || got.CachedJwtSvidsCount != math.MaxInt32 || got.LastSyncSuccess != 0 || len(got.SvidChain) != 0 {
		t.Errorf("before attestation: %v, %v", got, err)
	}
	synced = time.Unix(1050, 0)
	n.svid = &x509svid.SVID{Certificates: []*x509.Certificate{{NotAfter: time.Unix(2000, 0), URIs: []*url.URL{{Scheme: "spiffe", Host: "example.org", Path: "/node"}}}, {NotAfter: time.Unix(3000, 0)}}}
	if got, err = d.GetInfo(t.Context(), nil); err != nil || got.LastSyncSuccess != 1050 || len(got.SvidChain) != 2 || got.SvidChain[0].Id.GetPath() != "/node" || got.SvidChain[0].ExpiresAt != 2000 || got.SvidChain[1].Id != nil {
		t.Errorf("after: %v, %v", got, err)
	}
}

func TestLogger(t *testing.T) {
	level := &slog.LevelVar{}
	l := &logger{cfg: Config{Level: level, Launch: slog.LevelInfo, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}}
	for n := range types.LogLevel_name {
		name := types.LogLevel(n)
		want, ok := loglevel.Read(name)
		if ok == (name == types.LogLevel_UNSPECIFIED) {
			t.Errorf("%v is a level: %v", name, ok)
		}
		if !ok {
			continue
		}
		if got, err := l.SetLogLevel(t.Context(), &loggerpb.SetLogLevelRequest{NewLevel: name}); err != nil || got.CurrentLevel != name || got.LaunchLevel != types.LogLevel_INFO || level.Level() != want {
			t.Errorf("%v: %v, %v", name, got, err)
		}
	}
	if _, err := l.SetLogLevel(t.Context(), &loggerpb.SetLogLevelRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no level: %v", err)
	}
	if got, err := l.ResetLogLevel(t.Context(), nil); err != nil || got.CurrentLevel != types.LogLevel_INFO || level.Level() != slog.LevelInfo {
		t.Errorf("reset: %v, %v", got, err)
	}
}
