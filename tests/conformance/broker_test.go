// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	brokerpb "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/durationpb"
)

// theBroker is the path of the identity that may use the Broker API.
const theBroker = "/conformance/one"

// brokerConn connects to the Broker API with these credentials.
func brokerConn(p *probe, creds credentials.TransportCredentials) *grpc.ClientConn {
	p.Helper()
	address := strings.TrimPrefix(strings.Replace(*brokerFlag, "unix://", "unix:", 1), "tcp://")
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds), grpc.WithAuthority("localhost"))
	p.must("dial", err)
	p.Cleanup(func() { conn.Close() })
	return conn
}

// identified is TLS as one of our identities, and wants the broker to be of our trust domain.
func identified(p *probe, path string) *tls.Config {
	p.Helper()
	var s *svid
	for _, m := range x509Response(p).Svids {
		if m.SpiffeId == "spiffe://"+at.td+path {
			s = readSVID(p, m)
		}
	}
	if s == nil {
		p.Fatalf("we are not %s", path)
	}
	mine := tls.Certificate{PrivateKey: s.key}
	for _, c := range s.chain {
		mine.Certificate = append(mine.Certificate, c.Raw)
	}
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{mine}, InsecureSkipVerify: true, VerifyConnection: func(cs tls.ConnectionState) error {
		roots, between := x509.NewCertPool(), x509.NewCertPool()
		for _, c := range s.bundle {
			roots.AddCert(c)
		}
		for _, c := range cs.PeerCertificates[1:] {
			between.AddCert(c)
		}
		leaf := cs.PeerCertificates[0]
		if len(leaf.URIs) != 1 || leaf.URIs[0].Scheme != "spiffe" || leaf.URIs[0].Host != at.td {
			return fmt.Errorf("the broker is %v", leaf.URIs)
		}
		_, err := leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		return err
	}}
}

func broker(p *probe) brokerpb.APIClient {
	p.Helper()
	return brokerpb.NewAPIClient(brokerConn(p, credentials.NewTLS(identified(p, theBroker))))
}

// asBroker is the context of a good request.
func asBroker(p *probe) context.Context {
	ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), "broker.spiffe.io", "true"), patience)
	p.Cleanup(cancel)
	return ctx
}

func reference(p *probe, m proto.Message) *brokerpb.WorkloadReference {
	p.Helper()
	a, err := anypb.New(m)
	p.must("reference", err)
	return &brokerpb.WorkloadReference{Reference: a}
}

func pid(p *probe, n int) *brokerpb.WorkloadReference {
	return reference(p, &brokerpb.WorkloadPIDReference{Pid: int32(n)})
}

// sleeper starts a workload with one identity, and waits until the broker knows both.
func sleeper(p *probe) (ref *brokerpb.WorkloadReference, stop func(), id string) {
	p.Helper()
	entry(p, &types.Entry{SpiffeId: at.id("/conformance/sleeper"), Hint: "asleep", Selectors: readSelectors(fmt.Sprintf("unix:uid:%d", *strangerFlag))})
	cmd, up := play(p, "sleeper")
	<-up
	ref = pid(p, cmd.Process.Pid)
	c := broker(p)
	eventually(p, "the broker to give the sleeper's identity", func() bool {
		_, err := c.FetchJWTSVID(asBroker(p), &brokerpb.FetchJWTSVIDRequest{Reference: ref, Audience: []string{"db"}})
		return err == nil
	})
	return ref, func() { _ = cmd.Process.Kill() }, "spiffe://" + at.td + "/conformance/sleeper"
}

// subscribed is what SubscribeToX509SVID says first.
func subscribed(p *probe, c brokerpb.APIClient, ctx context.Context, ref *brokerpb.WorkloadReference) (*brokerpb.SubscribeToX509SVIDResponse, error) {
	p.Helper()
	st, err := c.SubscribeToX509SVID(ctx, &brokerpb.SubscribeToX509SVIDRequest{Reference: ref})
	if err != nil {
		return nil, err
	}
	return st.Recv()
}

func TestBrokerEndpoint(t *testing.T) {
	point(t, "R-1", func(p *probe) {
		ref, _, _ := sleeper(p)
		anonymous := identified(p, theBroker)
		anonymous.Certificates = nil
		for what, creds := range map[string]credentials.TransportCredentials{"without TLS": insecure.NewCredentials(), "without a certificate": credentials.NewTLS(anonymous)} {
			_, err := subscribed(p, brokerpb.NewAPIClient(brokerConn(p, creds)), asBroker(p), ref)
			code(p, what, err, codes.Unavailable, codes.Unauthenticated)
		}
		_, err := subscribed(p, broker(p), asBroker(p), ref)
		p.must("with our SVID", err)
	}, withBroker, withServer, withRoot)
	point(t, "R-2", func(p *probe) {
		ref, _, _ := sleeper(p)
		for _, pairs := range [][]string{nil, {"broker.spiffe.io", "True"}, {"workload.spiffe.io", "true"}} {
			ctx, cancel := context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), pairs...), patience)
			_, err := subscribed(p, broker(p), ctx, ref)
			code(p, fmt.Sprintf("with the header %q", pairs), err, codes.InvalidArgument)
			cancel()
		}
	}, withBroker, withServer, withRoot)
	allowlist := func(p *probe) {
		ref, _, _ := sleeper(p)
		_, err := subscribed(p, brokerpb.NewAPIClient(brokerConn(p, credentials.NewTLS(identified(p, "/conformance/two")))), asBroker(p), ref)
		code(p, "an identity that is no broker", err, codes.PermissionDenied, codes.Unauthenticated, codes.Unavailable)
	}
	point(t, "R-5", allowlist, withBroker, withServer, withRoot)
	point(t, "R-14", allowlist, withBroker, withServer, withRoot)
	point(t, "R-6", func(p *probe) {
		if got := brokerServices(p); !slices.Contains(got, "spiffe.broker.API") {
			p.Errorf("reflection lists %q", got)
		}
	}, withBroker)
	point(t, "R-8", func(p *probe) {
		conn := brokerConn(p, credentials.NewTLS(identified(p, theBroker)))
		err := ask(asBroker(p), conn, "/spiffe.broker.API/FetchNothing", durationpb.New(0), durationpb.New(0))
		code(p, "an RPC that is not in the standard", err, codes.Unimplemented)
	}, withBroker)
}

func brokerServices(p *probe) (list []string) {
	p.Helper()
	st, err := grpc_reflection_v1.NewServerReflectionClient(brokerConn(p, credentials.NewTLS(identified(p, theBroker)))).ServerReflectionInfo(asBroker(p))
	p.must("reflection", err)
	p.must("reflection", st.Send(&grpc_reflection_v1.ServerReflectionRequest{MessageRequest: &grpc_reflection_v1.ServerReflectionRequest_ListServices{}}))
	r, err := st.Recv()
	p.must("reflection", err)
	for _, s := range r.GetListServicesResponse().GetService() {
		list = append(list, s.Name)
	}
	return list
}

// reason wants a status and, since that is a SHOULD, the ErrorInfo that the standard has for it.
func reason(p *probe, what string, err error, want codes.Code, name string) {
	p.Helper()
	code(p, what, err, want)
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok && info.Domain == "spiffe.io" && info.Reason == name {
			return
		}
	}
	p.Errorf("%s: no ErrorInfo with the reason %s of spiffe.io", what, name)
}

// refused wants an error; which one it is, is R-17's affair.
func refused(p *probe, what string) func(method string, err error) {
	return func(method string, err error) {
		p.Helper()
		if err == nil {
			p.Errorf("%s for %s has an answer", method, what)
		}
	}
}

func TestBrokerReferences(t *testing.T) {
	// every method, with a reference
	each := func(p *probe, ref *brokerpb.WorkloadReference, f func(method string, err error)) {
		c := broker(p)
		_, err := subscribed(p, c, asBroker(p), ref)
		f("SubscribeToX509SVID", err)
		x, err := c.SubscribeToX509Bundles(asBroker(p), &brokerpb.SubscribeToX509BundlesRequest{Reference: ref})
		if err == nil {
			_, err = x.Recv()
		}
		f("SubscribeToX509Bundles", err)
		_, err = c.FetchJWTSVID(asBroker(p), &brokerpb.FetchJWTSVIDRequest{Reference: ref, Audience: []string{"db"}})
		f("FetchJWTSVID", err)
		j, err := c.SubscribeToJWTBundles(asBroker(p), &brokerpb.SubscribeToJWTBundlesRequest{Reference: ref})
		if err == nil {
			_, err = j.Recv()
		}
		f("SubscribeToJWTBundles", err)
	}
	point(t, "R-9", func(p *probe) {
		for what, ref := range map[string]*brokerpb.WorkloadReference{"none": nil, "empty": {}, "of an unknown type": reference(p, durationpb.New(1)),
			"malformed": {Reference: &anypb.Any{TypeUrl: "type.googleapis.com/spiffe.broker.WorkloadPIDReference", Value: []byte{0xff}}}} {
			each(p, ref, func(method string, err error) {
				if what == "of an unknown type" { // an allow-list of types may come first
					code(p, method+" with a reference "+what, err, codes.InvalidArgument, codes.PermissionDenied)
					return
				}
				code(p, method+" with a reference "+what, err, codes.InvalidArgument)
			})
		}
	}, withBroker)
	point(t, "R-10", func(p *probe) {
		cmd, up := play(p, "sleeper")
		<-up
		p.must("end the process", cmd.Process.Kill())
		_ = cmd.Wait()
		each(p, pid(p, cmd.Process.Pid), refused(p, "a process that ended"))
	}, withBroker, withRoot)
	point(t, "R-12", func(p *probe) {
		for _, n := range []int{0, -1, -1 << 31} {
			each(p, pid(p, n), refused(p, fmt.Sprintf("PID %d", n)))
		}
	}, withBroker)
	point(t, "R-17", func(p *probe) {
		each(p, pid(p, -1), func(method string, err error) {
			reason(p, method+" for PID -1", err, codes.InvalidArgument, "WORKLOAD_REFERENCE_INVALID")
		})
		each(p, pid(p, 1<<31-1), func(method string, err error) {
			reason(p, method+" for no process", err, codes.NotFound, "WORKLOAD_NOT_FOUND")
		})
		cmd, up := play(p, "sleeper")
		<-up
		each(p, pid(p, cmd.Process.Pid), func(method string, err error) {
			reason(p, method+" for a stranger", err, codes.PermissionDenied, "WORKLOAD_NOT_ENTITLED")
		})
	}, withBroker, withRoot)
}

func TestBrokerProfiles(t *testing.T) {
	point(t, "R-7", func(p *probe) {
		ref, _, id := sleeper(p)
		c := broker(p)
		m, err := subscribed(p, c, asBroker(p), ref)
		p.must("SubscribeToX509SVID", err)
		if len(m.Svids) != 1 || m.Svids[0].SpiffeId != id {
			p.Errorf("X509-SVIDs %v, want %s", m.Svids, id)
		}
		j, err := c.FetchJWTSVID(asBroker(p), &brokerpb.FetchJWTSVIDRequest{Reference: ref, Audience: []string{"db"}})
		p.must("FetchJWTSVID", err)
		if len(j.Svids) != 1 || readToken(p, j.Svids[0].Svid).claims["sub"] != id {
			p.Errorf("JWT-SVIDs %v, want %s", j.Svids, id)
		}
	}, withBroker, withServer, withRoot)
	point(t, "R-16", func(p *probe) {
		ref, _, id := sleeper(p)
		c := broker(p)
		st, err := c.SubscribeToX509SVID(asBroker(p), &brokerpb.SubscribeToX509SVIDRequest{Reference: ref})
		if m := first(p, st, err); len(m.Svids) != 1 || m.Svids[0].SpiffeId != id {
			p.Fatalf("got %v, want %s alone", m.Svids, id)
		}
		entry(p, &types.Entry{SpiffeId: at.id("/conformance/sleeper-too"), Selectors: readSelectors(fmt.Sprintf("unix:uid:%d", *strangerFlag))})
		m := until(p, st, func(m *brokerpb.SubscribeToX509SVIDResponse) bool { return len(m.Svids) == 2 })
		for _, s := range m.Svids {
			if !strings.HasPrefix(s.SpiffeId, id) {
				p.Errorf("%s is not the sleeper's", s.SpiffeId)
			}
		}
	}, withBroker, withServer, withRoot)
	point(t, "R-18", func(p *probe) {
		ref, stop, _ := sleeper(p)
		ctx, cancel := context.WithCancel(asBroker(p))
		defer cancel()
		st, err := broker(p).SubscribeToX509SVID(ctx, &brokerpb.SubscribeToX509SVIDRequest{Reference: ref})
		first(p, st, err)
		stop()
		// It may say why, or nothing; another one of the same kind shows when there would be news.
		entry(p, &types.Entry{SpiffeId: at.id("/conformance/sleeper-too"), Selectors: readSelectors(fmt.Sprintf("unix:uid:%d", *strangerFlag))})
		cmd, up := play(p, "sleeper")
		<-up
		eventually(p, "news for those that are alive", func() bool {
			m, err := subscribed(p, broker(p), asBroker(p), pid(p, cmd.Process.Pid))
			return err == nil && len(m.Svids) == 2
		})
		time.AfterFunc(quiet, cancel)
		if m, err := st.Recv(); err == nil {
			p.Errorf("a message with %d SVIDs for a process that ended", len(m.Svids))
		}
	}, withBroker, withServer, withRoot)
	point(t, "R-19", func(p *probe) {
		ref, _, id := sleeper(p)
		c := broker(p)
		m, err := subscribed(p, c, asBroker(p), ref)
		p.must("SubscribeToX509SVID", err)
		s := m.Svids[0]
		chain, err := x509.ParseCertificates(s.X509Svid)
		p.must("chain", err)
		bundle, err := x509.ParseCertificates(s.Bundle)
		p.must("bundle", err)
		verify(p, &svid{id: id, chain: chain, bundle: bundle})
		x, err := c.SubscribeToX509Bundles(asBroker(p), &brokerpb.SubscribeToX509BundlesRequest{Reference: ref})
		if b := first(p, x, err); b.Bundles["spiffe://"+at.td] == nil {
			p.Errorf("X.509 bundles of %q", keys(b.Bundles))
		}
		j, err := c.SubscribeToJWTBundles(asBroker(p), &brokerpb.SubscribeToJWTBundlesRequest{Reference: ref})
		_, list := rawJWKS(p, first(p, j, err).Bundles["spiffe://"+at.td])
		for _, k := range list {
			if use, ok := k["use"]; ok && use != "jwt-svid" {
				p.Errorf("key %v has the use %v", k["kid"], use)
			}
		}
		_, err = c.FetchJWTSVID(asBroker(p), &brokerpb.FetchJWTSVIDRequest{Reference: ref})
		code(p, "without audience", err, codes.InvalidArgument)
		if _, err = c.FetchJWTSVID(asBroker(p), &brokerpb.FetchJWTSVIDRequest{Reference: ref, Audience: []string{""}}); err == nil {
			p.Errorf("a token for the audience %q", "")
		}
	}, withBroker, withServer, withRoot)
}
