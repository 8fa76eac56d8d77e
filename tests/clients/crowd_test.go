// SPDX-License-Identifier: Apache-2.0

package clients

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// users that run what is started here; none of them exists.
const (
	serverUser = 40001 + iota
	callerUser
	nodeUser
	nodeSpiffeUser
	tunnelUser
	entranceUser
	haproxyUser
	natsUser
	wwwData = 33 // Debian's own
)

// crowd is all that runs in a house, and who calls whom.
type crowd struct {
	*house
	now, old string // gospiffe by the newest go-spiffe, and by an old one
	at       map[string][]string
	flows    map[string][]string // of each caller
	clients  map[string][]string // that each server sees

	servers, proxies []*program
	callers          []*program // in the order to end them: who calls before who is called
}

// gather starts everybody.
func gather(t *testing.T) *crowd {
	t.Helper()
	c := &crowd{house: open(t), at: map[string][]string{}, flows: map[string][]string{}, clients: map[string][]string{}}
	c.now = c.build(t, "gospiffe", "go.mod", ".")
	c.old = c.build(t, "gospiffe-old", "go-2.2.mod", ".")
	c.serve(t, "server", c.now)
	c.serve(t, "server-old", c.old)
	nats := c.build(t, "nats-server", "go.mod", "github.com/nats-io/nats-server/v2")
	for _, p := range proxies(t, nats) {
		c.proxy(t, p)
	}
	if program := os.Getenv("GHOSTUNNEL"); program != "" {
		c.tunnel(t, program)
	}
	nodes := c.nodes(t)
	for _, p := range []struct{ name, path string }{{"caller", c.now}, {"caller-old", c.old}} {
		c.register(t, p.name, p.path, callerUser)
		c.callers = append(c.callers, c.start(t, p.name, callerUser, p.path, append([]string{"call"}, c.flows[p.name]...)...))
	}
	c.callers = append(c.callers, nodes...)
	return c
}

// both lets both callers make a flow.
func (c *crowd) both(flow string) {
	c.flows["caller"] = append(c.flows["caller"], flow)
	c.flows["caller-old"] = append(c.flows["caller-old"], flow)
}

func (c *crowd) serve(t *testing.T, name, path string) {
	t.Helper()
	at := addresses(t, 3)
	c.at[name] = at
	c.register(t, name, path, serverUser)
	p := c.start(t, name, serverUser, path, "serve", at[0], at[1], at[2])
	for _, address := range at {
		listening(t, address, p)
	}
	c.servers = append(c.servers, p)
	c.both("tls," + name + "," + at[0] + "," + id(name))
	c.both("grpc," + name + " by gRPC," + at[1] + "," + id(name))
	c.both("jwt," + name + " by token," + at[2])
	c.clients[name] = []string{id("caller"), id("caller-old"), tokensOf("caller"), tokensOf("caller-old")}
}

func (c *crowd) proxy(t *testing.T, p proxy) {
	t.Helper()
	address := addresses(t, 1)[0]
	c.proxies = append(c.proxies, c.startFed(t, p, address, c.now)...)
	if p.name == "nats" {
		c.flows["caller"] = append(c.flows["caller"], "nats,nats,"+address+","+id(p.name), "nats-kept,nats kept,"+address+","+id(p.name))
		return
	}
	c.both("tls," + p.name + "," + address + "," + id(p.name))
}

// tunnel is an exit, which calls a bare server, and an entrance, which calls the server by mTLS.
func (c *crowd) tunnel(t *testing.T, program string) {
	t.Helper()
	at, server := addresses(t, 2), c.at["server"]
	c.register(t, "tunnel", program, tunnelUser)
	c.register(t, "entrance", program, entranceUser)
	exit := c.start(t, "tunnel", tunnelUser, program, "server", "--use-workload-api", "--listen", at[0], "--target", server[2], "--allow-uri", id("caller"))
	entrance := c.start(t, "entrance", entranceUser, program, "client", "--use-workload-api", "--listen", at[1], "--target", server[0], "--verify-uri", id("server"))
	listening(t, at[0], exit)
	listening(t, at[1], entrance)
	c.proxies = append(c.proxies, exit, entrance)
	c.flows["caller"] = append(c.flows["caller"], "tls,tunnel,"+at[0]+","+id("tunnel"), "plain,entrance,"+at[1])
	c.clients["server"] = append(c.clients["server"], id("entrance"))
}

// nodes starts the workloads on Node: one by grpc-js, and one by the package `spiffe`, if there is one.
func (c *crowd) nodes(t *testing.T) []*program {
	t.Helper()
	dir := c.folder(t, "script", nodeUser)
	for _, name := range []string{"package.json", "package-lock.json", "client.mjs", "api.mjs"} {
		text, err := os.ReadFile(filepath.Join("node", name))
		fatal(t, err)
		write(t, filepath.Join(dir, name), string(text))
	}
	install := exec.Command(installed(t, "npm"), "ci", "--ignore-scripts", "--no-audit", "--no-fund")
	install.Dir = dir
	tool(t, install)
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "github.com/spiffe/go-spiffe/v2")
	list.Dir, list.Env = "gospiffe", append(os.Environ(), "GOFLAGS=")
	text, err := os.ReadFile(filepath.Join(tool(t, list), "proto/spiffe/workload/workload.proto"))
	fatal(t, err)
	proto := write(t, filepath.Join(dir, "workload.proto"), string(text))

	start := func(name string, user uint32, more ...string) *program {
		address, server := addresses(t, 1)[0], c.at["server"]
		c.register(t, name, installed(t, "node"), user)
		p := c.start(t, name, user, installed(t, "node"), append([]string{filepath.Join(dir, "client.mjs"), proto, address, server[0], server[2], id("server")}, more...)...)
		listening(t, address, p)
		c.both("tls," + name + "," + address + "," + id(name))
		c.clients["server"] = append(c.clients["server"], id(name), tokensOf(name))
		return p
	}
	all := []*program{start("node", nodeUser)}
	if module := os.Getenv("NODE_SPIFFE"); module != "" {
		all = append(all, start("node-spiffe", nodeSpiffeUser, module))
	}
	return all
}
