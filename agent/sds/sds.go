// SPDX-License-Identifier: Apache-2.0

// Package sds serves Envoy's Secret Discovery Service v3 to the Envoys of this node, as a SPIRE agent
// does and on the same socket: state of the world (StreamSecrets), incremental (DeltaSecrets) and one
// answer (FetchSecrets). See Envoy's "xDS REST and gRPC protocol".
//
// Names of secrets are SPIRE's:
//
//	default                      the caller's first X.509-SVID          TlsCertificate
//	spiffe://td/path             its X.509-SVID of that SPIFFE ID       TlsCertificate
//	ROOTCA                       our trust domain's bundle              CertificateValidationContext
//	spiffe://td                  that trust domain's bundle             CertificateValidationContext
//	ALL                          all bundles that the caller may have   CertificateValidationContext
//
// A first request that names none is for all of them under their SPIFFE IDs. A name that the caller has
// nothing for is left out, logged, and sent as soon as there is something; a caller without any identity is
// refused. Validation contexts hold the SPIFFE certificate validator, which keeps trust domains
// apart, but for an Envoy older than 1.18 and where the operator or the Envoy's node metadata disables
// that: those get plain authorities, and no ALL.
package sds

import (
	"context"
	"errors"
	"io"
	"log/slog"

	discovery "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	secret "github.com/envoyproxy/go-control-plane/envoy/service/secret/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/agent/svids"
)

// Config is what New needs. Empty names are SPIRE's defaults.
type Config struct {
	Desk *delivery.Desk
	// DefaultSVIDName, DefaultBundleName and DefaultAllBundlesName are "default", "ROOTCA" and "ALL".
	DefaultSVIDName, DefaultBundleName, DefaultAllBundlesName string
	// DisableSPIFFECertValidation gives plain authorities to each Envoy whose node metadata does not say otherwise.
	DisableSPIFFECertValidation bool
	Logger                      *slog.Logger
}

// Server implements the service SecretDiscoveryService.
type Server struct {
	secret.UnimplementedSecretDiscoveryServiceServer
	cfg Config
}

// New returns a Server; register it with Register.
func New(cfg Config) *Server {
	for name, fallback := range map[*string]string{&cfg.DefaultSVIDName: "default", &cfg.DefaultBundleName: "ROOTCA", &cfg.DefaultAllBundlesName: "ALL"} {
		if *name == "" {
			*name = fallback
		}
	}
	return &Server{cfg: cfg}
}

// Register adds the service to g.
func (s *Server) Register(g grpc.ServiceRegistrar) { secret.RegisterSecretDiscoveryServiceServer(g, s) }

const secretType = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"

func checkType(url string) error {
	if url != "" && url != secretType {
		return status.Errorf(codes.InvalidArgument, "type_url %q: this service has secrets only, %s", url, secretType)
	}
	return nil
}

// FetchSecrets answers once. All names that are asked for must be there.
func (s *Server) FetchSecrets(ctx context.Context, req *discovery.DiscoveryRequest) (*discovery.DiscoveryResponse, error) {
	if err := checkType(req.TypeUrl); err != nil {
		return nil, err
	}
	w, err := s.cfg.Desk.Enter(ctx)
	if err != nil {
		return nil, err
	}
	var want wanted
	want.replace(req.ResourceNames)
	have, err := s.secrets(ctx, w, want, s.plain(req.Node))
	if err != nil {
		return nil, err
	}
	if missing := want.missing(have); len(missing) > 0 {
		return nil, status.Errorf(codes.InvalidArgument, "there are no secrets for this caller by the names %q", missing)
	}
	return delivery.Answer(ctx, w, &discovery.DiscoveryResponse{TypeUrl: secretType, Resources: resources(have)}, inside(have))
}

// converse runs a bidirectional stream: requests are read as they come and handed to offer, which
// says what to send after each of them and after each change. It ends with the client's last word.
func converse[Req, Resp any](s *Server, st grpc.BidiStreamingServer[Req, Resp], offer func(context.Context, *delivery.Session, []*Req) (*Resp, []*svids.SVID, error)) error {
	w, err := s.cfg.Desk.Enter(st.Context())
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(st.Context())
	defer cancel(nil)
	requests, again := make(chan *Req, 1), make(chan struct{}, 1)
	go func() {
		for {
			req, err := st.Recv()
			if err != nil {
				cancel(err) // io.EOF: the client has ended well
				return
			}
			select {
			case requests <- req:
			case <-ctx.Done():
				return
			}
			select {
			case again <- struct{}{}:
			default:
			}
		}
	}()
	err = delivery.Follow(ctx, w, delivery.Stream[*Resp]{
		Offer: func(ctx context.Context) (*Resp, []*svids.SVID, error) {
			var came []*Req
			for {
				select {
				case req := <-requests:
					came = append(came, req)
					continue
				default:
				}
				return offer(ctx, w, came)
			}
		},
		Same:  func(a, b *Resp) bool { return a == b },
		Send:  st.Send,
		Again: again,
	})
	if errors.Is(context.Cause(ctx), io.EOF) {
		return nil
	}
	return err
}
