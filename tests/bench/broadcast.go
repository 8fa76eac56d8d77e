// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/cmd/dev"
	nodev1 "github.com/assay-id/assay/proto/node"
	"github.com/assay-id/assay/tests/soak/fleet"
)

// broadcastServer is the limit: gRPC and TLS as our server has them, and bytes that were encoded once
// for all. It looks at nobody, keeps nothing, and hears no answers.
type broadcastServer struct {
	nodev1.UnimplementedNodeServer
	bundlev1.UnimplementedBundleServer

	mu      sync.Mutex
	message *message
}

type message struct {
	bundle   *types.Bundle
	once     sync.Once
	prepared grpc.PreparedMsg
	old      chan struct{} // closed when there is another
}

// The files of its folder.
const (
	seedFile   = "bundle" // its first one
	rootFile   = "root"
	portFile   = "address"
	socketFile = "broadcast.sock"
)

// broadcast is the limit's role, in a folder.
func broadcast(dir string) error {
	seed, err := os.ReadFile(filepath.Join(dir, seedFile))
	if err != nil {
		return err
	}
	s := &broadcastServer{message: &message{bundle: &types.Bundle{}, old: make(chan struct{})}}
	if err := proto.Unmarshal(seed, s.message.bundle); err != nil {
		return err
	}
	cert, err := selfSigned()
	if err != nil {
		return err
	}
	agents := grpc.NewServer(grpc.ReadBufferSize(0), grpc.WriteBufferSize(8<<10), grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Second}), grpc.Creds(credentials.NewTLS(&tls.Config{
		Certificates: []tls.Certificate{*cert}, ClientAuth: tls.RequireAnyClientCert, SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
	})))
	nodev1.RegisterNodeServer(agents, s)
	operator := grpc.NewServer()
	bundlev1.RegisterBundleServer(operator, s)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	unix, err := net.Listen("unix", filepath.Join(dir, socketFile))
	if err != nil {
		return err
	}
	go operator.Serve(unix)
	err = errors.Join(os.WriteFile(filepath.Join(dir, rootFile), cert.Certificate[1], 0o600), os.WriteFile(filepath.Join(dir, portFile), []byte(tcp.Addr().String()), 0o600))
	if err != nil {
		return err
	}
	return agents.Serve(tcp)
}

func (s *broadcastServer) now() *message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.message
}

func (s *broadcastServer) Watch(stream nodev1.Node_WatchServer) error {
	if _, err := stream.Recv(); err != nil {
		return err
	}
	for {
		m := s.now()
		var err error
		m.once.Do(func() { err = m.prepared.Encode(stream, &nodev1.WatchResponse{Bundle: m.bundle}) })
		if err == nil {
			err = stream.SendMsg(&m.prepared)
		}
		if err != nil {
			return err
		}
		select {
		case <-m.old:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

func (s *broadcastServer) GetBundle(context.Context, *bundlev1.GetBundleRequest) (*types.Bundle, error) {
	return s.now().bundle, nil
}

// AppendBundle only counts, so that all messages are as long as our server's last one.
func (s *broadcastServer) AppendBundle(context.Context, *bundlev1.AppendBundleRequest) (*types.Bundle, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	last := s.message
	s.message = &message{bundle: proto.CloneOf(last.bundle), old: make(chan struct{})}
	s.message.bundle.SequenceNumber++
	close(last.old)
	return s.message.bundle, nil
}

// selfSigned is the server's own authority.
func selfSigned() (*tls.Certificate, error) {
	key, err := fleet.NewKey()
	if err != nil {
		return nil, err
	}
	root := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, URIs: []*url.URL{{Scheme: "spiffe", Host: fleet.TrustDomain}}}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: root.NotBefore, NotAfter: root.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature,
		URIs: []*url.URL{{Scheme: "spiffe", Host: fleet.TrustDomain, Path: "/spire/server"}}}
	rootDER, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return signLeaf(leaf, root, rootDER, key)
}

func signLeaf(leaf, root *x509.Certificate, rootDER []byte, key *ecdsa.PrivateKey) (*tls.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, leaf, root, key.Public(), key)
	return &tls.Certificate{Certificate: [][]byte{der, rootDER}, PrivateKey: key}, err
}

// broadcastLimit measures the limit with the same agents.
func broadcastLimit(ctx context.Context, dir string, c *crowd) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	seed, err := proto.Marshal(c.bundle)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, seedFile), seed, 0o600); err != nil {
		return err
	}
	pid, stop, err := startProcess("broadcast", dir)
	if err != nil {
		return err
	}
	defer stop()
	if err := waitFor(filepath.Join(dir, portFile)); err != nil {
		return err
	}
	address, err := os.ReadFile(filepath.Join(dir, portFile))
	if err != nil {
		return err
	}
	root, err := os.ReadFile(filepath.Join(dir, rootFile))
	if err != nil {
		return err
	}
	roots, err := fleet.Roots(&types.Bundle{TrustDomain: fleet.TrustDomain, X509Authorities: []*types.X509Certificate{{Asn1: root}}})
	if err != nil {
		return err
	}
	admin, err := dev.Dial(filepath.Join(dir, socketFile))
	if err != nil {
		return err
	}
	defer admin.Close()
	c.address, c.admin, c.process = string(address), admin, fleet.Process(pid)
	c.roots.Store(roots)
	if err := c.measureLimit(ctx, c.all[:few], 20); err != nil {
		return err
	}
	return c.measureLimit(ctx, c.all[few:], 10)
}

func (c *crowd) measureLimit(ctx context.Context, more []*member, bundles int) error {
	before, err := c.process.Memory("VmRSS")
	if err != nil {
		return err
	}
	if err := c.connect(ctx, more); err != nil {
		return err
	}
	connected, err := c.process.Memory("VmRSS")
	if err != nil {
		return err
	}
	fmt.Printf("the limit: gRPC and TLS alone, %d agents connected, %d bytes for each; RSS for each feed %.1f kB; load %s\n",
		c.open.Load(), proto.Size(c.bundle), float64(connected-before)/float64(len(more))/1000, load())
	return c.announce(ctx, bundles)
}
