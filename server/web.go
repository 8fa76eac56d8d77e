// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"

	"github.com/assay-id/assay/server/federation"
	"github.com/assay-id/assay/server/oidc"
	"github.com/assay-id/assay/server/webcert"
)

func (s *Server) openFederation(ctx context.Context) (err error) {
	s.federation, err = federation.Open(ctx, federation.Config{
		Store: s.store, TrustDomain: s.conf.trustDomain, Own: s.ownBundle, Entries: s.entries,
		Static: s.conf.web.relationships, WebRoots: s.conf.web.roots, Logger: s.log,
	})
	return err
}

// ownBundle is our bundle as other trust domains see it.
func (s *Server) ownBundle() (*federation.Bundle, <-chan struct{}) {
	b, changed := s.ca.Bundle()
	out := &federation.Bundle{TrustDomain: s.conf.trustDomain, X509: b.Roots(), Sequence: b.Sequence}
	for _, a := range b.JWT {
		out.JWT = append(out.JWT, federation.Authority{ID: a.ID, PublicKey: a.PublicKey, ExpiresAt: a.ExpiresAt})
	}
	for _, a := range b.WIT {
		out.WIT = append(out.WIT, federation.Authority{ID: a.ID, PublicKey: a.PublicKey, ExpiresAt: a.ExpiresAt})
	}
	return out, changed
}

// provider is the configuration of the handler, but for the keys.
func (c *OIDCConfig) provider() oidc.Config {
	return oidc.Config{
		Domains: c.Domains, Issuer: c.JWTIssuer, JWKSURI: c.JWKSURI, PathPrefix: c.ServerPathPrefix,
		Insecure: c.Insecure, SetKeyUse: c.SetKeyUse,
	}
}

// webListener is open to anyone.
type webListener struct {
	net.Listener
	tls     *tls.Config
	handler http.Handler
}

// listenWeb opens what is configured of bundle endpoint and OpenID Connect discovery.
func (s *Server) listenWeb() (out []webListener, err error) {
	defer func() {
		if err != nil {
			err = errors.Join(err, closeWeb(out))
		}
	}()
	for _, f := range s.conf.web.files {
		f.Logger = s.log
	}
	if f := s.conf.Federation; f != nil && f.BundleEndpoint != nil {
		conf := s.conf.web.endpoint
		if conf == nil {
			conf = webcert.TLS(func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return s.svid.get() })
		}
		l, err := net.Listen("tcp", net.JoinHostPort(f.BundleEndpoint.Address, strconv.Itoa(f.BundleEndpoint.Port)))
		if err != nil {
			return out, fmt.Errorf("federation: bundle_endpoint: %w; set another address or port", err)
		}
		out = append(out, webListener{l, conf, federation.Endpoint{Own: s.ownBundle, RefreshHint: s.conf.web.refreshHint}})
	}
	if e := s.conf.Revocation.CRLEndpoint; e != nil {
		l, err := net.Listen("tcp", net.JoinHostPort(e.Address, strconv.Itoa(e.Port)))
		if err != nil {
			return out, fmt.Errorf("revocation: crl_endpoint: %w; set another address or port", err)
		}
		out = append(out, webListener{l, nil, s.revocations.Handler()})
	}
	if c := s.conf.OIDC; c != nil {
		var l net.Listener
		if c.SocketPath != "" {
			l, err = listenAdmin(c.SocketPath)
		} else {
			l, err = net.Listen("tcp", net.JoinHostPort(c.BindAddress, strconv.Itoa(c.BindPort)))
		}
		if err != nil {
			return out, fmt.Errorf("oidc: %w; set another bind_address, bind_port or socket_path", err)
		}
		provider := c.provider()
		provider.Keys = s.oidcKeys
		out = append(out, webListener{l, s.conf.web.oidc, oidc.New(provider)})
	}
	return out, nil
}

func closeWeb(listeners []webListener) (err error) {
	for _, l := range listeners {
		err = errors.Join(err, l.Close())
	}
	return err
}

// oidcKeys are the JWT authorities, also tainted ones: what they signed is valid until it expires or
// they are revoked, as everywhere.
func (s *Server) oidcKeys() []oidc.Key {
	b, _ := s.ca.Bundle()
	keys := make([]oidc.Key, 0, len(b.JWT))
	for _, a := range b.JWT {
		keys = append(keys, oidc.Key{ID: a.ID, PublicKey: a.PublicKey})
	}
	return keys
}

// serve serves until ctx ends.
func (l webListener) serve(ctx context.Context, s *Server) error {
	return webcert.Serve(ctx, l.Listener, l.tls, l.handler, s.log)
}
