// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"cmp"
	"fmt"
	"io"
	"log/slog"
	"net"
	"reflect"
	"strings"
)

// MetricsConfig is the block `metrics`.
type MetricsConfig struct {
	// Listen is host:port, for example "127.0.0.1:9988". Metrics name no workload and no SPIFFE ID; still, leave it on
	// an address that only Prometheus reaches.
	Listen string `hcl:"listen"`
}

// HealthConfig is the block `health`.
type HealthConfig struct {
	// Listen is host:port, for example "127.0.0.1:8080".
	Listen string `hcl:"listen"`
	// LivePath (default /live) and ReadyPath (default /ready).
	LivePath  string `hcl:"live_path,optional"`
	ReadyPath string `hcl:"ready_path,optional"`
}

func (c *HealthConfig) live() string  { return cmp.Or(c.LivePath, "/live") }
func (c *HealthConfig) ready() string { return cmp.Or(c.ReadyPath, "/ready") }

// Validate reports in one sentence what can not work. Both blocks may be nil.
func Validate(m *MetricsConfig, h *HealthConfig, logFormat string) error {
	if m != nil {
		if _, _, err := net.SplitHostPort(m.Listen); err != nil {
			return fmt.Errorf("block metrics: listen %q: write host:port, for example \"127.0.0.1:9988\"", m.Listen)
		}
	}
	if h != nil {
		if _, _, err := net.SplitHostPort(h.Listen); err != nil {
			return fmt.Errorf("block health: listen %q: write host:port, for example \"127.0.0.1:8080\"", h.Listen)
		}
		for _, path := range []string{h.live(), h.ready()} {
			if !strings.HasPrefix(path, "/") || strings.ContainsAny(path, "{} ") {
				return fmt.Errorf("block health: path %q: write one like \"/ready\"", path)
			}
		}
		if h.live() == h.ready() {
			return fmt.Errorf("block health: live_path and ready_path are both %s: give each its own", h.live())
		}
	}
	if logFormat != "" && logFormat != "text" && logFormat != "json" {
		return fmt.Errorf("log_format %q: write text or json", logFormat)
	}
	return nil
}

// NewLogger logs lines of text, or of JSON if the format is "json". Both say durations, numbers with names and addresses alike.
func NewLogger(out io.Writer, format string, level slog.Leveler) *slog.Logger {
	if format == "json" {
		return slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level, ReplaceAttr: legible}))
	}
	return slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: level}))
}

// legible has JSON show what text does: 1.5s and not 1500000000.
func legible(_ []string, a slog.Attr) slog.Attr {
	if a.Value.Kind() == slog.KindDuration {
		a.Value = slog.StringValue(a.Value.Duration().String())
	}
	s, ok := a.Value.Any().(fmt.Stringer)
	if p := reflect.ValueOf(s); ok && a.Value.Kind() == slog.KindAny && (p.Kind() != reflect.Pointer || !p.IsNil()) {
		if _, level := s.(slog.Level); !level {
			a.Value = slog.StringValue(s.String())
		}
	}
	return a
}
