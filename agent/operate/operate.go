// SPDX-License-Identifier: Apache-2.0

// Package operate serves SPIRE's Debug and Logger APIs of an agent (spire.agent.debug.v1 and spire.api.agent.logger.v1) to
// its operators.
package operate

import (
	"context"
	"log/slog"
	"math"
	"time"

	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	debugpb "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	loggerpb "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/proto/loglevel"
)

// Config is what Register needs.
type Config struct {
	// Identity is the node's.
	Identity x509svid.Source
	// Counts are the X.509-SVIDs and JWT-SVIDs that the agent holds, and when the server last told it entries.
	Counts func() (x509, jwt int, synced time.Time)
	// Started is when the agent was.
	Started time.Time
	// Level is the log's; it was Launch at the start.
	Level  *slog.LevelVar
	Launch slog.Level
	Logger *slog.Logger
	Now    func() time.Time
}

// Register adds both services to g. Who may use them is the listener's affair.
func Register(g *grpc.Server, cfg Config) {
	debugpb.RegisterDebugServer(g, &debug{cfg: cfg})
	loggerpb.RegisterLoggerServer(g, &logger{cfg: cfg})
}

type debug struct {
	debugpb.UnimplementedDebugServer
	cfg Config
}

// GetInfo tells of the node's SVID, which is left out before it has one, and of what the agent holds.
func (d *debug) GetInfo(context.Context, *debugpb.GetInfoRequest) (*debugpb.GetInfoResponse, error) {
	x509, jwt, synced := d.cfg.Counts()
	//lint:ignore SA1019 what was there before CachedX509SvidsCount is still read
	resp := &debugpb.GetInfoResponse{Uptime: number(int(d.cfg.Now().Sub(d.cfg.Started).Seconds())), SvidsCount: number(x509), CachedX509SvidsCount: number(x509), CachedJwtSvidsCount: number(jwt)}
	if !synced.IsZero() {
		resp.LastSyncSuccess = synced.Unix()
	}
	svid, err := d.cfg.Identity.GetX509SVID()
	if err != nil {
		return resp, nil
	}
	for _, c := range svid.Certificates {
		cert := &debugpb.GetInfoResponse_Cert{ExpiresAt: c.NotAfter.Unix(), Subject: c.Subject.String()}
		if id, err := x509svid.IDFromCert(c); err == nil { // an intermediate may have none
			cert.Id = &types.SPIFFEID{TrustDomain: id.TrustDomain().Name(), Path: id.Path()}
		}
		resp.SvidChain = append(resp.SvidChain, cert)
	}
	return resp, nil
}

// number is n, or the largest there is.
func number(n int) int32 { return int32(max(0, min(n, math.MaxInt32))) }

type logger struct {
	loggerpb.UnimplementedLoggerServer
	cfg Config
}

// GetLogger returns the level now and at the start.
func (l *logger) GetLogger(context.Context, *loggerpb.GetLoggerRequest) (*types.Logger, error) {
	return &types.Logger{CurrentLevel: loglevel.Name(l.cfg.Level.Level()), LaunchLevel: loglevel.Name(l.cfg.Launch)}, nil
}

// SetLogLevel changes the level until the agent stops.
func (l *logger) SetLogLevel(ctx context.Context, req *loggerpb.SetLogLevelRequest) (*types.Logger, error) {
	level, ok := loglevel.Read(req.NewLevel)
	if !ok {
		return nil, status.Errorf(codes.InvalidArgument, "unsupported log level %s; write one from PANIC to TRACE", req.NewLevel)
	}
	return l.set(ctx, level)
}

// ResetLogLevel goes back to the level of the start.
func (l *logger) ResetLogLevel(ctx context.Context, _ *loggerpb.ResetLogLevelRequest) (*types.Logger, error) {
	return l.set(ctx, l.cfg.Launch)
}

func (l *logger) set(ctx context.Context, level slog.Level) (*types.Logger, error) {
	l.cfg.Logger.Warn("log level changed", "from", l.cfg.Level.Level(), "to", level)
	l.cfg.Level.Set(level)
	return l.GetLogger(ctx, nil)
}
