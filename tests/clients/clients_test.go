// SPDX-License-Identifier: Apache-2.0

// Package clients runs programs that know nothing of Assay against it: nothing of theirs is changed, and each has a
// version of its own (gospiffe/go.mod and go-2.2.mod, node/package-lock.json, Debian's packages). Their SVIDs live half a
// minute and are replaced under traffic, the agent is killed in the middle of it and more happens, and no request may fail.
//
// SPIFFE_HELPER and GHOSTUNNEL name those programs, which are built outside of this repository. Without the
// first, a program of go-spiffe's feeds the files; without the second, there is no such tunnel.
package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/tpm/swtpmtest"
)

func TestMain(m *testing.M) { os.Exit(swtpmtest.Main(m)) }

const (
	traffic  = time.Minute      // how long
	secondAt = 10 * time.Second // when all clients get a second identity
	killAt   = 20 * time.Second // when the agent is killed
	awayFor  = 2 * time.Second  // how long nothing is in its place
	firstAt  = 35 * time.Second // when the second identity ends
	serverAt = 40 * time.Second // when the server starts again
	requests = 60               // at least, of each flow: one a second, on the busiest machine
	serials  = 3                // at least, of each side: two rotations
)

// users that run what is started here; none of them exists.
const (
	serverUser = 40001 + iota
	callerUser
	nodeUser
	tunnelUser
	entranceUser
)

func TestRotationUnderTraffic(t *testing.T) {
	h := open(t)
	now := h.build(t, "gospiffe", "go.mod", ".")
	old := h.build(t, "gospiffe-old", "go-2.2.mod", ".")
	nats := h.build(t, "nats-server", "go.mod", "github.com/nats-io/nats-server/v2")
	node, script, proto := h.node(t)

	at := addresses(t, 6)
	servers := map[string]*program{}
	var running []*program
	flows := map[string][]string{}
	both := func(flow string) {
		flows["caller"] = append(flows["caller"], flow)
		flows["caller-old"] = append(flows["caller-old"], flow)
	}
	for i, name := range []string{"server", "server-old"} {
		a := at[3*i:]
		path := []string{now, old}[i]
		h.register(t, name, path, serverUser)
		servers[name] = h.start(t, name, serverUser, path, "serve", a[0], a[1], a[2])
		for _, address := range a[:3] {
			listening(t, address, servers[name])
		}
		both("tls," + name + "," + a[0] + "," + id(name))
		both("grpc," + name + " by gRPC," + a[1] + "," + id(name))
		both("jwt," + name + " by token," + a[2])
	}
	for _, p := range proxies(t, nats) {
		address := addresses(t, 1)[0]
		running = append(running, h.startFed(t, p, address, now)...)
		if p.name == "nats" {
			flows["caller"] = append(flows["caller"], "nats,nats,"+address+","+id(p.name), "nats-kept,nats kept,"+address+","+id(p.name))
			continue
		}
		both("tls," + p.name + "," + address + "," + id(p.name))
	}
	if tunnel := os.Getenv("GHOSTUNNEL"); tunnel != "" {
		a := addresses(t, 2)
		h.register(t, "tunnel", tunnel, tunnelUser)
		h.register(t, "entrance", tunnel, entranceUser)
		exit := h.start(t, "tunnel", tunnelUser, tunnel, "server", "--use-workload-api", "--listen", a[0], "--target", at[2], "--allow-uri", id("caller"))
		entrance := h.start(t, "entrance", entranceUser, tunnel, "client", "--use-workload-api", "--listen", a[1], "--target", at[0], "--verify-uri", id("server"))
		listening(t, a[0], exit)
		listening(t, a[1], entrance)
		running = append(running, exit, entrance)
		flows["caller"] = append(flows["caller"], "tls,tunnel,"+a[0]+","+id("tunnel"), "plain,entrance,"+a[1])
	}
	address := addresses(t, 1)[0]
	h.register(t, "node", node, nodeUser)
	callers := map[string]*program{"node": h.start(t, "node", nodeUser, node, script, proto, address, at[0], at[2], id("server"))}
	listening(t, address, callers["node"])
	both("tls,node," + address + "," + id("node"))
	for name, path := range map[string]string{"caller": now, "caller-old": old} {
		h.register(t, name, path, callerUser)
		callers[name] = h.start(t, name, callerUser, path, append([]string{"call"}, flows[name]...)...)
	}

	h.disturb(t)
	for _, p := range running {
		p.alive(t)
	}
	// Who calls ends before who is called.
	for _, name := range []string{"caller", "caller-old", "node"} {
		for with, f := range callers[name].report(t) {
			judge(t, name+" → "+with, f)
		}
	}
	seen(t, servers)
}

// disturb lets traffic flow, and amid it all clients get a second identity, which must not become their first; the agent
// crashes and comes back; the second identity ends; and the server starts again.
func (h *house) disturb(t *testing.T) {
	t.Helper()
	begin := time.Now()
	until := func(at time.Duration) { time.Sleep(time.Until(begin.Add(at))) }
	until(secondAt)
	h.create(t, "second", "--id", "second", "--selector", "exec:file:regular", "--hint", "second")
	until(killAt)
	fatal(t, h.KillAgent())
	killed := time.Now()
	time.Sleep(awayFor)
	fatal(t, h.StartAgent(t.Context()))
	t.Logf("the agent was away for %s", time.Since(killed).Round(100*time.Millisecond))
	until(firstAt)
	h.assay(t, "entry", "delete", "second")
	until(serverAt)
	fatal(t, h.StopServer())
	fatal(t, h.StartServer(t.Context()))
	until(traffic)
}

// judge says what is wrong with a flow.
func judge(t *testing.T, name string, f flow) {
	t.Helper()
	t.Logf("%-34s %4d requests, %d failed, %2d certificates or tokens, %d retries of the Workload API", name, f.Requests, len(f.Failures), len(f.Serials), f.Retries)
	if len(f.Failures) > 0 {
		t.Errorf("%s: %d of %d requests failed, the first with: %s", name, len(f.Failures), f.Requests, f.Failures[0])
	}
	if f.Requests < requests {
		t.Errorf("%s: only %d requests", name, f.Requests)
	}
	if strings.HasSuffix(name, "by token") && f.Identities != 2 {
		t.Errorf("%s: it had %d identities at most, want 2", name, f.Identities)
	}
	want := serials
	switch {
	case strings.HasSuffix(name, "nats kept"):
		want = 1 // one connection, one handshake
	case strings.HasSuffix(name, "entrance"):
		want = 0 // plain HTTP; the server sees the entrance's certificates
	}
	if len(f.Serials) < want {
		t.Errorf("%s: %d certificates or tokens were seen, want %d: it did not rotate", name, len(f.Serials), want)
	}
}

// seen ends the servers: they must have seen their clients rotate.
func seen(t *testing.T, servers map[string]*program) {
	t.Helper()
	want := map[string][]string{
		"server":     {id("caller"), id("caller-old"), id("node"), "tokens of " + id("caller"), "tokens of " + id("caller-old"), "tokens of " + id("node")},
		"server-old": {id("caller"), id("caller-old"), "tokens of " + id("caller"), "tokens of " + id("caller-old")},
	}
	if os.Getenv("GHOSTUNNEL") != "" {
		want["server"] = append(want["server"], id("entrance"))
	}
	for name, p := range servers {
		p.alive(t)
		flows := p.report(t)
		for _, client := range want[name] {
			if n := len(flows[client].Serials); n < serials {
				t.Errorf("%s saw %d certificates or tokens of %q, want %d", name, n, client, serials)
			}
		}
		for _, second := range []string{id("second"), "tokens of " + id("second")} {
			if len(flows[second].Serials) > 0 {
				t.Errorf("%s saw %s: the order of identities changed", name, second)
			}
		}
	}
}

// node installs the exact packages of node/package-lock.json, and returns Node, the script and SPIFFE's workload.proto.
func (h *house) node(t *testing.T) (node, script, proto string) {
	t.Helper()
	dir := h.folder(t, "script", nodeUser)
	for _, name := range []string{"package.json", "package-lock.json", "client.mjs"} {
		text, err := os.ReadFile(filepath.Join("node", name))
		fatal(t, err)
		write(t, filepath.Join(dir, name), string(text))
	}
	install := exec.Command(installed(t, "npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = dir
	tool(t, install)
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/spiffe/go-spiffe/v2")
	list.Dir = "gospiffe"
	text, err := os.ReadFile(filepath.Join(tool(t, list), "proto/spiffe/workload/workload.proto"))
	fatal(t, err)
	return installed(t, "node"), filepath.Join(dir, "client.mjs"), write(t, filepath.Join(dir, "workload.proto"), string(text))
}
