// SPDX-License-Identifier: Apache-2.0

// Package observe is how a daemon shows what it does: metrics, health and profiles over HTTP, and the form of its log.
// It knows neither agent nor server.
//
//	metrics { listen }     /metrics           whoever reaches the address
//	health  { listen … }   /live, /ready      whoever reaches the address
//	the Unix socket        all of them, and /debug/pprof/…: root, and the daemon's user
package observe

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/sync/errgroup"
)

// Part is how one part of a daemon is.
type Part struct {
	// Fault is one sentence; nil when all is well.
	Fault error
	// Hinders says that with this fault the daemon does not do its work.
	Hinders bool
}

// Checks tell how a daemon is.
type Checks struct {
	// Live answers as long as no part hangs.
	Live func(context.Context) error
	// Ready tells of each part, by its name.
	Ready func(context.Context) map[string]Part
}

// Endpoints are a daemon's HTTP listeners. Make them with Listen.
type Endpoints struct {
	log     *slog.Logger
	servers map[net.Listener]*http.Server
}

// Config of Listen. Metrics and Health are nil where nobody listens on TCP.
type Config struct {
	Metrics *MetricsConfig
	Health  *HealthConfig
	// Socket is the path of the Unix socket. A file that an earlier run left there is replaced.
	Socket   string
	Registry *prometheus.Registry
	Checks   Checks
	Logger   *slog.Logger
}

// NewRegistry returns one with what every daemon shows: the Go runtime, the process, and build_info.
func NewRegistry(namespace, version string) *prometheus.Registry {
	r := prometheus.NewRegistry()
	info := prometheus.NewGauge(prometheus.GaugeOpts{
		Namespace: namespace, Name: "build_info", Help: "Always 1; the label tells which version runs.", ConstLabels: prometheus.Labels{"version": version},
	})
	info.Set(1)
	r.MustRegister(info, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// SocketBeside is where the socket of a daemon is whose admin socket has that path.
func SocketBeside(admin string) string { return strings.TrimSuffix(admin, ".sock") + "-http.sock" }

// Listen opens all listeners.
func Listen(c Config) (e *Endpoints, err error) {
	e = &Endpoints{log: c.Logger, servers: map[net.Listener]*http.Server{}}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	metrics := promhttp.HandlerFor(c.Registry, promhttp.HandlerOpts{ErrorLog: slog.NewLogLogger(c.Logger.Handler(), slog.LevelWarn)})
	health := HealthConfig{}
	if c.Health != nil {
		health = *c.Health
	}
	onTCP := func(block, address string, routes map[string]http.Handler) error {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("block %s: listen: %w; set another address", block, err)
		}
		e.add(l, routes)
		return nil
	}
	if c.Metrics != nil {
		if err := onTCP("metrics", c.Metrics.Listen, map[string]http.Handler{"/metrics": metrics}); err != nil {
			return e, err
		}
	}
	if c.Health != nil {
		if err := onTCP("health", health.Listen, c.Checks.routes(health.live(), health.ready())); err != nil {
			return e, err
		}
	}
	l, err := listenSocket(c.Socket)
	if err != nil {
		return e, fmt.Errorf("the socket for metrics, health and profiles: %w", err)
	}
	routes := c.Checks.routes("/live", "/ready")
	maps.Copy(routes, profiles())
	routes["/metrics"] = metrics
	e.add(l, routes)
	return e, nil
}

func (e *Endpoints) add(l net.Listener, routes map[string]http.Handler) {
	mux := http.NewServeMux()
	for path, h := range routes {
		mux.Handle("GET "+path, h)
	}
	e.servers[l] = &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: time.Minute, ErrorLog: slog.NewLogLogger(e.log.Handler(), slog.LevelDebug)}
}

// listenSocket opens a socket for root and the daemon's user.
func listenSocket(path string) (net.Listener, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o700); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

func profiles() map[string]http.Handler {
	return map[string]http.Handler{
		"/debug/pprof/": http.HandlerFunc(pprof.Index), "/debug/pprof/profile": http.HandlerFunc(pprof.Profile), "/debug/pprof/trace": http.HandlerFunc(pprof.Trace),
	}
}

// answerWithin is how long a part that hangs keeps an answer about health back.
const answerWithin = 5 * time.Second

func (c Checks) routes(live, ready string) map[string]http.Handler {
	answer := func(check func(context.Context) map[string]Part) http.Handler {
		return http.TimeoutHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { report(w, check(r.Context())) }), answerWithin, "a part hangs\n")
	}
	return map[string]http.Handler{
		ready: answer(c.Ready),
		live: answer(func(ctx context.Context) map[string]Part {
			return map[string]Part{"daemon": {Fault: c.Live(ctx), Hinders: true}}
		}),
	}
}

// report answers as SPIRE's health checks do: 200 or 500, and JSON with each part by its name.
func report(w http.ResponseWriter, parts map[string]Part) {
	body, code := map[string]map[string]string{}, http.StatusOK
	for name, p := range parts {
		body[name] = map[string]string{}
		if p.Fault != nil {
			body[name]["fault"] = p.Fault.Error()
			if p.Hinders {
				code = http.StatusInternalServerError
			}
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(body) // to a client who went away
}

// Close closes listeners that are not served.
func (e *Endpoints) Close() (err error) {
	for l := range e.servers {
		err = errors.Join(err, l.Close())
	}
	return err
}

// Serve answers until ctx ends.
func (e *Endpoints) Serve(ctx context.Context) error {
	var group errgroup.Group
	for l, server := range e.servers {
		group.Go(func() error {
			if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serving HTTP on %s: %w", l.Addr(), err)
			}
			return nil
		})
		context.AfterFunc(ctx, func() { _ = server.Close() })
	}
	return group.Wait()
}
