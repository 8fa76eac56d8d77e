// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"bufio"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/assay-id/assay/cmd/dev"
)

var updateMetrics = flag.Bool("update-metrics", false, "write the tables of docs/metrics.md")

// observed is a machine whose programs are looked at.
type observed struct {
	*machine
	agentMetrics, agentHealth, serverMetrics, serverHealth string // host:port
}

func startObserved(t *testing.T) *observed {
	at := freeAddresses(t, 4)
	o := &observed{agentMetrics: at[0], agentHealth: at[1], serverMetrics: at[2], serverHealth: at[3]}
	blocks := "metrics {\n  listen = %q\n}\nhealth {\n  listen = %q\n  live_path = \"/alive\"\n}\nlog_format = \"json\"\n"
	o.machine = start(t, dev.Options{Agent: fmt.Sprintf(blocks, at[0], at[1]), Server: fmt.Sprintf(blocks, at[2], at[3])})
	return o
}

// freeAddresses returns n of the loopback that nobody listens on.
func freeAddresses(t *testing.T, n int) []string {
	at := make([]string, n)
	for i := range at {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		at[i] = l.Addr().String()
	}
	return at
}

// get returns the status and the body of a page.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// metric is one of a scrape.
type metric struct {
	help, kind string
	labels     []string
	samples    map[string]float64 // by what stands between the braces
}

// scrape reads the text format of Prometheus, of the metrics of ours.
func scrape(t *testing.T, address string) map[string]*metric {
	t.Helper()
	code, text := get(t, "http://"+address+"/metrics")
	if code != http.StatusOK {
		t.Fatalf("a scrape of %s: %d", address, code)
	}
	found := map[string]*metric{}
	sample := regexp.MustCompile(`^(\w+)(?:\{(.*)\})? (\S+)$`)
	label := regexp.MustCompile(`(\w+)="`)
	for lines := bufio.NewScanner(strings.NewReader(text)); lines.Scan(); {
		line := lines.Text()
		if words := strings.SplitN(line, " ", 4); len(words) == 4 && words[0] == "#" && strings.HasPrefix(words[2], "assay_") {
			if found[words[2]] == nil {
				found[words[2]] = &metric{samples: map[string]float64{}}
			}
			if m := found[words[2]]; words[1] == "HELP" {
				m.help = words[3]
			} else {
				m.kind = words[3]
			}
			continue
		}
		s := sample.FindStringSubmatch(line)
		if s == nil || !strings.HasPrefix(s[1], "assay_") {
			continue
		}
		m := found[base(s[1])]
		if m == nil {
			m = found[s[1]]
		}
		v, err := strconv.ParseFloat(s[3], 64)
		if m == nil || err != nil {
			t.Fatalf("%q is of no metric with a HELP, or no number", line)
		}
		if s[1] == base(s[1]) {
			m.samples[s[2]] = v
		}
		for _, l := range label.FindAllStringSubmatch(s[2], -1) {
			if l[1] != "le" && !slices.Contains(m.labels, l[1]) {
				m.labels = append(m.labels, l[1])
			}
		}
	}
	return found
}

// base is the name without what a histogram adds.
func base(name string) string {
	for _, suffix := range []string{"_bucket", "_sum", "_count"} {
		if b, ok := strings.CutSuffix(name, suffix); ok && strings.HasSuffix(b, "_seconds") {
			return b
		}
	}
	return name
}

// What operators and Prometheus see of two programs that work, and what the documents say of it.
func TestMetrics(t *testing.T) {
	nativeOnly(t, "documents of the source tree are held against a scrape")
	o := startObserved(t)
	c := o.client(t)
	if _, err := c.FetchX509SVID(t.Context()); status.Code(err) != codes.PermissionDenied {
		t.Fatalf("without an entry: %v", err)
	}
	o.create(t, "/observed", "--selector", me(t))
	if _, err := c.FetchX509SVID(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.FetchJWTSVID(t.Context(), jwtsvid.Params{Audience: "db"}); err != nil {
		t.Fatal(err)
	}

	agent, server := scrape(t, o.agentMetrics), scrape(t, o.serverMetrics)
	for _, want := range []struct {
		from           map[string]*metric
		metric, labels string
		least          float64
	}{
		{agent, "assay_agent_refusals_total", `reason="no_entry"`, 1},
		{agent, "assay_agent_svids_total", `kind="x509",outcome="issued"`, 1},
		{agent, "assay_agent_svids_total", `kind="jwt",outcome="issued"`, 1},
		{agent, "assay_agent_requests_total", `code="PermissionDenied",method="SpiffeWorkloadAPI/FetchX509SVID"`, 1},
		{agent, "assay_agent_requests_total", `code="OK",method="SpiffeWorkloadAPI/FetchJWTSVID"`, 1},
		{agent, "assay_agent_server_connected", "", 1},
		{agent, "assay_agent_server_state", `state="following"`, 1},
		{agent, "assay_agent_entries", "", 1},
		{agent, "assay_agent_feed_revision", "", 1},
		{agent, "assay_agent_node_svid_expiry_timestamp_seconds", "", 1.7e9},
		{agent, "assay_agent_svid_expiry_timestamp_seconds", "", 1.7e9},
		{agent, "assay_agent_sensor_hooks", `state="on"`, 1},
		{server, "assay_server_signatures_total", `kind="x509",outcome="ok"`, 1},
		{server, "assay_server_signatures_total", `kind="agent",outcome="ok"`, 1},
		{server, "assay_server_attestations_total", `outcome="ok",type="tpm"`, 1},
		{server, "assay_server_requotes_total", `outcome="ok"`, 1},
		{server, "assay_server_nodes", `state="admitted"`, 1},
		{server, "assay_server_entries", "", 1},
		{server, "assay_server_connected_agents", "", 1},
		{server, "assay_server_feeds", "", 1},
		{server, "assay_server_store_ready", "", 1},
		{server, "assay_server_store_quota_bytes", "", 1},
		{server, "assay_server_signature_mean_seconds", "", 1e-6},
		{server, "assay_server_authority_expiry_timestamp_seconds", `kind="jwt",state="active"`, 1.7e9},
	} {
		m := want.from[want.metric]
		if m == nil {
			t.Errorf("there is no %s", want.metric)
		} else if got, ok := m.samples[want.labels]; !ok || got < want.least {
			t.Errorf("%s{%s} is %v (%v), want at least %v; there are %v", want.metric, want.labels, got, ok, want.least, m.samples)
		}
	}
	checkDocuments(t, agent, server)
	checkHealth(t, o)
	checkProfiles(t, o)
	if !strings.Contains(o.logs.String(), `"level":"INFO","msg":"server is ready"`) {
		t.Error("log_format = \"json\" does not show in the log")
	}
}

const metricsPage = "../../docs/metrics.md"

// checkDocuments: the page has exactly the metrics that there are, and dashboard and alerts no others.
func checkDocuments(t *testing.T, agent, server map[string]*metric) {
	page, err := os.ReadFile(metricsPage)
	if err != nil {
		t.Fatal(err)
	}
	want := string(page)
	for name, found := range map[string]map[string]*metric{"agent": agent, "server": server} {
		begin, end := "<!-- "+name+" -->\n", "<!-- end of "+name+" -->"
		before, rest, ok := strings.Cut(want, begin)
		_, after, ok2 := strings.Cut(rest, end)
		if !ok || !ok2 {
			t.Fatalf("%s has no table between %s and %s", metricsPage, begin, end)
		}
		want = before + begin + table(found) + end + after
	}
	if *updateMetrics {
		if err := os.WriteFile(metricsPage, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(page) {
		t.Errorf("%s is not what a scrape shows; run: go test ./tests/scenarios -run TestMetrics -update-metrics\n%s", metricsPage, want)
	}
	named := regexp.MustCompile(`\bassay_(agent|server)_\w+`)
	for _, path := range []string{metricsPage, "../../deploy/grafana/assay.json", "../../deploy/prometheus/alerts.yml"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		names := named.FindAllString(string(text), -1)
		if len(names) < 10 {
			t.Errorf("%s names only %d metrics", path, len(names))
		}
		for _, n := range names {
			if agent[base(n)] == nil && server[base(n)] == nil {
				t.Errorf("%s names %s, which no scrape has", path, n)
			}
		}
		if strings.HasSuffix(path, ".json") && !json.Valid(text) {
			t.Errorf("%s is no JSON", path)
		}
	}
}

func table(found map[string]*metric) string {
	var b strings.Builder
	b.WriteString("| metric | kind | labels | what |\n|---|---|---|---|\n")
	var names []string
	for n := range found {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		m := found[n]
		slices.Sort(m.labels)
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", n, m.kind, strings.Join(m.labels, ", "), m.help)
	}
	return b.String()
}

// checkHealth: both are well; without its server the agent still is, and says what it lacks.
func checkHealth(t *testing.T, o *observed) {
	for _, url := range []string{o.agentHealth + "/alive", o.agentHealth + "/ready", o.serverHealth + "/alive", o.serverHealth + "/ready"} {
		if code, body := get(t, "http://"+url); code != http.StatusOK || strings.Contains(body, "fault") {
			t.Errorf("%s: %d %s", url, code, body)
		}
	}
	if code, _ := get(t, "http://"+o.agentHealth+"/live"); code != http.StatusNotFound {
		t.Errorf("live_path moved, and /live is answered with %d", code)
	}
	contains(t, "agent healthcheck", o.must(t, nil, "agent", "healthcheck"), "The agent is healthy.")
	contains(t, "agent healthcheck --live", o.must(t, nil, "agent", "healthcheck", "--live"), "The agent is healthy.")
	contains(t, "server healthcheck", o.must(t, nil, "server", "healthcheck"), "The server is healthy.")
	if err := o.StopServer(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the agent to say that the server is gone", func() bool {
		code, body := get(t, "http://"+o.agentHealth+"/ready")
		if code != http.StatusOK {
			t.Fatalf("an agent that serves from memory is %d %s", code, body)
		}
		return strings.Contains(body, `"server":{"fault":`)
	})
	if _, err := o.assay(t, "server", "healthcheck"); err == nil || !strings.Contains(err.Error(), "nobody answers on") {
		t.Errorf("the health of a server that is not there: %v", err)
	}
}

// checkProfiles: they are on the Unix socket only, which is root's.
func checkProfiles(t *testing.T, o *observed) {
	for _, address := range []string{o.agentMetrics, o.agentHealth} {
		if code, _ := get(t, "http://"+address+"/debug/pprof/heap"); code != http.StatusNotFound {
			t.Errorf("%s has profiles: %d", address, code)
		}
	}
	if st, err := os.Stat(strings.TrimSuffix(o.AgentSocket, ".sock") + "-http.sock"); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("the socket of profiles: %v, %v", st, err)
	}
	for _, kind := range [][]string{{"heap"}, {"cpu", "--seconds", "1"}} {
		if out := o.must(t, nil, append([]string{"agent", "profile"}, kind...)...); !strings.HasPrefix(out, "\x1f\x8b") {
			t.Errorf("profile %v is %d bytes and no gzip", kind, len(out))
		}
	}
	if _, err := o.assay(t, "agent", "profile", "all"); err == nil {
		t.Error("there is a profile \"all\"")
	}
}
