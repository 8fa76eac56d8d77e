// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/cmd/dev"
)

const fetchPairs = 2000

// fetch compares new connection → first message on the agent and on a bare server, in turn.
func fetch(ctx context.Context, env *dev.Env) error {
	if _, err := register(ctx, env); err != nil {
		return err
	}
	agent := strings.TrimPrefix(env.WorkloadSocket, "unix://")
	var resp *pb.X509SVIDResponse
	for deadline := time.Now().Add(5 * time.Second); ; {
		var err error
		if resp, _, err = cold(ctx, agent); err == nil {
			break
		} else if time.Now().After(deadline) {
			return err
		}
	}
	data, err := proto.Marshal(resp)
	if err != nil {
		return err
	}
	file, socket := filepath.Join(env.Dir, "bytes"), filepath.Join(env.Dir, "bare.sock")
	if err := os.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	stop, err := start("bare", socket, file)
	if err != nil {
		return err
	}
	defer stop()
	if err := waitFor(socket); err != nil {
		return err
	}
	var ours, limit sample
	for i := range fetchPairs + 100 {
		_, a, err := cold(ctx, agent)
		if err != nil {
			return err
		}
		_, b, err := cold(ctx, socket)
		if err != nil {
			return err
		}
		if i >= 100 { // the first ones warm both up
			ours, limit = append(ours, a), append(limit, b)
		}
	}
	compare("cold FetchX509SVID (connect, attest, first message; digest cached)", ours, limit, "bare gRPC")
	return nil
}

// cold connects anew and returns the first message and how long it took.
func cold(ctx context.Context, socket string) (*pb.X509SVIDResponse, time.Duration, error) {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", "true"), 10*time.Second)
	defer cancel()
	began := time.Now()
	conn, err := grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, 0, err
	}
	defer conn.Close()
	stream, err := pb.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, &pb.X509SVIDRequest{})
	if err != nil {
		return nil, 0, err
	}
	resp, err := stream.Recv()
	return resp, time.Since(began), err
}

// bareServer answers with the same bytes to everybody.
type bareServer struct {
	pb.UnimplementedSpiffeWorkloadAPIServer
	resp *pb.X509SVIDResponse
}

func (b bareServer) FetchX509SVID(_ *pb.X509SVIDRequest, st grpc.ServerStreamingServer[pb.X509SVIDResponse]) error {
	if err := st.Send(b.resp); err != nil {
		return err
	}
	<-st.Context().Done()
	return nil
}

func bare(socket, file string) error {
	return bareWith(socket, file, func(b bareServer) pb.SpiffeWorkloadAPIServer { return b })
}

// bareWith serves the bytes of the file as what as makes of them.
func bareWith(socket, file string, as func(bareServer) pb.SpiffeWorkloadAPIServer) error {
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var resp pb.X509SVIDResponse
	if err := proto.Unmarshal(data, &resp); err != nil {
		return err
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	s := grpc.NewServer()
	pb.RegisterSpiffeWorkloadAPIServer(s, as(bareServer{resp: &resp}))
	return s.Serve(l)
}

// register gives this program an identity and returns the entry's id.
func register(ctx context.Context, env *dev.Env) (string, error) {
	exe, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		return "", err
	}
	conn, err := dev.Dial(env.ServerSocket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{{
		SpiffeId:  &types.SPIFFEID{TrustDomain: env.TrustDomain, Path: "/bench"},
		ParentId:  &types.SPIFFEID{TrustDomain: env.TrustDomain, Path: strings.TrimPrefix(env.NodeID, "spiffe://"+env.TrustDomain)},
		Selectors: []*types.Selector{{Type: "unix", Value: fmt.Sprintf("sha256:%x", sha256.Sum256(exe))}},
	}}})
	if err != nil {
		return "", err
	}
	if st := resp.Results[0].Status; st.Code != int32(codes.OK) {
		return "", errors.New(st.Message)
	}
	return resp.Results[0].Entry.Id, nil
}
