// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	svidv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/svid/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/server/ca/bundle"
)

// SPIRE is a server of our trust domain above ours, Assay's or SPIRE's. It knows us as a workload
// whose entry is marked downstream. Nothing is connected before it is used.
type SPIRE struct {
	TrustDomain spiffeid.TrustDomain
	// Address of the server, "host:port".
	Address string
	// WorkloadAPI is where our SVID comes from, "unix:///…".
	WorkloadAPI string
	Logger      *slog.Logger

	mu     sync.Mutex
	source *workloadapi.X509Source
}

// As SPIRE's plugin: it asks that often, and waits that long for an answer about keys.
const (
	pollEvery     = 5 * time.Second
	answerTimeout = 5 * time.Second
)

// MintCA has the server certify the key of the CSR.
func (s *SPIRE) MintCA(ctx context.Context, csr []byte, ttl time.Duration) (chain, roots []*x509.Certificate, err error) {
	err = s.ask(ctx, func(conn *grpc.ClientConn) error {
		r, err := svidv1.NewSVIDClient(conn).NewDownstreamX509CA(ctx, &svidv1.NewDownstreamX509CARequest{Csr: csr, PreferredTtl: int32(ttl / time.Second)})
		if err != nil {
			return err
		}
		if chain, err = parse(r.CaCertChain); err != nil {
			return err
		}
		roots, err = parse(r.X509Authorities)
		return err
	})
	return chain, roots, err
}

func parse(ders [][]byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for _, der := range ders {
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			return nil, err
		}
		certs = append(certs, cert)
	}
	return certs, nil
}

// Publish tells the server of a key and returns all of that kind that it knows. SPIRE's does not
// take keys for WIT-SVIDs: errors.ErrUnsupported.
func (s *SPIRE) Publish(ctx context.Context, k bundle.Kind, a bundle.KeyAuthority) (all []bundle.KeyAuthority, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	public, err := x509.MarshalPKIXPublicKey(a.PublicKey)
	if err != nil {
		return nil, err
	}
	err = s.ask(ctx, func(conn *grpc.ClientConn) error {
		c := bundlev1.NewBundleClient(conn)
		if k == bundle.WIT {
			r, err := c.PublishWITAuthority(ctx, &bundlev1.PublishWITAuthorityRequest{WitAuthority: &types.WITKey{KeyId: a.ID, PublicKey: public, ExpiresAt: a.ExpiresAt.Unix()}})
			if status.Code(err) == codes.Unimplemented {
				return errors.ErrUnsupported
			}
			if err == nil {
				all, err = keys(r.WitAuthorities)
			}
			return err
		}
		r, err := c.PublishJWTAuthority(ctx, &bundlev1.PublishJWTAuthorityRequest{JwtAuthority: &types.JWTKey{KeyId: a.ID, PublicKey: public, ExpiresAt: a.ExpiresAt.Unix()}})
		if err == nil {
			all, err = keys(r.JwtAuthorities)
		}
		return err
	})
	return all, err
}

// key is types.JWTKey or types.WITKey.
type key interface {
	GetKeyId() string //nolint:revive // as protoc names it
	GetPublicKey() []byte
	GetExpiresAt() int64
	GetTainted() bool
}

func keys[K key](messages []K) ([]bundle.KeyAuthority, error) {
	var all []bundle.KeyAuthority
	for _, m := range messages {
		public, err := x509.ParsePKIXPublicKey(m.GetPublicKey())
		if err != nil {
			return nil, fmt.Errorf("key authority %q: %w", m.GetKeyId(), err)
		}
		a := bundle.KeyAuthority{ID: m.GetKeyId(), PublicKey: public, Tainted: m.GetTainted()}
		if m.GetExpiresAt() != 0 {
			a.ExpiresAt = time.Unix(m.GetExpiresAt(), 0).UTC()
		}
		all = append(all, a)
	}
	return all, nil
}

// Watch sends the server's bundle every few seconds.
func (s *SPIRE) Watch(ctx context.Context) <-chan bundle.Trusted {
	out := make(chan bundle.Trusted)
	go s.poll(ctx, out)
	return out
}

func (s *SPIRE) poll(ctx context.Context, out chan<- bundle.Trusted) {
	defer close(out)
	well := true
	for {
		b, err := s.bundle(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			if well {
				s.Logger.Warn("the upstream authority's bundle can not be fetched; trying again", "address", s.Address, "error", err)
			}
		default:
			if !well {
				s.Logger.Info("the upstream authority answers again", "address", s.Address)
			}
			select {
			case out <- b:
			case <-ctx.Done():
				return
			}
		}
		well = err == nil
		select {
		case <-ctx.Done():
			return
		case <-time.After(pollEvery*9/10 + rand.N(pollEvery/5)):
		}
	}
}

func (s *SPIRE) bundle(ctx context.Context) (t bundle.Trusted, err error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	err = s.ask(ctx, func(conn *grpc.ClientConn) error {
		b, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
		if err != nil {
			return err
		}
		for _, a := range b.X509Authorities {
			cert, err := x509.ParseCertificate(a.Asn1)
			if err != nil {
				return err
			}
			t.X509 = append(t.X509, bundle.X509Authority{Cert: cert, Tainted: a.Tainted})
		}
		if t.JWT, err = keys(b.JwtAuthorities); err != nil {
			return err
		}
		t.WIT, err = keys(b.WitAuthorities)
		return err
	})
	return t, err
}

// ask asks the server over a connection of its own, with the SVID of this moment.
func (s *SPIRE) ask(ctx context.Context, question func(*grpc.ClientConn) error) error {
	source, err := s.svid(ctx)
	if err != nil {
		return err
	}
	id, err := spiffeid.FromPath(s.TrustDomain, "/spire/server")
	if err != nil {
		return err
	}
	conn, err := grpc.NewClient(s.Address, grpc.WithTransportCredentials(credentials.NewTLS(tlsconfig.MTLSClientConfig(source, source, tlsconfig.AuthorizeID(id)))))
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := question(conn); err != nil {
		return fmt.Errorf("ask the server at %s: %w", s.Address, err)
	}
	return nil
}

// svid waits for our first SVID; afterwards it is kept fresh.
func (s *SPIRE) svid(ctx context.Context) (*workloadapi.X509Source, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.source == nil {
		source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(s.WorkloadAPI)))
		if err != nil {
			return nil, fmt.Errorf("this server has no SVID of the Workload API at %s; make an entry for it with downstream set: %w", s.WorkloadAPI, err)
		}
		s.source = source
	}
	return s.source, nil
}

// Close ends the stream of SVIDs; a question after that begins another.
func (s *SPIRE) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.source == nil {
		return nil
	}
	err := s.source.Close()
	s.source = nil
	return err
}
