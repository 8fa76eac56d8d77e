// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
)

// audience is that of the tokens that the server takes.
const audience = "clients"

// serve listens at three addresses: HTTP over mTLS by spiffetls, gRPC by grpccredentials, and bare HTTP that takes
// JWT-SVIDs at /jwt.
func serve(ctx context.Context, l *ledger, args []string) error {
	if len(args) != 3 {
		return errors.New("serve: say three addresses")
	}
	certs, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return fmt.Errorf("X.509 source: %w", err)
	}
	defer certs.Close()
	tokens, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return fmt.Errorf("JWT source: %w", err)
	}
	defer tokens.Close()
	me, err := certs.GetX509SVID()
	if err != nil {
		return err
	}
	peers := l.members(me.ID.TrustDomain())

	mtls, err := spiffetls.ListenWithMode(ctx, "tcp", args[0], spiffetls.MTLSServerWithSource(peers, certs))
	if err != nil {
		return err
	}
	defer mtls.Close()
	ended := make(chan error, 3)
	go func() { ended <- http.Serve(mtls, http.HandlerFunc(hello)) }()

	// Connections are young, so that a client that keeps one shakes hands again and again.
	rpc := grpc.NewServer(grpc.Creds(grpccredentials.MTLSServerCredentials(certs, certs, peers)),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionAge: 2 * time.Second, MaxConnectionAgeGrace: 10 * time.Second}))
	healthpb.RegisterHealthServer(rpc, health.NewServer())
	bare, err := net.Listen("tcp", args[1])
	if err != nil {
		return err
	}
	defer rpc.Stop()
	go func() { ended <- rpc.Serve(bare) }()

	mux := http.NewServeMux()
	mux.HandleFunc("/", hello)
	mux.Handle("/jwt", bearer{l, tokens})
	plain := &http.Server{Addr: args[2], Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	defer plain.Close()
	go func() { ended <- plain.ListenAndServe() }()

	select {
	case <-ctx.Done():
		return nil
	case err := <-ended:
		return err
	}
}

func hello(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "hello") }

// bearer takes JWT-SVIDs, and counts them.
type bearer struct {
	l      *ledger
	tokens *workloadapi.JWTSource
}

func (b bearer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	token, _ := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	svid, err := jwtsvid.ParseAndValidate(token, b.tokens, []string{audience})
	if err != nil {
		http.Error(w, err.Error(), http.StatusUnauthorized)
		return
	}
	b.l.serial(tokensOf(svid.ID), fmt.Sprintf("%x", sha256.Sum256([]byte(token))))
	hello(w, r)
}

func tokensOf(id spiffeid.ID) string { return "tokens of " + id.String() }
