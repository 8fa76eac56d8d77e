// SPDX-License-Identifier: Apache-2.0

package delivery

import (
	"context"
	"log/slog"
	"path"
	"time"

	"golang.org/x/time/rate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/limits"
)

// Limits bound what one caller may ask of the agent's faces. What is beyond them is Unavailable, as at SPIRE's agent: clients
// try that again later. It is counted before the caller is attested, which is the work to be spared.
type Limits struct {
	who      func(context.Context) limits.Caller
	streams  *limits.Count
	calls    map[string]*limits.Rate
	log      *slog.Logger
	exceeded rate.Sometimes
}

// NewLimits bounds the open streams, and how often a method, by the last component of its name, is called; "" is all others
// together. who says whom a request counts for.
func NewLimits(who func(context.Context) limits.Caller, streams *limits.Count, calls map[string]*limits.Rate, log *slog.Logger) *Limits {
	return &Limits{who: who, streams: streams, calls: calls, log: log, exceeded: rate.Sometimes{Interval: 10 * time.Second}}
}

// Options have a gRPC server keep the limits.
func (l *Limits) Options() []grpc.ServerOption {
	return []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(func(ctx context.Context, req any, info *grpc.UnaryServerInfo, h grpc.UnaryHandler) (any, error) {
			if err := l.call(l.who(ctx), info.FullMethod); err != nil {
				return nil, err
			}
			return h(ctx, req)
		}),
		grpc.ChainStreamInterceptor(func(srv any, st grpc.ServerStream, info *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			who := l.who(st.Context())
			if err := l.call(who, info.FullMethod); err != nil {
				return err
			}
			if err := l.streams.Enter(who); err != nil {
				l.tell(who, info.FullMethod, err.Error())
				return status.Errorf(codes.Unavailable, "too many streams: %v; close some", err)
			}
			defer l.streams.Leave(who)
			return h(srv, st)
		}),
	}
}

func (l *Limits) call(who limits.Caller, fullMethod string) error {
	method := path.Base(fullMethod)
	r, ok := l.calls[method]
	if !ok {
		r = l.calls[""]
	}
	if r.Allow(who) {
		return nil
	}
	l.tell(who, method, "calls per second")
	return status.Errorf(codes.Unavailable, "too many calls of %s: the processes of one user in one cgroup have %d a second; try again later, and reuse streams and tokens", method, r.PerSecond())
}

// tell logs now and then: the log is not to be flooded either.
func (l *Limits) tell(who limits.Caller, method, limit string) {
	l.exceeded.Do(func() {
		l.log.Warn("a caller is beyond its limits", "uid", who.UID, "cgroup", who.Cgroup, "method", method, "limit", limit)
	})
}
