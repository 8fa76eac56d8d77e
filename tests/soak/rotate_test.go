// SPDX-License-Identifier: Apache-2.0

package soak

import (
	"context"
	"math/rand/v2"
	"time"

	authorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/tests/soak/fleet"
)

// verbs of LocalAuthority for one kind of authority.
type verbs struct {
	kind                    string
	prepare                 func(context.Context) (string, error)
	activate, taint, revoke func(ctx context.Context, id string) error
	active                  func(context.Context) (string, error)
}

func verbsOf(s *fleet.Server) []verbs {
	c := authorityv1.NewLocalAuthorityClient(s.Admin)
	return []verbs{x509Verbs(c), jwtVerbs(c), witVerbs(c)}
}

func x509Verbs(c authorityv1.LocalAuthorityClient) verbs {
	return verbs{
		kind: "x509",
		prepare: func(ctx context.Context) (string, error) {
			r, err := c.PrepareX509Authority(ctx, &authorityv1.PrepareX509AuthorityRequest{})
			return r.GetPreparedAuthority().GetAuthorityId(), err
		},
		activate: func(ctx context.Context, id string) error {
			_, err := c.ActivateX509Authority(ctx, &authorityv1.ActivateX509AuthorityRequest{AuthorityId: id})
			return err
		},
		taint: func(ctx context.Context, id string) error {
			_, err := c.TaintX509Authority(ctx, &authorityv1.TaintX509AuthorityRequest{AuthorityId: id})
			return err
		},
		revoke: func(ctx context.Context, id string) error {
			_, err := c.RevokeX509Authority(ctx, &authorityv1.RevokeX509AuthorityRequest{AuthorityId: id})
			return err
		},
		active: func(ctx context.Context) (string, error) {
			r, err := c.GetX509AuthorityState(ctx, &authorityv1.GetX509AuthorityStateRequest{})
			return r.GetActive().GetAuthorityId(), err
		},
	}
}

func jwtVerbs(c authorityv1.LocalAuthorityClient) verbs {
	return verbs{
		kind: "jwt",
		prepare: func(ctx context.Context) (string, error) {
			r, err := c.PrepareJWTAuthority(ctx, &authorityv1.PrepareJWTAuthorityRequest{})
			return r.GetPreparedAuthority().GetAuthorityId(), err
		},
		activate: func(ctx context.Context, id string) error {
			_, err := c.ActivateJWTAuthority(ctx, &authorityv1.ActivateJWTAuthorityRequest{AuthorityId: id})
			return err
		},
		taint: func(ctx context.Context, id string) error {
			_, err := c.TaintJWTAuthority(ctx, &authorityv1.TaintJWTAuthorityRequest{AuthorityId: id})
			return err
		},
		revoke: func(ctx context.Context, id string) error {
			_, err := c.RevokeJWTAuthority(ctx, &authorityv1.RevokeJWTAuthorityRequest{AuthorityId: id})
			return err
		},
		active: func(ctx context.Context) (string, error) {
			r, err := c.GetJWTAuthorityState(ctx, &authorityv1.GetJWTAuthorityStateRequest{})
			return r.GetActive().GetAuthorityId(), err
		},
	}
}

func witVerbs(c authorityv1.LocalAuthorityClient) verbs {
	return verbs{
		kind: "wit",
		prepare: func(ctx context.Context) (string, error) {
			r, err := c.PrepareWITAuthority(ctx, &authorityv1.PrepareWITAuthorityRequest{})
			return r.GetPreparedAuthority().GetAuthorityId(), err
		},
		activate: func(ctx context.Context, id string) error {
			_, err := c.ActivateWITAuthority(ctx, &authorityv1.ActivateWITAuthorityRequest{AuthorityId: id})
			return err
		},
		taint: func(ctx context.Context, id string) error {
			_, err := c.TaintWITAuthority(ctx, &authorityv1.TaintWITAuthorityRequest{AuthorityId: id})
			return err
		},
		revoke: func(ctx context.Context, id string) error {
			_, err := c.RevokeWITAuthority(ctx, &authorityv1.RevokeWITAuthorityRequest{AuthorityId: id})
			return err
		},
		active: func(ctx context.Context) (string, error) {
			r, err := c.GetWITAuthorityState(ctx, &authorityv1.GetWITAuthorityStateRequest{})
			return r.GetActive().GetAuthorityId(), err
		},
	}
}

// rotate has random servers go to new authorities, and revokes some of the old ones.
func (w *world) rotate(ctx context.Context) {
	for {
		v := verbsOf(w.anyServer())[rand.IntN(3)]
		w.quiet.RLock()
		old := w.step(ctx, v, rand.IntN(2) == 0)
		w.quiet.RUnlock()
		if old != "" {
			pause(ctx, 3*time.Second) // agents replace what it signed
			w.quiet.RLock()
			if w.done(ctx, v.kind+" revoke", func(ctx context.Context) error { return v.revoke(ctx, old) }) {
				w.count("authorities revoked", 1)
			}
			w.quiet.RUnlock()
		}
		if !pause(ctx, time.Duration(2000+rand.IntN(4000))*time.Millisecond) {
			return
		}
	}
}

// step prepares, activates and perhaps taints the former authority, which it returns then.
func (w *world) step(ctx context.Context, v verbs, taint bool) (tainted string) {
	var old, next string
	ok := w.done(ctx, v.kind+" state", func(ctx context.Context) (err error) { old, err = v.active(ctx); return err }) &&
		w.done(ctx, v.kind+" prepare", func(ctx context.Context) (err error) { next, err = v.prepare(ctx); return err }) &&
		pause(ctx, rand.N(2*time.Second)) &&
		w.done(ctx, v.kind+" activate", func(ctx context.Context) error { return v.activate(ctx, next) })
	if !ok {
		return ""
	}
	w.count("authorities activated", 1)
	if taint && w.done(ctx, v.kind+" taint", func(ctx context.Context) error { return v.taint(ctx, old) }) {
		w.count("authorities tainted", 1)
		return old
	}
	return ""
}

// done reports whether a verb was done. A server may be gone, or have rotated by itself meanwhile.
func (w *world) done(ctx context.Context, what string, f func(context.Context) error) bool {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	err := f(ctx)
	switch c := status.Code(err); c {
	case codes.OK:
		return true
	case codes.Unavailable, codes.DeadlineExceeded, codes.Canceled, codes.InvalidArgument, codes.Internal:
		w.count("calls: "+what+": "+c.String(), 1)
		if _, seen := w.said.LoadOrStore(what+c.String(), true); !seen {
			w.t.Logf("the first %s %s: %v", what, c, err)
		}
	default:
		w.violation("%s: %v", what, err)
	}
	return false
}

// pause reports whether the context is still alive after the time.
func pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// havoc kills servers and starts them again.
func (w *world) havoc(ctx context.Context, every time.Duration) {
	for pause(ctx, every/2+rand.N(every)) {
		w.quiet.RLock()
		w.crash(ctx)
		w.quiet.RUnlock()
	}
}

func (w *world) crash(ctx context.Context) {
	w.starting.Lock()
	defer w.starting.Unlock()
	servers := *w.servers.Load()
	s := servers[rand.IntN(len(servers))]
	if err := s.Kill(); err != nil {
		w.violation("kill: %v", err)
	}
	w.count("servers killed", 1)
	time.Sleep(rand.N(2 * time.Second))
	if err := s.Start(context.WithoutCancel(ctx)); err != nil {
		w.violation("a killed server does not start again: %v", err)
	}
}
