// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	brokerpb "github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	debugpb "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/debug/v1"
	delegatedpb "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/delegatedidentity/v1"
	loggerpb "github.com/spiffe/spire-api-sdk/proto/spire/api/agent/logger/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/assay-id/assay/cmd/dev"
)

// sleeperUID is the user of the processes that others ask for.
const sleeperUID = 61234

// sleeper starts a process that does nothing; a line on its input has it execute another program.
func sleeper(t *testing.T, uid uint32) (pid int, execs io.Writer, stop func()) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-c", "echo up; read x; exec /bin/sleep 600")
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop = func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }
	t.Cleanup(stop)
	if _, err := io.ReadFull(out, make([]byte, len("up"))); err != nil {
		t.Fatal(err)
	}
	return cmd.Process.Pid, in, stop
}

// proxies is a machine with a broker's and delegates' sockets; this process may use both.
type proxies struct {
	*machine
	broker, tcp, delegates string
}

func startProxies(t *testing.T) *proxies {
	t.Helper()
	dir, err := os.MkdirTemp("/run", "assay-proxies-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &proxies{broker: filepath.Join(dir, "broker.sock"), delegates: filepath.Join(dir, "delegates.sock"), tcp: "127.0.0.1:" + freePort(t)}
	p.machine = start(t, dev.Options{Agent: fmt.Sprintf(`broker {
  socket_path = %q
  listen = %q
  allow "spiffe://example.org/proxy" {}
}
socket "delegates" {
  path = %q
  mode = "0700"
  disable_workload_api = true
  disable_sds = true
  authorized_delegates = ["spiffe://example.org/proxy"]
}`, p.broker, p.tcp, p.delegates)})
	return p
}

func (p *proxies) svid(t *testing.T) *x509svid.SVID {
	t.Helper()
	svid, err := workloadapi.FetchX509SVID(t.Context(), workloadapi.WithAddr(p.WorkloadSocket))
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

// dialBroker connects as who this process is.
func (p *proxies) dialBroker(t *testing.T, address string, svid *x509svid.SVID) brokerpb.APIClient {
	t.Helper()
	bundles, err := workloadapi.FetchX509Bundles(t.Context(), workloadapi.WithAddr(p.WorkloadSocket))
	if err != nil {
		t.Fatal(err)
	}
	conf := tlsconfig.MTLSClientConfig(svid, bundles, tlsconfig.AuthorizeID(spiffeid.RequireFromString(p.NodeID)))
	return brokerpb.NewAPIClient(dialed(t, address, credentials.NewTLS(conf)))
}

func dialed(t *testing.T, address string, creds credentials.TransportCredentials) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds), grpc.WithAuthority("localhost"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func brokering(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true")
}

func pidReference(t *testing.T, pid int) *brokerpb.WorkloadReference {
	t.Helper()
	a, err := anypb.New(&brokerpb.WorkloadPIDReference{Pid: int32(pid)})
	if err != nil {
		t.Fatal(err)
	}
	return &brokerpb.WorkloadReference{Reference: a}
}

// subscribed opens the stream of a process and returns its first message.
func subscribed(t *testing.T, c brokerpb.APIClient, pid int) (grpc.ServerStreamingClient[brokerpb.SubscribeToX509SVIDResponse], *brokerpb.SubscribeToX509SVIDResponse, error) {
	t.Helper()
	st, err := c.SubscribeToX509SVID(brokering(t), &brokerpb.SubscribeToX509SVIDRequest{Reference: pidReference(t, pid)})
	if err != nil {
		t.Fatal(err)
	}
	m, err := st.Recv()
	return st, m, err
}

func is(t *testing.T, what string, err error, code codes.Code, reason string) {
	t.Helper()
	st := status.Convert(err)
	named := reason == "" || slices.ContainsFunc(st.Details(), func(d any) bool {
		info, ok := d.(*errdetails.ErrorInfo)
		return ok && info.Domain == "spiffe.io" && info.Reason == reason
	})
	if st.Code() != code || !named {
		t.Errorf("%s: %v with %v, want %v %s", what, err, st.Details(), code, reason)
	}
}

// TestBroker: a proxy asks for the identities of a process; what it may not, and when it ends.
func TestBroker(t *testing.T) {
	p := startProxies(t)
	us := p.create(t, "/nobody", "--selector", me(t))
	nobody := p.svid(t)
	p.must(t, nil, "entry", "delete", us.ID)
	p.create(t, "/proxy", "--selector", me(t))
	p.create(t, "/sleeper", "--selector", fmt.Sprint("unix:uid:", sleeperUID))
	p.create(t, "/ruler", "--selector", fmt.Sprint("unix:uid:", sleeperUID), "--admin")
	var proxy *x509svid.SVID
	eventually(t, "this process to be the proxy", func() bool { proxy = p.svid(t); return proxy.ID.Path() == "/proxy" })
	c := p.dialBroker(t, "unix:"+p.broker, proxy)

	pid, _, stop := sleeper(t, sleeperUID)
	st, m, err := subscribed(t, c, pid)
	if err != nil || len(m.Svids) != 1 || m.Svids[0].SpiffeId != "spiffe://example.org/sleeper" {
		t.Fatalf("the sleeper's SVIDs are %v, %v", m.GetSvids(), err)
	}
	jwt, err := c.FetchJWTSVID(brokering(t), &brokerpb.FetchJWTSVIDRequest{Reference: pidReference(t, pid), Audience: []string{"db"}})
	if err != nil || len(jwt.Svids) != 1 || jwt.Svids[0].SpiffeId != "spiffe://example.org/sleeper" {
		t.Errorf("the sleeper's JWT-SVIDs are %v, %v", jwt, err)
	}
	eventually(t, "both deliveries to be written down as the proxy's", func() bool { return p.logs.count("via=spiffe://example.org/proxy") == 2 })
	stop()
	_, err = st.Recv()
	is(t, "the stream after the end of the process", err, codes.NotFound, "WORKLOAD_NOT_FOUND")
	_, _, err = subscribed(t, c, pid)
	is(t, "a process that has ended", err, codes.NotFound, "WORKLOAD_NOT_FOUND")

	pid, execs, _ := sleeper(t, sleeperUID)
	if st, _, err = subscribed(t, c, pid); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(execs, "go\n"); err != nil {
		t.Fatal(err)
	}
	_, err = st.Recv()
	is(t, "the stream of a process that executes another program", err, codes.NotFound, "WORKLOAD_NOT_FOUND")
	pid, _, _ = sleeper(t, sleeperUID+1)
	_, _, err = subscribed(t, c, pid)
	is(t, "a process without an entry", err, codes.PermissionDenied, "WORKLOAD_NOT_ENTITLED")

	pid, _, _ = sleeper(t, sleeperUID)
	_, _, err = subscribed(t, p.dialBroker(t, "unix:"+p.broker, nobody), pid)
	is(t, "a workload that is no broker", err, codes.PermissionDenied, "")
	_, _, err = subscribed(t, p.dialBroker(t, p.tcp, proxy), pid)
	is(t, "a process number over TCP", err, codes.PermissionDenied, "")
	_, err = c.FetchJWTSVID(t.Context(), &brokerpb.FetchJWTSVIDRequest{Reference: pidReference(t, pid), Audience: []string{"db"}})
	is(t, "without the security header", err, codes.InvalidArgument, "")
	stranger := brokerpb.NewAPIClient(dialed(t, "unix:"+p.broker, insecure.NewCredentials()))
	_, err = stranger.FetchJWTSVID(brokering(t), &brokerpb.FetchJWTSVIDRequest{Reference: pidReference(t, pid), Audience: []string{"db"}})
	is(t, "without TLS", err, codes.Unavailable, "")
}

// TestDelegates: the same by SPIRE's Delegated Identity API, and what the admin socket tells of the agent.
func TestDelegates(t *testing.T) {
	p := startProxies(t)
	us := p.create(t, "/nobody", "--selector", me(t))
	p.create(t, "/sleeper", "--selector", fmt.Sprint("unix:uid:", sleeperUID))
	p.create(t, "/ruler", "--selector", fmt.Sprint("unix:uid:", sleeperUID), "--admin")
	pid, _, stop := sleeper(t, sleeperUID)
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := delegatedpb.NewDelegatedIdentityClient(dialed(t, "unix:"+p.delegates, insecure.NewCredentials()))
	ask := func() (*delegatedpb.FetchJWTSVIDsResponse, error) {
		return c.FetchJWTSVIDs(ctx, &delegatedpb.FetchJWTSVIDsRequest{Pid: int32(pid), Audience: []string{"db"}})
	}
	_, err := ask()
	is(t, "a workload that is no delegate", err, codes.PermissionDenied, "")
	p.must(t, nil, "entry", "delete", us.ID)
	us = p.create(t, "/proxy", "--selector", me(t))
	eventually(t, "the proxy to be a delegate", func() bool { _, err := ask(); return err == nil })
	if r, err := ask(); err != nil || len(r.Svids) != 1 || r.Svids[0].Id.Path != "/sleeper" {
		t.Errorf("the sleeper's JWT-SVIDs are %v, %v", r, err)
	}
	st, err := c.SubscribeToX509SVIDs(ctx, &delegatedpb.SubscribeToX509SVIDsRequest{Pid: int32(pid)})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := st.Recv(); err != nil || len(m.X509Svids) != 1 || m.X509Svids[0].X509Svid.Id.Path != "/sleeper" || len(m.X509Svids[0].X509SvidKey) == 0 {
		t.Fatalf("the sleeper's SVIDs are %v, %v", m, err)
	}
	bundles, err := c.SubscribeToX509Bundles(ctx, &delegatedpb.SubscribeToX509BundlesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := bundles.Recv(); err != nil || len(m.CaCertificates["spiffe://example.org"]) == 0 {
		t.Errorf("the bundles are %v, %v", m, err)
	}
	_, err = c.FetchJWTSVIDs(ctx, &delegatedpb.FetchJWTSVIDsRequest{Selectors: []*types.Selector{{Type: "unix", Value: fmt.Sprint("uid:", sleeperUID)}}, Audience: []string{"db"}})
	is(t, "selectors without evidence", err, codes.PermissionDenied, "")
	stop()
	_, err = st.Recv()
	is(t, "the stream after the end of the process", err, codes.PermissionDenied, "")
	_, err = ask()
	is(t, "a process that has ended", err, codes.NotFound, "")

	operator := dialed(t, "unix:"+p.AgentSocket, insecure.NewCredentials())
	info, err := debugpb.NewDebugClient(operator).GetInfo(ctx, &debugpb.GetInfoRequest{})
	if err != nil || len(info.SvidChain) == 0 || "spiffe://"+info.SvidChain[0].Id.TrustDomain+info.SvidChain[0].Id.Path != p.NodeID || info.CachedX509SvidsCount == 0 || time.Since(time.Unix(info.LastSyncSuccess, 0)) > time.Hour {
		t.Errorf("the agent tells %v of itself, %v", info, err)
	}
	log := loggerpb.NewLoggerClient(operator)
	if l, err := log.SetLogLevel(ctx, &loggerpb.SetLogLevelRequest{NewLevel: types.LogLevel_ERROR}); err != nil || l.CurrentLevel != types.LogLevel_ERROR || l.LaunchLevel != types.LogLevel_INFO {
		t.Errorf("the log's level is %v, %v", l, err)
	}
	pid, _, _ = sleeper(t, sleeperUID)
	if _, err := ask(); err != nil {
		t.Error(err)
	}
	quiet := pid
	if l, err := log.ResetLogLevel(ctx, &loggerpb.ResetLogLevelRequest{}); err != nil || l.CurrentLevel != types.LogLevel_INFO {
		t.Errorf("the log's level is %v, %v", l, err)
	}
	pid, _, _ = sleeper(t, sleeperUID)
	if _, err := ask(); err != nil {
		t.Error(err)
	}
	eventually(t, "deliveries to be logged again", func() bool { return p.logs.count(fmt.Sprintf("msg=delivered pid=%d ", pid)) == 1 })
	if n := p.logs.count(fmt.Sprintf("msg=delivered pid=%d ", quiet)); n != 0 {
		t.Errorf("at level error, %d deliveries were logged", n)
	}
}
