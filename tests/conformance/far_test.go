// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
)

// far is another trust domain, played by the tests: it can break every rule.
type far struct {
	td     string
	ca     *x509.Certificate
	caKey  *ecdsa.PrivateKey // of the CA
	jwtKey *ecdsa.PrivateKey // of JWT-SVIDs, kid "far"
	witKey *ecdsa.PrivateKey // of WIT-SVIDs, kid "wit"
}

func newFar(td string) (*far, error) {
	f := &far{td: td}
	for _, key := range []**ecdsa.PrivateKey{&f.caKey, &f.jwtKey, &f.witKey} {
		var err error
		if *key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
			return nil, err
		}
	}
	var err error
	f.ca, err = f.sign(f.caTemplate(), f.caKey.Public())
	return f, err
}

func (f *far) caTemplate() *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, URIs: []*url.URL{{Scheme: "spiffe", Host: f.td}}}
}

// sign certifies a key; the template without a CA is that of the CA.
func (f *far) sign(template *x509.Certificate, key crypto.PublicKey) (*x509.Certificate, error) {
	parent := f.ca
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key, f.caKey)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// bundle is the far trust domain's as the server API takes it.
func (f *far) bundle() *types.Bundle {
	pkix := func(key *ecdsa.PrivateKey) []byte {
		der, err := x509.MarshalPKIXPublicKey(key.Public())
		if err != nil {
			panic(err) // a P-256 key has that form
		}
		return der
	}
	expires := time.Now().Add(time.Hour).Unix()
	return &types.Bundle{TrustDomain: f.td, RefreshHint: 3600, SequenceNumber: 1, X509Authorities: []*types.X509Certificate{{Asn1: f.ca.Raw}},
		JwtAuthorities: []*types.JWTKey{{PublicKey: pkix(f.jwtKey), KeyId: "far", ExpiresAt: expires}},
		WitAuthorities: []*types.WITKey{{PublicKey: pkix(f.witKey), KeyId: "wit", ExpiresAt: expires}}}
}

// header of far's tokens.
func farHeader() *jose.SignerOptions {
	return (&jose.SignerOptions{}).WithType("JWT").WithHeader("kid", "far")
}

// token signs the claims of a good JWT-SVID for the audience "db", changed by change (nil removes one).
func (f *far) token(p *probe, options *jose.SignerOptions, alg jose.SignatureAlgorithm, key any, change map[string]any) string {
	p.Helper()
	claims := map[string]any{"sub": "spiffe://" + f.td + "/w", "aud": "db", "exp": time.Now().Add(time.Hour).Unix(), "iat": time.Now().Unix(), "jti": "one"}
	for name, v := range change {
		if claims[name] = v; v == nil {
			delete(claims, name)
		}
	}
	s, err := jose.NewSigner(jose.SigningKey{Algorithm: alg, Key: key}, options)
	p.must("signer", err)
	text, err := jwt.Signed(s).Claims(claims).Serialize()
	p.must("sign", err)
	return text
}

// jwk is a member of a bundle document.
type jwk map[string]any

func (f *far) x509JWK() jwk { return coordinates(f.caKey).with("use", "x509-svid", "x5c", x5c(f.ca)) }

func (f *far) jwtJWK() jwk {
	return coordinates(f.jwtKey).with("use", "jwt-svid", "kid", "far")
}

func coordinates(key *ecdsa.PrivateKey) jwk {
	point, err := key.PublicKey.Bytes()
	if err != nil {
		panic(err) // P-256 has that form
	}
	b64 := base64.RawURLEncoding.EncodeToString
	return jwk{"kty": "EC", "crv": "P-256", "x": b64(point[1:33]), "y": b64(point[33:])}
}

func (k jwk) with(pairs ...any) jwk {
	for i := 0; i < len(pairs); i += 2 {
		k[pairs[i].(string)] = pairs[i+1]
	}
	return k
}

func x5c(certs ...*x509.Certificate) []string {
	out := []string{}
	for _, c := range certs {
		out = append(out, base64.StdEncoding.EncodeToString(c.Raw))
	}
	return out
}

// document is a bundle with one sequence number more than the one before.
func (f *far) document(keys ...jwk) map[string]any {
	return map[string]any{"keys": keys, "spiffe_sequence": 100 + sequence.Add(1), "spiffe_refresh_hint": 3600}
}

// sequence of the documents, above that of bundle().
var sequence atomic.Int64

// An endpoint is a bundle endpoint of far's by https_spiffe. What it shows can be exchanged.
type endpoint struct {
	url string
	far *far

	mu       sync.Mutex
	document any
	leaf     *tls.Certificate
	redirect string // where other paths than this one lead
	shaken   map[net.Conn]*tls.Certificate
}

// connKey is the key of a request's connection.
type connKey struct{}

// endpointPath is that of the endpoint's SPIFFE ID.
const endpointPath = "/bundle-endpoint"

// leafTemplate is a good SVID of the endpoint.
func (f *far) leafTemplate() *x509.Certificate {
	return &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs: []*url.URL{{Scheme: "spiffe", Host: f.td, Path: endpointPath}}}
}

// serve starts a good endpoint.
func (f *far) serve(p *probe) *endpoint {
	p.Helper()
	e := &endpoint{far: f, shaken: map[net.Conn]*tls.Certificate{}, document: f.document(f.x509JWK(), f.jwtJWK())}
	e.present(p, f.leafTemplate())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	p.must("listen", err)
	e.url = "https://" + l.Addr().String() + "/bundle"
	server := &http.Server{Handler: e, ReadHeaderTimeout: time.Minute, ErrorLog: log.New(io.Discard, "", 0),
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			return context.WithValue(ctx, connKey{}, c.(*tls.Conn).NetConn())
		}}
	go func() {
		_ = server.Serve(tls.NewListener(l, &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			e.mu.Lock()
			defer e.mu.Unlock()
			e.shaken[hello.Conn] = e.leaf
			return e.leaf, nil
		}}))
	}()
	p.Cleanup(func() { server.Close() })
	return e
}

// present has the endpoint use a certificate of this shape.
func (e *endpoint) present(p *probe, template *x509.Certificate) {
	p.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	p.must("key", err)
	c, err := e.far.sign(template, key.Public())
	p.must("certificate", err)
	e.mu.Lock()
	defer e.mu.Unlock()
	e.leaf = &tls.Certificate{Certificate: [][]byte{c.Raw}, PrivateKey: key}
}

// show has it serve another document.
func (e *endpoint) show(document any) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.document = document
}

func (e *endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if conn, _ := r.Context().Value(connKey{}).(net.Conn); e.shaken[conn] != e.leaf {
		http.Error(w, "this connection is from before", http.StatusServiceUnavailable) // a fetch of the server's own
		return
	}
	if e.redirect != "" && r.URL.Path != e.redirect {
		http.Redirect(w, r, e.redirect, http.StatusTemporaryRedirect)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if text, ok := e.document.(string); ok {
		_, _ = io.WriteString(w, text)
		return
	}
	_ = json.NewEncoder(w).Encode(e.document)
}
