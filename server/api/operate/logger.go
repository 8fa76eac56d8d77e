// SPDX-License-Identifier: Apache-2.0

package operate

import (
	"context"
	"log/slog"

	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/proto/loglevel"
	"github.com/assay-id/assay/server/gate"
)

// loggerService is spire.api.server.logger.v1.Logger.
type loggerService struct {
	loggerv1.UnimplementedLoggerServer
	*Services
}

// GetLogger returns the level now and at the start.
func (s *loggerService) GetLogger(context.Context, *loggerv1.GetLoggerRequest) (*types.Logger, error) {
	return &types.Logger{CurrentLevel: loglevel.Name(s.Level.Level()), LaunchLevel: loglevel.Name(s.LaunchLevel)}, nil
}

// SetLogLevel changes the level until the server stops.
func (s *loggerService) SetLogLevel(ctx context.Context, req *loggerv1.SetLogLevelRequest) (*types.Logger, error) {
	level, ok := loglevel.Read(req.NewLevel)
	if !ok {
		return nil, status.Errorf(codes.InvalidArgument, "unsupported log level %s; write one from PANIC to TRACE", req.NewLevel)
	}
	return s.set(ctx, level)
}

// ResetLogLevel goes back to the level of the start.
func (s *loggerService) ResetLogLevel(ctx context.Context, _ *loggerv1.ResetLogLevelRequest) (*types.Logger, error) {
	return s.set(ctx, s.LaunchLevel)
}

func (s *loggerService) set(ctx context.Context, level slog.Level) (*types.Logger, error) {
	gate.Log(ctx).Warn("log level changed", "from", s.Level.Level(), "to", level)
	s.Level.Set(level)
	return s.GetLogger(ctx, nil)
}
