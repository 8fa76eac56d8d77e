// SPDX-License-Identifier: Apache-2.0

package server_test

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	authorityv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server"
)

// localKind are the calls of LocalAuthority for one kind of authority.
type localKind struct {
	state                   func() (active, prepared, old *authorityv1.AuthorityState, err error)
	prepare                 func() (*authorityv1.AuthorityState, error)
	activate, taint, revoke func(context.Context, string) (*authorityv1.AuthorityState, error)
	inBundle                func(*types.Bundle, string) (there, tainted bool)
}

func localKinds(t *testing.T, c authorityv1.LocalAuthorityClient) map[string]localKind {
	ctx := t.Context()
	return map[string]localKind{
		"X509": {
			func() (_, _, _ *authorityv1.AuthorityState, err error) {
				r, err := c.GetX509AuthorityState(ctx, &authorityv1.GetX509AuthorityStateRequest{})
				return r.GetActive(), r.GetPrepared(), r.GetOld(), err
			},
			func() (*authorityv1.AuthorityState, error) {
				r, err := c.PrepareX509Authority(ctx, &authorityv1.PrepareX509AuthorityRequest{})
				return r.GetPreparedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.ActivateX509Authority(ctx, &authorityv1.ActivateX509AuthorityRequest{AuthorityId: id})
				return r.GetActivatedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.TaintX509Authority(ctx, &authorityv1.TaintX509AuthorityRequest{AuthorityId: id})
				return r.GetTaintedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.RevokeX509Authority(ctx, &authorityv1.RevokeX509AuthorityRequest{AuthorityId: id})
				return r.GetRevokedAuthority(), err
			},
			func(b *types.Bundle, id string) (bool, bool) {
				for _, a := range b.X509Authorities {
					cert, err := x509.ParseCertificate(a.Asn1)
					if err == nil && hexOf(cert.SubjectKeyId) == id {
						return true, a.Tainted
					}
				}
				return false, false
			},
		},
		"JWT": {
			func() (_, _, _ *authorityv1.AuthorityState, err error) {
				r, err := c.GetJWTAuthorityState(ctx, &authorityv1.GetJWTAuthorityStateRequest{})
				return r.GetActive(), r.GetPrepared(), r.GetOld(), err
			},
			func() (*authorityv1.AuthorityState, error) {
				r, err := c.PrepareJWTAuthority(ctx, &authorityv1.PrepareJWTAuthorityRequest{})
				return r.GetPreparedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.ActivateJWTAuthority(ctx, &authorityv1.ActivateJWTAuthorityRequest{AuthorityId: id})
				return r.GetActivatedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.TaintJWTAuthority(ctx, &authorityv1.TaintJWTAuthorityRequest{AuthorityId: id})
				return r.GetTaintedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.RevokeJWTAuthority(ctx, &authorityv1.RevokeJWTAuthorityRequest{AuthorityId: id})
				return r.GetRevokedAuthority(), err
			},
			func(b *types.Bundle, id string) (bool, bool) {
				for _, a := range b.JwtAuthorities {
					if a.KeyId == id {
						return true, a.Tainted
					}
				}
				return false, false
			},
		},
		"WIT": {
			func() (_, _, _ *authorityv1.AuthorityState, err error) {
				r, err := c.GetWITAuthorityState(ctx, &authorityv1.GetWITAuthorityStateRequest{})
				return r.GetActive(), r.GetPrepared(), r.GetOld(), err
			},
			func() (*authorityv1.AuthorityState, error) {
				r, err := c.PrepareWITAuthority(ctx, &authorityv1.PrepareWITAuthorityRequest{})
				return r.GetPreparedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.ActivateWITAuthority(ctx, &authorityv1.ActivateWITAuthorityRequest{AuthorityId: id})
				return r.GetActivatedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.TaintWITAuthority(ctx, &authorityv1.TaintWITAuthorityRequest{AuthorityId: id})
				return r.GetTaintedAuthority(), err
			},
			func(ctx context.Context, id string) (*authorityv1.AuthorityState, error) {
				r, err := c.RevokeWITAuthority(ctx, &authorityv1.RevokeWITAuthorityRequest{AuthorityId: id})
				return r.GetRevokedAuthority(), err
			},
			func(b *types.Bundle, id string) (bool, bool) {
				for _, a := range b.WitAuthorities {
					if a.KeyId == id {
						return true, a.Tainted
					}
				}
				return false, false
			},
		},
	}
}

// TestLocalAuthority: prepare, activate, taint, revoke for each kind, in that order only; and each step
// reaches an agent's open feed.
func TestLocalAuthority(t *testing.T) {
	e := start(t, nil)
	a := e.newAgent()
	for kind, k := range localKinds(t, e.admin.local) {
		t.Run(kind, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			feed := a.watch(ctx, t, &nodev1.WatchRequest{})
			until := func(what string, holds func(*types.Bundle) bool) {
				t.Helper()
				for {
					m, err := feed.Recv()
					if err != nil {
						t.Fatalf("%s does not reach the feed: %v", what, err)
					}
					if m.Bundle == nil {
						continue
					}
					if err := feed.Send(&nodev1.WatchRequest{BundleSequence: m.Bundle.SequenceNumber}); err != nil {
						t.Fatal(err)
					}
					if holds(m.Bundle) {
						return
					}
				}
			}
			first, prepared, old, err := k.state()
			if err != nil || first == nil || prepared != nil || old != nil || first.ExpiresAt < time.Now().Unix() || first.UpstreamAuthoritySubjectKeyId != "" {
				t.Fatalf("at first: %v, %v, %v, %v", first, prepared, old, err)
			}
			_, err = k.activate(ctx, first.AuthorityId)
			wantCode(t, "activate the active one", err, codes.InvalidArgument)
			_, err = k.taint(ctx, first.AuthorityId)
			wantCode(t, "taint the active one", err, codes.InvalidArgument)
			second, err := k.prepare()
			if err != nil || second.AuthorityId == first.AuthorityId {
				t.Fatal(second, err)
			}
			until("the prepared authority", func(b *types.Bundle) bool { there, _ := k.inBundle(b, second.AuthorityId); return there })
			_, err = k.activate(ctx, "")
			wantCode(t, "activate nothing", err, codes.InvalidArgument)
			if got, err := k.activate(ctx, second.AuthorityId); err != nil || got.AuthorityId != second.AuthorityId {
				t.Fatal(got, err)
			}
			active, prepared, old, err := k.state()
			if err != nil || active.AuthorityId != second.AuthorityId || prepared != nil || old.GetAuthorityId() != first.AuthorityId {
				t.Errorf("activated: %v, %v, %v, %v", active, prepared, old, err)
			}
			_, err = k.revoke(ctx, first.AuthorityId)
			wantCode(t, "revoke an untainted one", err, codes.Internal)
			_, err = k.taint(ctx, second.AuthorityId)
			wantCode(t, "taint the active one", err, codes.InvalidArgument)
			if _, err := k.taint(ctx, first.AuthorityId); err != nil {
				t.Fatal(err)
			}
			until("the taint", func(b *types.Bundle) bool { _, tainted := k.inBundle(b, first.AuthorityId); return tainted })
			if _, tainted := k.inBundle(e.ownBundle(), first.AuthorityId); !tainted {
				t.Error("GetBundle does not show the taint")
			}
			if kind == "X509" { // the agent's own SVID is below the old one
				e.bundle = bundleOf(t, e.ownBundle())
				renewed := e.newAgent()
				a.clients, a.cert, a.id = renewed.clients, renewed.cert, renewed.id
			}
			if _, err := k.revoke(ctx, first.AuthorityId); err != nil {
				t.Fatal(err)
			}
			until("the revocation", func(b *types.Bundle) bool { there, _ := k.inBundle(b, first.AuthorityId); return !there })
			_, err = k.revoke(ctx, first.AuthorityId)
			wantCode(t, "revoke again", err, codes.InvalidArgument)
			_, err = k.revoke(ctx, "")
			wantCode(t, "revoke nothing", err, codes.InvalidArgument)
		})
	}
	for _, err := range []error{
		func() error {
			_, err := e.admin.local.TaintX509UpstreamAuthority(t.Context(), &authorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: "00"})
			return err
		}(),
		func() error {
			_, err := e.admin.local.RevokeX509UpstreamAuthority(t.Context(), &authorityv1.RevokeX509UpstreamAuthorityRequest{SubjectKeyId: "00"})
			return err
		}(),
	} {
		wantCode(t, "without an upstream authority", err, codes.FailedPrecondition)
	}
}

// TestUpstreamAuthority: a root of the upstream is tainted and revoked once we are below another.
func TestUpstreamAuthority(t *testing.T) {
	dir := t.TempDir()
	certPath, keyPath := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "key.pem")
	use := func(ca *foreignCA) {
		t.Helper()
		der, err := x509.MarshalPKCS8PrivateKey(ca.key)
		if err == nil {
			err = os.WriteFile(keyPath, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
		}
		if err == nil {
			err = os.WriteFile(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	before, after := newForeignCA(t, "example.org"), newForeignCA(t, "example.org")
	oldID, newID := hexOf(before.cert.SubjectKeyId), hexOf(after.cert.SubjectKeyId)
	use(before)
	e := start(t, func(c *server.Config) {
		c.CATTL, c.DefaultX509SVIDTTL = "1h", "5m"
		c.UpstreamAuthority = &server.UpstreamConfig{Type: "disk", CertFilePath: certPath, KeyFilePath: keyPath}
	})
	k := localKinds(t, e.admin.local)["X509"]
	if active, _, _, err := k.state(); err != nil || active.UpstreamAuthoritySubjectKeyId != oldID {
		t.Fatalf("at first: %v, %v; want below %s", active, err, oldID)
	}
	taint := func(id string) error {
		_, err := e.admin.local.TaintX509UpstreamAuthority(t.Context(), &authorityv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: id})
		return err
	}
	revoke := func(id string) error {
		_, err := e.admin.local.RevokeX509UpstreamAuthority(t.Context(), &authorityv1.RevokeX509UpstreamAuthorityRequest{SubjectKeyId: id})
		return err
	}
	wantCode(t, "taint the root that we are below", taint(oldID), codes.InvalidArgument)
	use(after)
	next, err := k.prepare()
	if err != nil || next.UpstreamAuthoritySubjectKeyId != newID {
		t.Fatal(next, err)
	}
	if _, err := k.activate(t.Context(), next.AuthorityId); err != nil {
		t.Fatal(err)
	}
	_, err = k.taint(t.Context(), "00")
	wantCode(t, "taint our own authority below an upstream", err, codes.FailedPrecondition)
	wantCode(t, "revoke an untainted root", revoke(oldID), codes.Internal)
	if err := taint(strings.ToUpper(oldID)); err != nil {
		t.Fatal(err)
	}
	if there, tainted := k.inBundle(e.ownBundle(), oldID); !there || !tainted {
		t.Errorf("in the bundle: %t, tainted: %t", there, tainted)
	}
	if err := revoke(oldID); err != nil {
		t.Fatal(err)
	}
	if there, _ := k.inBundle(e.ownBundle(), oldID); there {
		t.Error("the revoked root is in the bundle")
	}
	wantCode(t, "revoke the root that we are below", revoke(newID), codes.InvalidArgument)
}

// TestActivationWaitsForAgents: a connected agent that has not shown the new bundle holds activation
// back; one that only polls, as SPIRE's, does not.
func TestActivationWaitsForAgents(t *testing.T) {
	e := start(t, nil)
	a, polling := e.newAgent(), e.newAgent()
	k := localKinds(t, e.admin.local)["JWT"]
	feed := a.watch(t.Context(), t, &nodev1.WatchRequest{})
	if _, err := feed.Recv(); err != nil {
		t.Fatal(err)
	}
	next, err := k.prepare()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := polling.bundle.GetBundle(t.Context(), &bundlev1.GetBundleRequest{}); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	_, err = k.activate(short, next.AuthorityId)
	wantCode(t, "while an agent has not shown the bundle", err, codes.DeadlineExceeded)
	if active, _, _, err := k.state(); err != nil || active.AuthorityId == next.AuthorityId {
		t.Errorf("it is active: %v, %v", active, err)
	}
	if err := feed.Send(&nodev1.WatchRequest{BundleSequence: e.ownBundle().SequenceNumber}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := k.activate(t.Context(), next.AuthorityId); err != nil || time.Since(began) > 10*time.Second {
		t.Errorf("after the agent showed it: %v after %v", err, time.Since(began))
	}
}
