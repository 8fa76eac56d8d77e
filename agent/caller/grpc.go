// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"context"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"

	"github.com/assay-id/assay/agent/limits"
)

// authInfo carries a connection to the handlers of its requests.
type authInfo struct {
	credentials.CommonAuthInfo
	conn *Conn
}

func (authInfo) AuthType() string { return "assay-caller" }

// Credentials makes a gRPC server hand the caller of each connection to its handlers; see
// FromContext. The server must serve on a *Listener.
func Credentials() credentials.TransportCredentials { return transport{} }

type transport struct{}

func (transport) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, ok := raw.(*Conn)
	if !ok {
		return nil, nil, fmt.Errorf("a connection of type %T has no caller: serve on a caller.Listener", raw)
	}
	// A Unix socket can not be read or changed on the way, as gRPC's own "local" credentials say.
	return conn, authInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, conn}, nil
}

func (transport) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("caller credentials are for servers")
}

func (transport) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "assay-caller"}
}

func (t transport) Clone() credentials.TransportCredentials { return t }

func (transport) OverrideServerName(string) error { return nil }

// FromContext returns the caller of a gRPC request, or the *Refusal that the handler answers
// with PermissionDenied. Handlers call Caller.Check next.
func FromContext(ctx context.Context) (*Caller, error) {
	conn := connOf(ctx)
	if conn == nil {
		return nil, refuse(NoBinding, "the request came over a connection without a caller")
	}
	return conn.Caller()
}

// Who returns whom limits of a gRPC request are counted for.
func Who(ctx context.Context) limits.Caller {
	if conn := connOf(ctx); conn != nil {
		return conn.who
	}
	return limits.Caller{UID: ^uint32(0)}
}

// HangUp closes the connection that a gRPC request came over, with all its streams.
func HangUp(ctx context.Context) {
	if conn := connOf(ctx); conn != nil {
		_ = conn.Close()
	}
}

func connOf(ctx context.Context) *Conn {
	if p, ok := peer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(authInfo); ok {
			return info.conn
		}
	}
	return nil
}
