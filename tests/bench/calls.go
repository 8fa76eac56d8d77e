// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/jwtbundle"
	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/cmd/dev"
)

const (
	callPairs = 2000
	benchID   = "spiffe://example.org/bench"
)

// unlimited lets one caller ask as often as the benchmark does.
const unlimited = "limits {\n  calls_per_second = 1000000\n  fetch_x509_svid = 1000000\n  fetch_jwt_svid = 1000000\n  validate_jwt_svid = 1000000\n}\n"

// calls compares the calls of a workload with an open connection, on the agent and on a bare gRPC server, in turn. The bare one
// sends the same bytes; what it has to sign or to check it signs and checks, and that is all it does.
func calls(ctx context.Context, env *dev.Env) error {
	if _, err := register(ctx, env); err != nil {
		return err
	}
	ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true")
	agent, err := connected(strings.TrimPrefix(env.WorkloadSocket, "unix://"))
	if err != nil {
		return err
	}
	var first *pb.X509SVIDResponse
	for end := time.Now().Add(10 * time.Second); first == nil; {
		if first, err = stream(ctx, agent); err != nil && time.Now().After(end) {
			return err
		}
	}
	socket, stop, err := startSigner(ctx, env, agent, first)
	if err != nil {
		return err
	}
	defer stop()
	limit, err := connected(socket)
	if err != nil {
		return err
	}
	tokens := map[pb.SpiffeWorkloadAPIClient]string{}
	for _, side := range []pb.SpiffeWorkloadAPIClient{agent, limit} {
		if tokens[side], err = fetchToken(ctx, side, "here"); err != nil {
			return err
		}
	}
	n := 0
	for _, c := range []struct {
		what, limit string
		pairs       int
		call        func(pb.SpiffeWorkloadAPIClient) error
	}{
		{"FetchX509SVID on an open connection, SVID cached", "bare gRPC", callPairs, func(w pb.SpiffeWorkloadAPIClient) error { _, err := stream(ctx, w); return err }},
		{"FetchJWTSVID, token cached", "bare gRPC", callPairs, func(w pb.SpiffeWorkloadAPIClient) error { _, err := fetchToken(ctx, w, "here"); return err }},
		{"FetchJWTSVID, token signed (by the server, over mTLS)", "bare gRPC + signature", callPairs / 2, func(w pb.SpiffeWorkloadAPIClient) error {
			n++
			_, err := fetchToken(ctx, w, fmt.Sprint("new", n))
			return err
		}},
		{"ValidateJWTSVID", "bare gRPC + check", callPairs, func(w pb.SpiffeWorkloadAPIClient) error {
			_, err := w.ValidateJWTSVID(ctx, &pb.ValidateJWTSVIDRequest{Audience: "here", Svid: tokens[w]})
			return err
		}},
	} {
		if err := inTurn(c.what, c.limit, c.pairs, func() error { return c.call(agent) }, func() error { return c.call(limit) }); err != nil {
			return fmt.Errorf("%s: %w", c.what, err)
		}
	}
	return nil
}

// inTurn times both sides and prints them.
func inTurn(what, name string, pairs int, ours, limit func() error) error {
	var a, b sample
	for i := range pairs + 100 {
		for _, side := range []struct {
			call func() error
			to   *sample
		}{{ours, &a}, {limit, &b}} {
			began := time.Now()
			if err := side.call(); err != nil {
				return err
			}
			if i >= 100 { // the first ones warm both up
				*side.to = append(*side.to, time.Since(began))
			}
		}
	}
	compare(what, a, b, name)
	return nil
}

func connected(socket string) (pb.SpiffeWorkloadAPIClient, error) {
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	return pb.NewSpiffeWorkloadAPIClient(conn), err
}

func stream(ctx context.Context, w pb.SpiffeWorkloadAPIClient) (*pb.X509SVIDResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	s, err := w.FetchX509SVID(ctx, &pb.X509SVIDRequest{})
	if err != nil {
		return nil, err
	}
	return s.Recv()
}

func fetchToken(ctx context.Context, w pb.SpiffeWorkloadAPIClient, audience string) (string, error) {
	got, err := w.FetchJWTSVID(ctx, &pb.JWTSVIDRequest{Audience: []string{audience}})
	if err != nil {
		return "", err
	}
	return got.Svids[0].Svid, nil
}

// startSigner starts the bare server that signs and checks, in a process of its own.
func startSigner(ctx context.Context, env *dev.Env, agent pb.SpiffeWorkloadAPIClient, first *pb.X509SVIDResponse) (socket string, stop func(), err error) {
	data, err := proto.Marshal(first)
	if err != nil {
		return "", nil, err
	}
	file := filepath.Join(env.Dir, "bytes")
	socket = filepath.Join(env.Dir, "signer.sock")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return "", nil, err
	}
	if stop, err = start("signer", socket, file); err != nil {
		return "", nil, err
	}
	return socket, stop, waitFor(socket)
}

// signer is a bare server with a key.
type signer struct {
	bareServer
	jose   jose.Signer
	bundle *jwtbundle.Bundle
	cached *pb.JWTSVIDResponse
}

func (s *signer) sign(audience []string) (*pb.JWTSVIDResponse, error) {
	now := time.Now()
	text, err := jwt.Signed(s.jose).Claims(jwt.Claims{Subject: benchID, Audience: audience, IssuedAt: jwt.NewNumericDate(now), Expiry: jwt.NewNumericDate(now.Add(5 * time.Minute))}).Serialize()
	return &pb.JWTSVIDResponse{Svids: []*pb.JWTSVID{{SpiffeId: benchID, Svid: text}}}, err
}

func (s *signer) FetchJWTSVID(_ context.Context, req *pb.JWTSVIDRequest) (*pb.JWTSVIDResponse, error) {
	if req.Audience[0] == "here" {
		return s.cached, nil
	}
	return s.sign(req.Audience)
}

func (s *signer) ValidateJWTSVID(_ context.Context, req *pb.ValidateJWTSVIDRequest) (*pb.ValidateJWTSVIDResponse, error) {
	got, err := jwtsvid.ParseAndValidate(req.Svid, s.bundle, []string{req.Audience})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &pb.ValidateJWTSVIDResponse{SpiffeId: got.ID.String()}, nil
}

func beSigner(socket, file string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	s := &signer{bundle: jwtbundle.FromJWTAuthorities(spiffeid.RequireFromString(benchID).TrustDomain(), map[string]crypto.PublicKey{"k": key.Public()})}
	if s.jose, err = jose.NewSigner(jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: key, KeyID: "k"}}, nil); err != nil {
		return err
	}
	if s.cached, err = s.sign([]string{"here"}); err != nil {
		return err
	}
	return bareWith(socket, file, func(b bareServer) pb.SpiffeWorkloadAPIServer { s.bareServer = b; return s })
}
