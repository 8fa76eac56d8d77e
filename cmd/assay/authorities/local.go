// SPDX-License-Identifier: Apache-2.0

package authorities

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
	localv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/localauthority/v1"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/cmd/assay/cli"
)

// kind is one kind of authority of the server that answers; each server has its own.
type kind struct {
	name, what              string
	show                    func(context.Context, localv1.LocalAuthorityClient) (states, error)
	prepare                 func(context.Context, localv1.LocalAuthorityClient) (proto.Message, *localv1.AuthorityState, error)
	activate, taint, revoke func(context.Context, localv1.LocalAuthorityClient, string) (proto.Message, *localv1.AuthorityState, error)
}

// states are the slots of a kind.
type states interface {
	proto.Message
	GetActive() *localv1.AuthorityState
	GetPrepared() *localv1.AuthorityState
	GetOld() *localv1.AuthorityState
}

type local = localv1.LocalAuthorityClient

var kinds = []kind{
	{
		name: "x509", what: "X.509",
		show: func(ctx context.Context, c local) (states, error) {
			return c.GetX509AuthorityState(ctx, &localv1.GetX509AuthorityStateRequest{})
		},
		prepare: func(ctx context.Context, c local) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.PrepareX509Authority(ctx, &localv1.PrepareX509AuthorityRequest{})
			return r, r.GetPreparedAuthority(), err
		},
		activate: func(ctx context.Context, c local, id string) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.ActivateX509Authority(ctx, &localv1.ActivateX509AuthorityRequest{AuthorityId: id})
			return r, r.GetActivatedAuthority(), err
		},
		taint: func(ctx context.Context, c local, id string) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.TaintX509Authority(ctx, &localv1.TaintX509AuthorityRequest{AuthorityId: id})
			return r, r.GetTaintedAuthority(), err
		},
		revoke: func(ctx context.Context, c local, id string) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.RevokeX509Authority(ctx, &localv1.RevokeX509AuthorityRequest{AuthorityId: id})
			return r, r.GetRevokedAuthority(), err
		},
	},
	{
		name: "jwt", what: "JWT",
		show: func(ctx context.Context, c local) (states, error) {
			return c.GetJWTAuthorityState(ctx, &localv1.GetJWTAuthorityStateRequest{})
		},
		prepare: func(ctx context.Context, c local) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.PrepareJWTAuthority(ctx, &localv1.PrepareJWTAuthorityRequest{})
			return r, r.GetPreparedAuthority(), err
		},
		activate: func(ctx context.Context, c local, id string) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.ActivateJWTAuthority(ctx, &localv1.ActivateJWTAuthorityRequest{AuthorityId: id})
			return r, r.GetActivatedAuthority(), err
		},
		taint: func(ctx context.Context, c local, id string) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.TaintJWTAuthority(ctx, &localv1.TaintJWTAuthorityRequest{AuthorityId: id})
			return r, r.GetTaintedAuthority(), err
		},
		revoke: func(ctx context.Context, c local, id string) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.RevokeJWTAuthority(ctx, &localv1.RevokeJWTAuthorityRequest{AuthorityId: id})
			return r, r.GetRevokedAuthority(), err
		},
	},
	{
		name: "wit", what: "WIT",
		show: func(ctx context.Context, c local) (states, error) {
			return c.GetWITAuthorityState(ctx, &localv1.GetWITAuthorityStateRequest{})
		},
		prepare: func(ctx context.Context, c local) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.PrepareWITAuthority(ctx, &localv1.PrepareWITAuthorityRequest{})
			return r, r.GetPreparedAuthority(), err
		},
		activate: func(ctx context.Context, c local, id string) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.ActivateWITAuthority(ctx, &localv1.ActivateWITAuthorityRequest{AuthorityId: id})
			return r, r.GetActivatedAuthority(), err
		},
		taint: func(ctx context.Context, c local, id string) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.TaintWITAuthority(ctx, &localv1.TaintWITAuthorityRequest{AuthorityId: id})
			return r, r.GetTaintedAuthority(), err
		},
		revoke: func(ctx context.Context, c local, id string) (proto.Message, *localv1.AuthorityState, error) {
			r, err := c.RevokeWITAuthority(ctx, &localv1.RevokeWITAuthorityRequest{AuthorityId: id})
			return r, r.GetRevokedAuthority(), err
		},
	},
}

func (a *app) localAuthority() *cobra.Command {
	group := cli.Group("localauthority", "What this server signs with, and its life: prepare, activate, taint the former one, revoke it")
	for _, k := range kinds {
		group.AddCommand(cli.Group(k.name, "The "+k.what+" authority", a.localShow(k), a.localPrepare(k),
			a.localOne(k, "activate", "Signs with the prepared authority from now on; the former one becomes the old", "activated", k.activate),
			a.localOne(k, "taint", "Says that the old authority is not to be relied on: whatever it signed is made anew at once", "tainted", k.taint),
			a.localOne(k, "revoke", "Takes the old, tainted authority out of the bundle: what it signed is refused from then on", "revoked", k.revoke)))
	}
	return group
}

func (a *app) onAuthorities(f func(local) error) error {
	return client(a, localv1.NewLocalAuthorityClient, f)
}

func (a *app) localShow(k kind) *cobra.Command {
	return &cobra.Command{Use: "show", Short: "Shows the active, the prepared and the old authority", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.onAuthorities(func(client local) error {
			s, err := k.show(c.Context(), client)
			if err != nil {
				return err
			}
			return a.Show(s, func(w io.Writer) {
				authorityText(w, "active", s.GetActive())
				authorityText(w, "prepared", s.GetPrepared())
				authorityText(w, "old", s.GetOld())
			})
		})
	}}
}

func (a *app) localPrepare(k kind) *cobra.Command {
	return &cobra.Command{Use: "prepare", Short: "Makes and publishes a new authority, which does not sign yet", Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.onAuthorities(func(client local) error {
			m, s, err := k.prepare(c.Context(), client)
			if err != nil {
				return err
			}
			return a.Show(m, func(w io.Writer) { authorityText(w, "prepared", s) })
		})
	}}
}

func (a *app) localOne(k kind, use, short, done string, call func(context.Context, local, string) (proto.Message, *localv1.AuthorityState, error)) *cobra.Command {
	var id string
	c := &cobra.Command{Use: use + " --authority-id ID", Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
		return a.onAuthorities(func(client local) error {
			m, s, err := call(c.Context(), client, id)
			if err != nil {
				return err
			}
			return a.Show(m, func(w io.Writer) { authorityText(w, done, s) })
		})
	}}
	c.Flags().StringVar(&id, "authority-id", "", "the authority (see show)")
	return required(c, "authority-id")
}

func authorityText(w io.Writer, slot string, s *localv1.AuthorityState) {
	if s == nil || s.AuthorityId == "" {
		fmt.Fprintf(w, "%s\tnone\n", slot)
		return
	}
	fmt.Fprintf(w, "%s\t%s until %s\n", slot, s.AuthorityId, cli.TimeText(s.ExpiresAt))
	if s.UpstreamAuthoritySubjectKeyId != "" {
		fmt.Fprintf(w, "\tbelow the upstream authority %s\n", s.UpstreamAuthoritySubjectKeyId)
	}
}

func (a *app) upstreamAuthority() *cobra.Command {
	one := func(use, short, done string, call func(context.Context, local, string) (proto.Message, error)) *cobra.Command {
		var id string
		c := &cobra.Command{Use: use + " --subject-key-id HEX", Short: short, Args: cobra.NoArgs, RunE: func(c *cobra.Command, _ []string) error {
			return a.onAuthorities(func(client local) error {
				m, err := call(c.Context(), client, id)
				if err != nil {
					return err
				}
				return a.Show(m, func(w io.Writer) { fmt.Fprintf(w, "%s the upstream authority %s\n", done, id) })
			})
		}}
		c.Flags().StringVar(&id, "subject-key-id", "", "subject key identifier of the upstream authority's certificate")
		return required(c, "subject-key-id")
	}
	return cli.Group("upstreamauthority", "The authority above this server's, where there is one",
		one("taint", "Says that an upstream authority is not to be relied on; the server must have one below another already", "tainted", func(ctx context.Context, c local, id string) (proto.Message, error) {
			return c.TaintX509UpstreamAuthority(ctx, &localv1.TaintX509UpstreamAuthorityRequest{SubjectKeyId: id})
		}),
		one("revoke", "Takes a tainted upstream authority out of the bundle", "revoked", func(ctx context.Context, c local, id string) (proto.Message, error) {
			return c.RevokeX509UpstreamAuthority(ctx, &localv1.RevokeX509UpstreamAuthorityRequest{SubjectKeyId: id})
		}))
}
