// SPDX-License-Identifier: Apache-2.0

// Package loglevel has SPIRE's log levels (spire.api.types.LogLevel) in slog's numbers.
package loglevel

import (
	"log/slog"

	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// levels are four apart. We log nothing above error and nothing below debug; a level out there is kept as it was said.
var levels = map[types.LogLevel]slog.Level{
	types.LogLevel_PANIC: slog.LevelError + 8, types.LogLevel_FATAL: slog.LevelError + 4, types.LogLevel_ERROR: slog.LevelError,
	types.LogLevel_WARN: slog.LevelWarn, types.LogLevel_INFO: slog.LevelInfo, types.LogLevel_DEBUG: slog.LevelDebug, types.LogLevel_TRACE: slog.LevelDebug - 4,
}

// Read returns the level that a request names; ok is false if it names none.
func Read(name types.LogLevel) (level slog.Level, ok bool) {
	level, ok = levels[name]
	return level, ok
}

// Name returns the name of a level, UNSPECIFIED if it has none.
func Name(l slog.Level) types.LogLevel {
	for name, level := range levels {
		if level == l {
			return name
		}
	}
	return types.LogLevel_UNSPECIFIED
}
