// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os/user"
	"strconv"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// socketUser is who opened the Unix socket: the name of the user, or "uid <number>".
type socketUser struct {
	credentials.CommonAuthInfo
	name string
}

// AuthType is part of credentials.AuthInfo.
func (socketUser) AuthType() string { return "unix" }

// socketCredentials tell who opened a Unix socket, as of connect(2) (SO_PEERCRED). Nothing is
// exchanged: clients use no credentials.
type socketCredentials struct{}

func (socketCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("a %T is no Unix socket", conn)
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, nil, fmt.Errorf("who opened the socket: %w", err)
	}
	var peer *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) { peer, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, optErr); err != nil {
		return nil, nil, fmt.Errorf("who opened the socket: %w", err)
	}
	uid := strconv.FormatUint(uint64(peer.Uid), 10)
	name := "uid " + uid
	if u, err := user.LookupId(uid); err == nil {
		name = u.Username
	}
	return conn, socketUser{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, name}, nil
}

func (socketCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are a server's")
}

func (socketCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix"}
}

func (c socketCredentials) Clone() credentials.TransportCredentials { return c }

func (socketCredentials) OverrideServerName(string) error { return nil }
