// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	pb "github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/emptypb"
)

// rpcs are all methods, each with a request that is good.
var rpcs = []struct {
	name   string
	wit    bool
	stream bool
	req    func() proto.Message
	resp   func() proto.Message
}{
	{"FetchX509SVID", false, true, func() proto.Message { return &pb.X509SVIDRequest{} }, func() proto.Message { return &pb.X509SVIDResponse{} }},
	{"FetchX509Bundles", false, true, func() proto.Message { return &pb.X509BundlesRequest{} }, func() proto.Message { return &pb.X509BundlesResponse{} }},
	{"FetchJWTSVID", false, false, func() proto.Message { return &pb.JWTSVIDRequest{Audience: []string{"db"}} }, func() proto.Message { return &pb.JWTSVIDResponse{} }},
	{"FetchJWTBundles", false, true, func() proto.Message { return &pb.JWTBundlesRequest{} }, func() proto.Message { return &pb.JWTBundlesResponse{} }},
	{"ValidateJWTSVID", false, false, func() proto.Message { return &pb.ValidateJWTSVIDRequest{Audience: "db", Svid: "x.y.z"} }, func() proto.Message { return &pb.ValidateJWTSVIDResponse{} }},
	{"FetchWITSVID", true, true, func() proto.Message { return &pb.WITSVIDRequest{} }, func() proto.Message { return &pb.WITSVIDResponse{} }},
	{"FetchWITBundles", true, true, func() proto.Message { return &pb.WITBundlesRequest{} }, func() proto.Message { return &pb.WITBundlesResponse{} }},
}

// ask calls any method and returns how the first answer came.
func ask(ctx context.Context, conn *grpc.ClientConn, method string, req, resp proto.Message) error {
	st, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := st.SendMsg(req); err != nil {
		return err
	}
	if err := st.CloseSend(); err != nil {
		return err
	}
	return st.RecvMsg(resp)
}

const service = "/SpiffeWorkloadAPI/"

func TestEndpointTransport(t *testing.T) {
	point(t, "E-2", func(p *probe) { x509Response(p) })
	point(t, "E-3", func(p *probe) {
		if !strings.HasPrefix(*socketFlag, "unix://") {
			p.Errorf("the address is %s", *socketFlag)
		}
	})
	point(t, "E-4", func(p *probe) {
		if strings.HasPrefix(*socketFlag, "tcp://") && !strings.HasPrefix(*socketFlag, "tcp://127.") && !strings.HasPrefix(*socketFlag, "tcp://169.254.") {
			p.Errorf("%s is beyond this host", *socketFlag)
		}
	})
	// The connection has neither TLS nor credentials: that it answers is the proof.
	point(t, "E-7", func(p *probe) { x509Response(p) })
	point(t, "E-10", func(p *probe) { x509Response(p) })
	point(t, "E-17", func(p *probe) { x509Response(p); fetchJWT(p, "db") })
}

func TestEndpointHeader(t *testing.T) {
	values := map[string][]string{"none": nil, "True": {"True"}, "TRUE": {"TRUE"}, "1": {"1"}, "empty": {""}, "false": {"false"}, "with a blank": {"true x"}}
	point(t, "E-6", func(p *probe) {
		for _, rpc := range rpcs {
			for what, v := range values {
				ctx, cancel := context.WithTimeout(p.Context(), patience)
				for _, text := range v {
					ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", text)
				}
				err := ask(ctx, at.conn, service+rpc.name, rpc.req(), rpc.resp())
				cancel()
				if rpc.wit && !at.wit {
					code(p, rpc.name+" with the header "+what, err, codes.InvalidArgument, codes.Unimplemented)
				} else {
					code(p, rpc.name+" with the header "+what, err, codes.InvalidArgument)
				}
			}
		}
	})
	point(t, "E-12", func(p *probe) {
		ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(p.Context(), "workload-spiffe-io", "true", "broker.spiffe.io", "true"), patience)
		defer cancel()
		code(p, "another header", ask(ctx, at.conn, service+"FetchX509SVID", &pb.X509SVIDRequest{}, &pb.X509SVIDResponse{}), codes.InvalidArgument)
	})
}

func TestEndpointErrors(t *testing.T) {
	point(t, "E-14", func(p *probe) {
		for _, a := range strange(p) {
			if rpcOf(a.RPC).wit && !at.wit {
				continue
			}
			if a.Code != codes.PermissionDenied.String() {
				p.Errorf("%s for a caller without identity: %s %s", a.RPC, a.Code, a.Message)
			}
		}
	}, withRoot)
	point(t, "E-15", func(p *probe) {
		for _, method := range []string{service + "FetchNothing", "/no.such.Service/Method", service + "fetchX509SVID"} {
			code(p, method, ask(call(p), at.conn, method, &emptypb.Empty{}, &emptypb.Empty{}), codes.Unimplemented)
		}
	})
	point(t, "E-16", func(p *probe) {
		if got := methods(p); !slices.Equal(got, standardMethods()) {
			p.Errorf("the service has %q, want %q", got, standardMethods())
		}
	})
	point(t, "E-18", func(p *probe) {
		if got := services(p); !slices.Contains(got, "SpiffeWorkloadAPI") {
			p.Errorf("reflection lists %q", got)
		}
	})
}

func rpcOf(name string) (r struct{ wit bool }) {
	for _, rpc := range rpcs {
		if rpc.name == name {
			r.wit = rpc.wit
		}
	}
	return r
}

func standardMethods() (list []string) {
	m := pb.File_workload_proto.Services().ByName("SpiffeWorkloadAPI").Methods()
	for i := range m.Len() {
		list = append(list, string(m.Get(i).Name()))
	}
	slices.Sort(list)
	return list
}

// reflect asks the endpoint about itself.
func reflect(p *probe, req *grpc_reflection_v1.ServerReflectionRequest) *grpc_reflection_v1.ServerReflectionResponse {
	p.Helper()
	ctx, cancel := context.WithTimeout(header(p.Context()), patience)
	defer cancel()
	st, err := grpc_reflection_v1.NewServerReflectionClient(at.conn).ServerReflectionInfo(ctx)
	p.must("reflection", err)
	p.must("reflection", st.Send(req))
	r, err := st.Recv()
	p.must("reflection", err)
	return r
}

func services(p *probe) (list []string) {
	p.Helper()
	r := reflect(p, &grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}})
	for _, s := range r.GetListServicesResponse().GetService() {
		list = append(list, s.Name)
	}
	return list
}

// served is the description of the service that the endpoint gives.
func served(p *probe) *descriptorpb.FileDescriptorProto {
	p.Helper()
	r := reflect(p, &grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: "SpiffeWorkloadAPI"}})
	for _, raw := range r.GetFileDescriptorResponse().GetFileDescriptorProto() {
		var fd descriptorpb.FileDescriptorProto
		p.must("the description", proto.Unmarshal(raw, &fd))
		if slices.ContainsFunc(fd.Service, func(s *descriptorpb.ServiceDescriptorProto) bool { return s.GetName() == "SpiffeWorkloadAPI" }) {
			return &fd
		}
	}
	p.Fatalf("reflection does not describe SpiffeWorkloadAPI: %v", r.GetErrorResponse())
	return nil
}

func methods(p *probe) (list []string) {
	p.Helper()
	for _, s := range served(p).Service {
		for _, m := range s.Method {
			list = append(list, m.GetName())
		}
	}
	slices.Sort(list)
	return list
}

// standard is the standard's own description.
func standard() *descriptorpb.FileDescriptorProto {
	return protodesc.ToFileDescriptorProto(pb.File_workload_proto)
}

// unknownField is a request with a field that nobody knows.
func unknownField() proto.Message {
	m := &pb.X509SVIDRequest{}
	b := protowire.AppendTag(nil, 15, protowire.BytesType)
	m.ProtoReflect().SetUnknown(protowire.AppendString(b, "from a later version"))
	return protoadapt.MessageV2Of(m)
}

// within fails the probe if f takes longer.
func within(p *probe, d time.Duration, what string, f func()) {
	p.Helper()
	start := time.Now()
	f()
	if took := time.Since(start); took > d {
		p.Errorf("%s took %s", what, took)
	}
}
