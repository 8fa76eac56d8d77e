// SPDX-License-Identifier: Apache-2.0

package operate

import (
	"context"
	"log/slog"

	loggerv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/gate"
)

// loggerService is spire.api.server.logger.v1.Logger.
type loggerService struct {
	loggerv1.UnimplementedLoggerServer
	*Services
}

// levels are SPIRE's in slog's numbers, four apart. We log nothing above error and nothing below
// debug; a level out there is kept as it was said.
var levels = map[types.LogLevel]slog.Level{
	types.LogLevel_PANIC: slog.LevelError + 8, types.LogLevel_FATAL: slog.LevelError + 4, types.LogLevel_ERROR: slog.LevelError,
	types.LogLevel_WARN: slog.LevelWarn, types.LogLevel_INFO: slog.LevelInfo, types.LogLevel_DEBUG: slog.LevelDebug, types.LogLevel_TRACE: slog.LevelDebug - 4,
}

func levelName(l slog.Level) types.LogLevel {
	for name, level := range levels {
		if level == l {
			return name
		}
	}
	return types.LogLevel_UNSPECIFIED
}

// GetLogger returns the level now and at the start.
func (s *loggerService) GetLogger(context.Context, *loggerv1.GetLoggerRequest) (*types.Logger, error) {
	return &types.Logger{CurrentLevel: levelName(s.Level.Level()), LaunchLevel: levelName(s.LaunchLevel)}, nil
}

// SetLogLevel changes the level until the server stops.
func (s *loggerService) SetLogLevel(ctx context.Context, req *loggerv1.SetLogLevelRequest) (*types.Logger, error) {
	level, ok := levels[req.NewLevel]
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
