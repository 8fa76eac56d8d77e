// SPDX-License-Identifier: Apache-2.0

// Package conformance asks a SPIFFE Workload API, and the server behind it, what the standards demand of
// them, point by point. Each subtest is named by a requirement of requirements.tsv:
//
//	go test ./tests/conformance                             our server and agent, started for it
//	go test ./tests/conformance -socket=unix:///run/…       any other, as one of its workloads
//
// With -server, the private socket of a server with SPIRE's API, it makes the entries it needs itself, and plays a
// federated trust domain (far_test.go), good and bad. Without, it has the identities that it is given, and what they
// can not decide is reported as not asked. docs/conformance.md tells more.
package conformance

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/cmd/dev"
	"github.com/assay-id/assay/tpm/swtpmtest"
)

var (
	socketFlag    = flag.String("socket", "", "address of the Workload API, unix:///path; empty starts our own server and agent")
	serverFlag    = flag.String("server", "", "path of the private socket of the server behind it")
	nodeFlag      = flag.String("node", "", "SPIFFE ID of the agent, the parent of entries; empty is the server's only agent")
	selectorsFlag = flag.String("selectors", "", "selectors of this process, separated by blanks; empty is unix:uid:N")
	strangerFlag  = flag.Uint("stranger-uid", 65534, "a user who has no identity; needs root")
	endpointFlag  = flag.String("bundle-endpoint", "", "URL of the trust domain's bundle endpoint")
	profileFlag   = flag.String("bundle-endpoint-id", "", "SPIFFE ID of that endpoint, if its profile is https_spiffe")
	domainFlag    = flag.String("trust-domain", "", "name of the trust domain; empty is that of the first SVID")
	brokerFlag    = flag.String("broker", "", "address of the Broker API, unix:///path or tcp://host:port; /conformance/one must be allowed to use it")
	sdsFlag       = flag.Bool("sds", false, "the socket serves Envoy SDS, too")
	updateFlag    = flag.Bool("update", false, "write our results into docs/conformance.md")
	besideFlag    = flag.String("beside", "", "with -update: a report whose results stand beside ours")
	reportFlag    = flag.String("report", "", "write the results to this file as Markdown")
)

// What our own agent serves besides the Workload API. Lines for its configuration file go into ownAgent; then SDS
// or the broker's address are asked as with the flags. %s is the folder of the agent's sockets.
const (
	ownAgent = `broker {
  socket_path = "%s/broker.sock"
  allow "spiffe://example.org/conformance/one" {}
}`
	ownSDS    = true
	ownBroker = "unix://%s/broker.sock"
)

// at is what is tested.
var at *target

func TestMain(m *testing.M) {
	flag.Parse()
	if role, ok := roles[os.Getenv("CONFORMANCE_ROLE")]; ok {
		os.Exit(role())
	}
	os.Exit(run(m))
}

func run(m *testing.M) (code int) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	var err error
	defer func() {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}()
	own := *socketFlag == ""
	if own {
		var env *dev.Env
		if env, err = start(ctx); err != nil {
			return 1
		}
		defer func() {
			if cerr := env.Close(); cerr != nil {
				fmt.Fprintln(os.Stderr, "clean up:", cerr)
				code = 1
			}
			if cerr := swtpmtest.Clean(); cerr != nil {
				fmt.Fprintln(os.Stderr, "clean up:", cerr)
				code = 1
			}
		}()
	}
	if at, err = open(ctx); err != nil {
		return 1
	}
	defer at.close()
	code = m.Run()
	err = finish(code == 0, own)
	return code
}

// start starts our server and agent and points the flags at them.
func start(ctx context.Context) (*dev.Env, error) {
	bin := os.Getenv("ASSAY_BIN")
	if bin == "" {
		bin, _ = filepath.Abs("../../bin")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	endpoint := l.Addr().String()
	_, port, _ := net.SplitHostPort(endpoint)
	if err := l.Close(); err != nil {
		return nil, err
	}
	dir := fmt.Sprintf("/run/assay-conformance-%d", os.Getpid())
	o := dev.Options{Bin: bin, Dir: dir, Agent: strings.ReplaceAll(ownAgent, "%s", dir+"/agent"), Server: fmt.Sprintf(`federation {
  bundle_endpoint {
    address = "127.0.0.1"
    port = %s
    profile "https_spiffe" {}
  }
}`, port)}
	if path := os.Getenv("CONFORMANCE_LOG"); path != "" {
		if o.Log, err = os.Create(path); err != nil {
			return nil, err
		}
	}
	env, err := dev.Start(ctx, o)
	if err != nil {
		return nil, err
	}
	*socketFlag, *serverFlag, *nodeFlag = env.WorkloadSocket, env.ServerSocket, env.NodeID
	*endpointFlag, *profileFlag = "https://"+endpoint+"/", "spiffe://"+env.TrustDomain+"/spire/server"
	*sdsFlag = ownSDS
	if ownBroker != "" {
		*brokerFlag = strings.ReplaceAll(ownBroker, "%s", filepath.Dir(strings.TrimPrefix(env.WorkloadSocket, "unix://")))
	}
	return env, nil
}
