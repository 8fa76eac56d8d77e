// SPDX-License-Identifier: Apache-2.0

package api

import (
	"context"
	"crypto/x509"
	"errors"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/server/nodes"
)

// access is a set of kinds of callers.
type access uint8

const (
	anyone     access = 1 << iota
	local             // came through the Unix socket
	admin             // holds an SVID of an entry with admin
	downstream        // holds an SVID of an entry with downstream
	agent             // holds the active SVID of an admitted node
)

const operators = local | admin

// permissions is who may call what. A method that is not here can not be called.
var permissions = map[string]access{
	"/spire.api.server.agent.v1.Agent/AttestAgent":     anyone,
	"/spire.api.server.agent.v1.Agent/RenewAgent":      agent,
	"/spire.api.server.agent.v1.Agent/PostStatus":      agent,
	"/spire.api.server.agent.v1.Agent/CountAgents":     operators,
	"/spire.api.server.agent.v1.Agent/ListAgents":      operators,
	"/spire.api.server.agent.v1.Agent/GetAgent":        operators,
	"/spire.api.server.agent.v1.Agent/BanAgent":        operators,
	"/spire.api.server.agent.v1.Agent/DeleteAgent":     operators,
	"/spire.api.server.agent.v1.Agent/CreateJoinToken": operators,

	"/spire.api.server.entry.v1.Entry/CountEntries":          operators,
	"/spire.api.server.entry.v1.Entry/ListEntries":           operators,
	"/spire.api.server.entry.v1.Entry/GetEntry":              operators,
	"/spire.api.server.entry.v1.Entry/BatchCreateEntry":      operators,
	"/spire.api.server.entry.v1.Entry/BatchUpdateEntry":      operators,
	"/spire.api.server.entry.v1.Entry/BatchDeleteEntry":      operators,
	"/spire.api.server.entry.v1.Entry/GetAuthorizedEntries":  agent,
	"/spire.api.server.entry.v1.Entry/SyncAuthorizedEntries": agent,

	"/spire.api.server.svid.v1.SVID/MintX509SVID":        operators,
	"/spire.api.server.svid.v1.SVID/MintJWTSVID":         operators,
	"/spire.api.server.svid.v1.SVID/MintWITSVID":         operators,
	"/spire.api.server.svid.v1.SVID/BatchNewX509SVID":    agent,
	"/spire.api.server.svid.v1.SVID/NewJWTSVID":          agent,
	"/spire.api.server.svid.v1.SVID/BatchNewWITSVID":     agent,
	"/spire.api.server.svid.v1.SVID/NewDownstreamX509CA": downstream,

	"/spire.api.server.bundle.v1.Bundle/GetBundle":                  anyone,
	"/spire.api.server.bundle.v1.Bundle/CountBundles":               operators,
	"/spire.api.server.bundle.v1.Bundle/AppendBundle":               operators,
	"/spire.api.server.bundle.v1.Bundle/PublishJWTAuthority":        downstream,
	"/spire.api.server.bundle.v1.Bundle/PublishWITAuthority":        downstream,
	"/spire.api.server.bundle.v1.Bundle/ListFederatedBundles":       operators,
	"/spire.api.server.bundle.v1.Bundle/GetFederatedBundle":         operators | agent,
	"/spire.api.server.bundle.v1.Bundle/BatchCreateFederatedBundle": operators,
	"/spire.api.server.bundle.v1.Bundle/BatchUpdateFederatedBundle": operators,
	"/spire.api.server.bundle.v1.Bundle/BatchSetFederatedBundle":    operators,
	"/spire.api.server.bundle.v1.Bundle/BatchDeleteFederatedBundle": operators,

	"/assay.node.v1.Node/Watch":        agent,
	"/assay.node.v1.Node/SignX509SVID": agent,
	"/assay.node.v1.Node/Requote":      agent,

	"/assay.nodeadmin.v1.NodeAdmin/ListNodes":       operators,
	"/assay.nodeadmin.v1.NodeAdmin/GetNode":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Approve":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Suspend":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Readmit":         operators,
	"/assay.nodeadmin.v1.NodeAdmin/Ban":             operators,
	"/assay.nodeadmin.v1.NodeAdmin/ListInventory":   operators,
	"/assay.nodeadmin.v1.NodeAdmin/AddInventory":    operators,
	"/assay.nodeadmin.v1.NodeAdmin/RemoveInventory": operators,
	"/assay.nodeadmin.v1.NodeAdmin/ListRoots":       operators,
	"/assay.nodeadmin.v1.NodeAdmin/CheckNodes":      operators,

	"/spire.api.server.debug.v1.Debug/GetInfo": local,
	"/grpc.health.v1.Health/Check":             local,
	"/grpc.health.v1.Health/List":              local,
	"/grpc.health.v1.Health/Watch":             local,
}

// caller is who makes a call.
type caller struct {
	local bool
	user  string            // who opened the Unix socket
	id    spiffeid.ID       // zero without a certificate
	cert  *x509.Certificate // nil without
}

// operator names the caller where records say who did something.
func (c caller) operator() string {
	if c.local {
		return "operator " + c.user
	}
	return "operator " + c.id.String()
}

type callerKey struct{}

// callerOf returns the caller that the guard found.
func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

func (s *Server) guardUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	ctx, err := s.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	if why := unsupported[info.FullMethod]; why != "" {
		return nil, status.Error(codes.Unimplemented, why)
	}
	return handle(ctx, req)
}

func (s *Server) guardStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	ctx, err := s.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	return handle(srv, &guardedStream{stream, ctx})
}

type guardedStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (g *guardedStream) Context() context.Context { return g.ctx }

// admit identifies the caller and checks the table. The order is SPIRE's: anyone, local,
// admin, downstream, agent.
func (s *Server) admit(ctx context.Context, method string) (context.Context, error) {
	c, err := identify(ctx)
	if err != nil {
		return nil, err
	}
	ctx = context.WithValue(ctx, callerKey{}, c)
	allowed := permissions[method]
	switch {
	case allowed&anyone != 0, allowed&local != 0 && c.local, allowed&s.roles(c) != 0:
		return ctx, nil
	case allowed&agent == 0 || c.local || c.cert == nil:
		return nil, denied(method)
	}
	err = s.cfg.Nodes.Authorize(ctx, c.id, c.cert.SerialNumber.String(), c.cert.NotAfter)
	if d, ok := errors.AsType[*nodes.DeniedError](err); ok && d.Reason <= nodes.MustReattest {
		return nil, deniedBecause(d, denied(method)) // SPIRE's text
	}
	return ctx, agentError(err)
}

func denied(method string) error {
	return status.Error(codes.PermissionDenied, "authorization denied for method "+method)
}

// identify reads the caller off the connection. The handshake has verified the certificate.
func identify(ctx context.Context) (caller, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return caller{}, status.Error(codes.Internal, "the connection has no peer")
	}
	if p.Addr.Network() == "unix" {
		user := "unknown"
		if u, ok := p.AuthInfo.(socketUser); ok {
			user = u.name
		}
		return caller{local: true, user: user}, nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return caller{}, status.Error(codes.Internal, "the connection has no TLS")
	}
	certs := info.State.PeerCertificates
	if len(certs) == 0 {
		return caller{}, nil
	}
	id, err := x509svid.IDFromCert(certs[0])
	if err != nil {
		return caller{}, status.Errorf(codes.Unauthenticated, "client certificate is not an X.509-SVID: %v", err)
	}
	return caller{id: id, cert: certs[0]}, nil
}

// roles are what registration entries grant to the caller's SPIFFE ID.
func (s *Server) roles(c caller) access {
	if c.cert == nil {
		return 0
	}
	var r access
	for _, e := range s.cfg.Entries.BySPIFFEID(c.id) {
		if e.Admin {
			r |= admin
		}
		if e.Downstream {
			r |= downstream
		}
	}
	if r != 0 && s.cfg.Now().After(c.cert.NotAfter) {
		return 0 // the connection has outlived the SVID
	}
	return r
}

// agentError gives an error of server/nodes its code and, for a denial, its reason.
func agentError(err error) error {
	var d *nodes.DeniedError
	var st *nodes.StateError
	switch {
	case errors.As(err, &d):
		return deniedBecause(d, status.Error(codes.PermissionDenied, d.Error()))
	case errors.As(err, &st):
		return status.Error(codes.FailedPrecondition, st.Error())
	case errors.Is(err, nodes.ErrTooManyPending):
		return status.Error(codes.ResourceExhausted, err.Error())
	case errors.Is(err, nodes.ErrNotFound):
		return status.Error(codes.NotFound, "agent not found")
	}
	return rpcError(err)
}

// deniedBecause adds to a denial the reason that agents decide on: SPIRE's, to attest again or
// give up, and ours for states that SPIRE does not know.
func deniedBecause(d *nodes.DeniedError, denial error) error {
	var details []protoadapt.MessageV1
	switch d.Reason {
	case nodes.Pending, nodes.Suspended:
		state := nodes.StatePending
		if d.Reason == nodes.Suspended {
			state = nodes.StateSuspended
		}
		details = append(details, protoadapt.MessageV1Of(&nodev1.Standing{State: string(state), Reason: d.Detail, AttestAgain: d.Reattest}))
		if d.Reattest {
			details = append(details, protoadapt.MessageV1Of(&types.PermissionDeniedDetails{Reason: types.PermissionDeniedDetails_AGENT_MUST_REATTEST}))
		}
	default: // reasons are numbered as in the protocol
		details = append(details, protoadapt.MessageV1Of(&types.PermissionDeniedDetails{Reason: types.PermissionDeniedDetails_Reason(d.Reason)}))
	}
	st, err := status.Convert(denial).WithDetails(details...)
	if err != nil {
		return status.Errorf(codes.Internal, "encode the reason of a denial: %v", err)
	}
	return st.Err()
}
