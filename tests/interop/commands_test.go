// SPDX-License-Identifier: Apache-2.0

package interop

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/assay-id/assay/cmd/dev"
)

// A cli is a program of SPIRE's at one socket, and what it said so far.
type cli struct {
	t             *testing.T
	path, socket  string
	conversations []said
	patience      time.Duration // after which a call that goes on for ever is ended; 0: none does
}

// said is one call of a program.
type said struct {
	args   string
	output string
	code   int
}

// do calls the program; what fails is part of the conversation, too.
func (c *cli) do(args ...string) string {
	c.t.Helper()
	words := len(slices.Collect(func(yield func(string) bool) {
		for _, a := range args {
			if strings.HasPrefix(a, "-") || !yield(a) {
				return
			}
		}
	}))
	full := append(slices.Clone(args[:words]), "-socketPath", c.socket)
	ctx := c.t.Context()
	if c.patience > 0 {
		var cancel func()
		ctx, cancel = context.WithTimeout(ctx, c.patience)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, c.path, append(full, args[words:]...)...)
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		c.t.Fatal(err)
	}
	c.conversations = append(c.conversations, said{args: strings.Join(args, " "), output: string(out), code: cmd.ProcessState.ExitCode()})
	return string(out)
}

// read calls the program in both of its formats and returns the JSON.
func (c *cli) read(args ...string) string {
	c.t.Helper()
	c.do(args...)
	return c.do(append(args, "-output", "json")...)
}

// found is the first word that the pattern finds in a text.
func (c *cli) found(pattern, text string) string {
	c.t.Helper()
	m := regexp.MustCompile(pattern).FindStringSubmatch(text)
	if m == nil {
		c.t.Fatalf("%s at %s: no %s in %s", filepath.Base(c.path), c.socket, pattern, text)
	}
	return m[1]
}

// leaves are all commands of a program, from what it says of itself.
func leaves(t *testing.T, path string, words ...string) (all []string) {
	t.Helper()
	out, _ := exec.CommandContext(t.Context(), path, append(slices.Clone(words), "-h")...).CombinedOutput()
	_, list, group := strings.Cut(string(out), "ommands")
	if i := strings.LastIndex(string(out), "ubcommands:"); i >= 0 {
		list = string(out)[i:]
	}
	if !group {
		return []string{strings.Join(words, " ")}
	}
	for _, m := range regexp.MustCompile(`(?m)^    ([a-z0-9]+)`).FindAllStringSubmatch(list, -1) {
		all = append(all, leaves(t, path, append(slices.Clone(words), m[1])...)...)
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// complete checks that each command of the program was called, but those that are no calls.
func (c *cli) complete(notCalls ...string) (commands []string) {
	c.t.Helper()
	for _, command := range leaves(c.t, c.path) {
		called := slices.ContainsFunc(c.conversations, func(s said) bool { return s.args == command || strings.HasPrefix(s.args, command+" ") })
		if called {
			commands = append(commands, command)
		} else if !slices.Contains(notCalls, command) {
			c.t.Errorf("%s %s was not called", filepath.Base(c.path), command)
		}
	}
	return commands
}

// varies is what differs between two servers because of when and where they were asked.
var varies = []struct{ pattern, name string }{
	{`(?s)-----BEGIN [A-Z ]+-----.*?-----END [A-Z ]+-----`, "PEM"},
	{`eyJ[\w-]+\.[\w-]+\.[\w-]+`, "TOKEN"},
	{`/run/[\w./-]+|/tmp/[\w./-]+`, "PATH"},
	{`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`, "UUID"},
	{`\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\d(\.\d+)?( ?[+-]\d{4}|Z)?( [A-Z]{3})?`, "TIME"},
	{`"(not_before|not_after|expires_at|x509svid_expires_at|created_at)": ?"1\d{9}"`, `"$1":"SECONDS"`},
	{`"[A-Za-z0-9+/_-]{40,}={0,2}"`, `"BASE64"`},
	{`\b[0-9a-f]{40}\b`, "SKI"},
	{`\b\d{20,}\b`, "SERIAL"},
	{`"(id|authority_id|key_id|kid)": ?"[A-Za-z0-9]{32}"`, `"$1":"KEY"`},
	{`Authority ID: [A-Za-z0-9]{32}\b`, "Authority ID: KEY"},
	{`\b127\.0\.0\.1:\d+`, "ADDRESS"},
	{`after [\d.]+[mµ]?s`, "after TIME"},
	{`\(reference \w+\)`, ""},      // ours names its log's line
	{`\s*([{}\[\],]|":)\s*`, "$1"}, // JSON, indented or not
	{`"(sequence_number|uptime)": ?"?\d+"?`, `"$1":NUMBER`},
	{`"spiffe_sequence": ?\d+`, `"spiffe_sequence": NUMBER`},
	{`"wit_authorities":\[[^]]*\]`, `"wit_authorities":[]`}, // SPIRE's has them behind a switch
}

// differs is where ours answers otherwise, and why; the keys are how a call begins.
var differs = map[string]string{
	"debug getinfo":                    "theirs counts its own bundle among the federated ones, names the upstream's root and gives its authority a serial number",
	"bundle delete -id spiffe://wrong": "as it was not set",
	"bundle set -id spiffe://wrong.":   "ours refuses authorities that name another trust domain than the one they are set for",
	"localauthority jwt taint":         "to taint what is tainted succeeds at ours",
	"federation create -trustDomain t": "AlreadyExists at ours, Internal at theirs",
	"federation update -trustDomain n": "NotFound at ours, Internal at theirs",
}

func unvarying(text string) string {
	for _, v := range varies {
		text = regexp.MustCompile(v.pattern).ReplaceAllString(text, v.name)
	}
	return text
}

// site is a server to drive: ours or SPIRE's.
type site struct {
	cli *cli
	// attests starts an agent of SPIRE's there.
	attests func(attestor string, args ...string)
	// root changes the upstream authority and returns the key identifier of the one before.
	root func() string
}

// TestEveryCommand: the whole CLI of SPIRE's server says the same at our server as at SPIRE's.
func TestEveryCommand(t *testing.T) {
	far := farServer(t)
	node := pki(t, false)
	ask := func(name string, start func(t *testing.T, ca disk) (socket, address, bundle string)) *cli {
		c := &cli{t: t, path: program(t, "SPIRE_SERVER")}
		ca := newDisk(t)
		var address, bundle string
		c.socket, address, bundle = start(t, ca)
		drive(t, site{
			cli: c,
			attests: func(attestor string, args ...string) {
				spireAgent(t, &dev.Env{ServerAddress: address, Dir: filepath.Dir(bundle)}, attestor, args...)
			},
			root: func() string { return ca.replace(t) },
		}, far, node)
		return c
	}
	theirs := ask("SPIRE's", func(t *testing.T, ca disk) (string, string, string) {
		f := spireServer(t, fmt.Sprintf("  NodeAttestor \"x509pop\" { plugin_data {\n    ca_bundle_path = %q\n  } }\n  UpstreamAuthority \"disk\" { plugin_data {\n    cert_file_path = %q\n    key_file_path = %q\n  } }", node.root, ca.cert, ca.key))
		return f.socket, f.address, write(t, filepath.Join(t.TempDir(), "bundle.pem"), f.bundle)
	})
	ours := ask("ours", func(t *testing.T, ca disk) (string, string, string) {
		env := server(t, dev.Options{ServerOnly: true, EKCA: node.root, Server: fmt.Sprintf("x509pop {\n  ca_bundle_path = %q\n}\nupstream_authority \"disk\" {\n  cert_file_path = %q\n  key_file_path = %q\n}", node.root, ca.cert, ca.key)})
		return env.ServerSocket, env.ServerAddress, filepath.Join(env.Dir, "bundle.pem")
	})
	compare(t, theirs, ours, differs)
	documented(t, "spire-server", ours.complete("run", "validate"))
}

// TestEveryAgentCommand: the CLI of SPIRE's agent says the same at our agent as at SPIRE's.
func TestEveryAgentCommand(t *testing.T) {
	path := program(t, "SPIRE_AGENT")
	env := server(t, dev.Options{Server: `allow_without_evidence = ["join_token"]`})
	token := joinToken(t, env.ServerSocket)
	address := spireAgent(t, env, `  NodeAttestor "join_token" { plugin_data {} }`, "-joinToken", token)
	ask := func(address string) *cli {
		c := &cli{t: t, path: path, socket: strings.TrimPrefix(address, "unix://")}
		within(t, time.Minute, "an agent is there", func() bool { _, err := os.Stat(c.socket); return err == nil })
		c.do("api", "fetch", "x509") // nothing is for us yet
		return c
	}
	theirs, ours := ask(address), ask(env.WorkloadSocket)
	register(t, env.ServerSocket, "/spire/agent/join_token/"+token, "/w", "unix:uid:0")
	register(t, env.ServerSocket, strings.TrimPrefix(env.NodeID, "spiffe://"+trustDomain), "/w", "unix:uid:0")
	for _, c := range []*cli{theirs, ours} {
		fetch(t, "unix://"+c.socket)
		c.read("api", "fetch")
		c.read("api", "fetch", "x509")
		c.do("api", "fetch", "x509", "-silent")
		c.do("api", "fetch", "x509", "-write", t.TempDir())
		c.do("api", "fetch", "jwt", "-audience", "a", "-spiffeID", "spiffe://"+trustDomain+"/none")
		c.do("api", "fetch", "jwt")
		token := c.found(`(eyJ[\w-]+\.[\w-]+\.[\w-]+)`, c.read("api", "fetch", "jwt", "-audience", "a", "-audience", "b"))
		c.read("api", "validate", "jwt", "-audience", "a", "-svid", token)
		c.do("api", "validate", "jwt", "-audience", "other", "-svid", token)
		c.do("api", "validate", "jwt", "-audience", "a", "-svid", "nonsense")
		c.patience = 3 * time.Second
		c.do("api", "watch")
		c.patience = 0
		c.do("healthcheck")
		c.do("healthcheck", "-verbose")
		c.do("healthcheck", "-shallow")
	}
	compare(t, theirs, ours, nil)
	documented(t, "spire-agent", ours.complete("run", "validate", "debug getinfo", "logger get", "logger reset", "logger set"))
}

// documented checks that docs/interop.md names these commands, and no others, in the program's line.
func documented(t *testing.T, program string, commands []string) {
	t.Helper()
	text, err := os.ReadFile("../../docs/interop.md")
	fatal(t, err)
	slices.Sort(commands)
	if line := "| `" + program + "` | `" + strings.Join(commands, "`, `") + "` |"; !strings.Contains(string(text), line) {
		t.Errorf("docs/interop.md lacks this line:\n%s", line)
	}
}

// compare reports where two conversations differ, but for what is allowed to.
func compare(t *testing.T, theirs, ours *cli, differs map[string]string) {
	t.Helper()
	if len(theirs.conversations) != len(ours.conversations) {
		t.Fatalf("%d calls there, %d here", len(theirs.conversations), len(ours.conversations))
	}
	same, used, allowed := 0, map[string]bool{}, slices.Collect(maps.Keys(differs))
	for i, want := range theirs.conversations {
		got := ours.conversations[i]
		a, b := unvarying(want.output), unvarying(got.output)
		if got.code == want.code && a == b {
			same++
			continue
		}
		// What failed at both failed for the same reason, in other words.
		if got.code == want.code && got.code != 0 && reason(a) == reason(b) {
			continue
		}
		if i := slices.IndexFunc(allowed, func(begin string) bool { return strings.HasPrefix(want.args, begin) }); i >= 0 {
			used[allowed[i]] = true
			continue
		}
		t.Errorf("%s %s\ntheirs: exit %d\n%s\nours: exit %d\n%s", filepath.Base(ours.path), unvarying(got.args), want.code, a, got.code, b)
	}
	for _, begin := range allowed {
		if !used[begin] {
			t.Errorf("%s… does not differ: strike it off the list", begin)
		}
	}
	t.Logf("%d calls, %d with the same words", len(ours.conversations), same)
}

// reason is the code of an error.
func reason(text string) string {
	return strings.Join(regexp.MustCompile(`code( =|:) \w+`).FindAllString(text, -1), " ")
}

// drive calls every command of spire-server's at a site, in an order in which each has something to do.
func drive(t *testing.T, s site, far endpoint, node files) {
	c := s.cli
	td := "spiffe://" + trustDomain
	dir := t.TempDir()

	c.do("healthcheck")
	c.do("healthcheck", "-verbose")
	c.do("healthcheck", "-shallow")
	c.do("debug", "getinfo", "-output", "json")
	for _, level := range []string{"warn", "nonsense"} {
		c.do("logger", "set", "-level", level)
	}
	c.read("logger", "get")
	c.do("logger", "reset")

	// Bundles and federation.
	c.read("bundle", "show")
	c.do("bundle", "show", "-format", "spiffe")
	c.do("bundle", "set", "-id", far.id, "-path", far.bundle, "-format", "spiffe")
	c.do("bundle", "set", "-id", "spiffe://second.test", "-path", far.any, "-format", "pem")
	c.do("bundle", "set", "-id", "spiffe://wrong.test", "-path", far.pem, "-format", "pem")
	c.do("bundle", "delete", "-id", "spiffe://wrong.test")
	c.do("bundle", "set", "-id", "not an id", "-path", far.pem)
	c.read("bundle", "count")
	c.read("bundle", "list")
	c.do("bundle", "list", "-id", far.id, "-format", "spiffe")
	c.do("bundle", "list", "-id", "spiffe://none.test")
	c.do("federation", "create", "-trustDomain", "far.test", "-bundleEndpointURL", far.url, "-bundleEndpointProfile", "https_spiffe", "-endpointSpiffeID", far.id+"/spire/server",
		"-trustDomainBundlePath", far.bundle, "-trustDomainBundleFormat", "spiffe")
	c.do("federation", "create", "-trustDomain", "twice.test", "-bundleEndpointURL", far.url, "-bundleEndpointProfile", "https_web")
	c.do("federation", "create", "-trustDomain", "twice.test", "-bundleEndpointURL", far.url, "-bundleEndpointProfile", "https_web")
	c.do("federation", "create", "-data", write(t, filepath.Join(dir, "federation.json"), `{"federationRelationships": [
  {"trustDomain": "web.test", "bundleEndpointURL": "https://web.test/bundle", "bundleEndpointProfile": "https_web"}]}`))
	c.read("federation", "list")
	c.read("federation", "show", "-trustDomain", "far.test")
	c.do("federation", "show", "-trustDomain", "none.test")
	c.do("federation", "refresh", "-id", "far.test")
	c.do("federation", "refresh", "-id", "none.test")
	c.do("federation", "update", "-trustDomain", "web.test", "-bundleEndpointURL", "https://web.test/2", "-bundleEndpointProfile", "https_web")
	c.do("federation", "update", "-trustDomain", "none.test", "-bundleEndpointURL", "https://web.test/2", "-bundleEndpointProfile", "https_web")
	c.do("federation", "delete", "-id", "web.test")
	c.do("federation", "delete", "-id", "web.test")

	// Entries.
	c.do("entry", "create", "-entryID", "node", "-node", "-spiffeID", td+"/nodes", "-selector", "x509pop:subject:cn:node")
	c.do("entry", "create", "-entryID", "full", "-parentID", td+"/nodes", "-spiffeID", td+"/full", "-selector", "unix:uid:1000", "-selector", "unix:gid:1000", "-x509SVIDTTL", "600",
		"-jwtSVIDTTL", "300", "-dns", "a.example", "-dns", "b.example", "-hint", "h", "-federatesWith", far.id, "-entryExpiry", "4000000000", "-jwtSVIDIncludeJTI", "-disableX509SVIDPrefetch")
	c.do("entry", "create", "-entryID", "down", "-parentID", td+"/nodes", "-spiffeID", td+"/down", "-selector", "unix:uid:1", "-downstream", "-admin")
	c.do("entry", "create", "-entryID", "again", "-parentID", td+"/nodes", "-spiffeID", td+"/full", "-selector", "unix:gid:1000", "-selector", "unix:uid:1000")
	c.do("entry", "create", "-parentID", td+"/nodes", "-spiffeID", "spiffe://elsewhere.test/w", "-selector", "unix:uid:2")
	c.do("entry", "create", "-parentID", td+"/nodes", "-spiffeID", td+"/w", "-selector", "nonsense")
	c.do("entry", "create", "-parentID", td+"/nodes", "-spiffeID", td+"/w", "-selector", "unix:uid:2", "-federatesWith", "spiffe://none.test")
	data := func(name, hint string) string {
		return write(t, filepath.Join(dir, name), fmt.Sprintf(`{"entries": [{"entry_id": "data", "spiffe_id": %q, "parent_id": %q, "selectors": [{"type": "unix", "value": "uid:3"}], "hint": %q}]}`, td+"/data", td+"/nodes", hint))
	}
	c.do("entry", "create", "-data", data("create.json", ""))
	for _, filter := range [][]string{nil, {"-spiffeID", td + "/full"}, {"-parentID", td + "/nodes"}, {"-selector", "unix:uid:1000"}, {"-selector", "unix:uid:1000", "-selector", "unix:gid:1000", "-matchSelectorsOn", "exact"},
		{"-selector", "unix:uid:1000", "-selector", "unix:uid:1", "-matchSelectorsOn", "any"}, {"-federatesWith", far.id}, {"-hint", "h"}, {"-downstream"}, {"-spiffeID", td + "/none"}} {
		c.read(append([]string{"entry", "show"}, filter...)...)
		c.read(append([]string{"entry", "count"}, filter...)...)
	}
	c.read("entry", "show", "-entryID", "full")
	c.do("entry", "show", "-entryID", "none")
	c.do("entry", "update", "-entryID", "full", "-parentID", td+"/nodes", "-spiffeID", td+"/full", "-selector", "unix:uid:1001", "-hint", "other")
	c.do("entry", "update", "-data", data("update.json", "from a file"))
	c.do("entry", "update", "-entryID", "none", "-parentID", td+"/nodes", "-spiffeID", td+"/none", "-selector", "unix:uid:1001")
	c.read("entry", "show")
	c.do("entry", "delete", "-entryID", "full")
	c.do("entry", "delete", "-entryID", "full")
	c.do("entry", "delete", "-file", write(t, filepath.Join(dir, "ids"), "down\ndata\n"))
	c.read("entry", "count")

	agents(t, s, node)

	// SVIDs by hand.
	c.do("x509", "mint", "-spiffeID", td+"/minted", "-dns", "m.example", "-ttl", "5m")
	c.do("x509", "mint", "-spiffeID", td+"/minted", "-write", t.TempDir())
	c.do("x509", "mint", "-spiffeID", "spiffe://elsewhere.test/minted")
	c.do("jwt", "mint", "-spiffeID", td+"/minted", "-audience", "a", "-audience", "b", "-ttl", "1m")
	c.do("jwt", "mint", "-spiffeID", td+"/minted", "-audience", "a", "-write", filepath.Join(dir, "token"))
	c.do("jwt", "mint", "-spiffeID", td+"/minted")

	c.do("bundle", "delete", "-id", far.id)
	c.do("bundle", "delete", "-id", far.id, "-mode", "dissociate")
	c.do("bundle", "delete", "-id", far.id)
	rotate(t, s)
}

// agents drives what is about agents, with three of SPIRE's.
func agents(t *testing.T, s site, node files) {
	c := s.cli
	var ids []string
	for range 2 {
		token := c.found(`Token: (\S+)`, c.do("token", "generate", "-ttl", "60"))
		ids = append(ids, "spiffe://"+trustDomain+"/spire/agent/join_token/"+token)
		s.attests(`  NodeAttestor "join_token" { plugin_data {} }`, "-joinToken", token)
		shown(t, c, ids[len(ids)-1])
	}
	c.do("token", "generate", "-spiffeID", "spiffe://"+trustDomain+"/alias", "-output", "json")
	s.attests(fmt.Sprintf("  NodeAttestor \"x509pop\" { plugin_data {\n    private_key_path = %q\n    certificate_path = %q\n  } }", node.key, node.certificate))
	pop := "spiffe://" + trustDomain + node.id
	shown(t, c, pop)

	c.do("agent", "list", "-attestationType", "x509pop")
	c.do("agent", "list", "-attestationType", "x509pop", "-output", "json")
	for _, filter := range [][]string{nil, {"-attestationType", "join_token"}, {"-banned", "true"}, {"-canReattest", "true"}, {"-canReattest", "false"}, {"-selector", "x509pop:subject:cn:node"},
		{"-selector", "x509pop:subject:cn:none"}, {"-expiresBefore", "2020-01-01 00:00:00 +0000 UTC"}, {"-expiresBefore", "2090-01-01 00:00:00 +0000 UTC"}, {"-expiresBefore", "nonsense"}} {
		c.read(append([]string{"agent", "count"}, filter...)...)
	}
	c.do("agent", "show", "-spiffeID", "spiffe://"+trustDomain+"/spire/agent/join_token/none")
	c.do("agent", "ban", "-spiffeID", ids[0])
	c.read("agent", "show", "-spiffeID", ids[0])
	c.do("agent", "count", "-banned", "true")
	c.do("agent", "evict", "-spiffeID", ids[1])
	c.do("agent", "evict", "-spiffeID", ids[1])
	c.do("agent", "show", "-spiffeID", ids[1])
	c.do("agent", "purge", "-expiredFor", "1h")
	c.do("agent", "purge", "-expiredFor", "-100h", "-dryRun")
	c.do("agent", "purge", "-expiredFor", "-100h", "-output", "json")
}

// shown waits for an agent until it has said what it is, and has the CLI show it.
func shown(t *testing.T, c *cli, id string) {
	t.Helper()
	within(t, time.Minute, id+" attests", func() bool {
		out, _ := exec.CommandContext(t.Context(), c.path, "agent", "show", "-socketPath", c.socket, "-spiffeID", id).Output()
		return strings.Contains(string(out), "Agent version")
	})
	c.read("agent", "show", "-spiffeID", id)
}

// rotate drives the lives of authorities, ours and upstream.
func rotate(t *testing.T, s site) {
	c := s.cli
	type states struct {
		Active, PreparedAuthority struct {
			AuthorityID string `json:"authority_id"`
			Upstream    string `json:"upstream_authority_subject_key_id"`
		}
	}
	of := func(out string) (st states) {
		fatal(t, json.Unmarshal([]byte(strings.ReplaceAll(out, "prepared_authority", "PreparedAuthority")), &st))
		return st
	}
	for _, kind := range []string{"jwt", "x509"} {
		old := of(c.read("localauthority", kind, "show")).Active
		if kind == "x509" {
			if before := s.root(); before != old.Upstream {
				t.Errorf("the authority is below %s, want %s", old.Upstream, before)
			}
		}
		next := of(c.do("localauthority", kind, "prepare", "-output", "json")).PreparedAuthority.AuthorityID
		c.do("localauthority", kind, "show")
		c.do("localauthority", kind, "activate", "-authorityID", "none")
		c.do("localauthority", kind, "revoke", "-authorityID", old.AuthorityID)
		c.do("localauthority", kind, "activate", "-authorityID", next)
		c.do("localauthority", kind, "show")
		if kind == "jwt" {
			c.do("localauthority", kind, "taint", "-authorityID", old.AuthorityID)
			c.do("localauthority", kind, "taint", "-authorityID", old.AuthorityID)
			c.do("localauthority", kind, "revoke", "-authorityID", old.AuthorityID)
			continue
		}
		// What an upstream authority signed is tainted and revoked with it.
		c.do("localauthority", kind, "taint", "-authorityID", old.AuthorityID)
		c.do("upstreamauthority", "revoke", "-subjectKeyID", old.Upstream)
		c.do("upstreamauthority", "taint", "-subjectKeyID", strings.Repeat("0", 40))
		c.do("upstreamauthority", "taint", "-subjectKeyID", old.Upstream)
		c.do("bundle", "show", "-output", "json")
		c.do("upstreamauthority", "revoke", "-subjectKeyID", old.Upstream)
	}
	c.do("bundle", "show", "-output", "json")
	if _, err := os.Stat(c.socket); err != nil {
		t.Error(err)
	}
}
