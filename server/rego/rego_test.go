// SPDX-License-Identifier: Apache-2.0

package rego

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/assay-id/assay/selectors"
)

// noon is a Sunday's.
var noon = time.Date(2026, 11, 22, 12, 0, 0, 0, time.UTC)

func config(path, data string) Config {
	return Config{Path: path, DataPath: data, Timeout: 30 * time.Second, Now: func() time.Time { return noon }, Logger: slog.New(slog.DiscardHandler)}
}

func write(t testing.TB, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func issuance(t testing.TB, text string) *Issuance {
	t.Helper()
	i, err := OpenIssuance(config(write(t, t.TempDir(), "p.rego", "package assay.issue\n"+text), ""))
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func request(id string) *Request {
	return &Request{
		Entry: &selectors.Entry{ID: "e", SPIFFEID: spiffeid.RequireFromString("spiffe://example.org" + id), ParentID: spiffeid.RequireFromString("spiffe://example.org/spire/agent/x")},
		Facts: &selectors.Facts{
			Process: selectors.ProcessKey{BootID: "b", TGID: 7, ExecID: 1 << 60}, Tier: selectors.TierT2, Executable: selectors.Executable{Path: "/opt/pay", SHA256: selectors.Digest{1}},
			Ancestors: []selectors.Ancestor{{Executable: selectors.Executable{Path: "/usr/lib/systemd/systemd"}}},
		},
		Node: Node{ID: spiffeid.RequireFromString("spiffe://example.org/spire/agent/x"), State: "admitted", AttestationType: "tpm", QuotedAt: noon.Add(-20 * time.Second)},
		Kind: X509, TTL: time.Hour,
	}
}

func wantDenied(t *testing.T, what string, err error, reason string) {
	t.Helper()
	d, ok := errors.AsType[*Denied](err)
	if !ok || !strings.Contains(d.Reason, reason) || len(d.Digest) != 64 {
		t.Errorf("%s: %v, want a denial with %q", what, err, reason)
	}
}

// TestIssuance: the worked example of docs/policy.md.
func TestIssuance(t *testing.T) {
	i, err := OpenIssuance(config("testdata/issue", ""))
	if err != nil {
		t.Fatal(err)
	}
	decide := func(r *Request) (Decision, error) { return i.Decide(t.Context(), r) }
	for id, want := range map[string]Decision{
		"/prod/pay": {5 * time.Minute, true, i.Digest()}, "/dev/pay": {time.Hour, true, i.Digest()},
	} {
		if d, err := decide(request(id)); err != nil || d != want {
			t.Errorf("%s: %v, %v; want %v", id, d, err, want)
		}
	}
	short := request("/prod/pay")
	short.TTL = time.Minute
	if d, err := decide(short); err != nil || d.TTL != time.Minute {
		t.Errorf("a policy that asks for more: %v, %v", d, err)
	}
	for what, c := range map[string]struct {
		change func(*Request)
		reason string
	}{
		"an old quote":    {func(r *Request) { r.Node.QuotedAt = noon.Add(-2 * time.Hour) }, ""},
		"no quote at all": {func(r *Request) { r.Node.QuotedAt = time.Time{} }, ""},
		"a weaker tier":   {func(r *Request) { r.Facts.Tier = selectors.TierT3 }, "the evidence is of tier t3, and t2 is demanded"},
		"no evidence":     {func(r *Request) { r.Facts = nil }, "the evidence is of tier none, and t2 is demanded"},
		"a shell":         {func(r *Request) { r.Facts.Executable.Path = "/bin/sh" }, "shells get no identity"},
		"by ssh": {func(r *Request) {
			r.Facts.Ancestors = append(r.Facts.Ancestors, selectors.Ancestor{Executable: selectors.Executable{Path: "/usr/sbin/sshd"}})
		}, "started by /usr/sbin/sshd"},
	} {
		r := request("/prod/pay")
		c.change(r)
		_, err := decide(r)
		wantDenied(t, what, err, c.reason)
	}
}

// TestInput: what a policy sees, and that the unknown is not there.
func TestInput(t *testing.T) {
	r := request("/w")
	r.Facts.Executable.SHA256, r.Node.QuotedAt, r.Kind, r.Audience = selectors.Digest{}, time.Time{}, JWT, []string{"db"}
	in := r.input(noon)
	text, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"exec_id":1152921504606846976`, `"tier":"t2"`, `"evidence:tier:t2"`, `"lineage":[{"ima":false,"observed":false,"path":"/usr/lib/systemd/systemd"}]`,
		`"svid":{"audience":["db"],"kind":"jwt","ttl":3600}`, `"time":"2026-11-22T12:00:00Z"`, `"node":{"attestation_type":"tpm","id":"spiffe://example.org/spire/agent/x","selectors":[],"state":"admitted"}`,
	} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %s in %s", want, text)
		}
	}
	r.Facts = nil
	if _, there := r.input(noon)["facts"]; there {
		t.Error("facts without evidence")
	}
	i := issuance(t, `result := {"allow": input.facts.process.exec_id == 1152921504606846976, "per_process": false}`)
	if d, err := i.Decide(t.Context(), request("/w")); err != nil || d.PerProcess {
		t.Errorf("a large number, shared: %v, %v", d, err)
	}
}

// TestNoAnswer: whatever is no clear answer is an error that says what to mend, never a yes.
func TestNoAnswer(t *testing.T) {
	for text, want := range map[string]string{
		`result := {"allow": true, "tll": 5}`:                                                    "tll is no field that the server knows",
		`result := {"allow": "yes"}`:                                                             "allow is a string",
		`result := {"allow": true, "ttl": 0}`:                                                    "ttl is 0",
		`result := {"allow": true, "ttl": 1.5}`:                                                  "ttl is 1.5",
		`result := {"allow": true, "ttl": "5m"}`:                                                 `ttl is "5m"`,
		`result := {"allow": true, "minimum_tier": "t0"}`:                                        `minimum_tier is "t0"`,
		`result := {"allow": true, "deny": [1]}`:                                                 "deny holds a number",
		`result := {"allow": true, "per_process": null}`:                                         "per_process is null",
		`result := true`:                                                                         "is a boolean, not an object",
		`result := {"allow": true} if input.facts.executable.path == "/other"`:                   "is not defined for this input",
		`result := {"allow": true, "deny": {1 | to_number(input.entry.id) == 5}}`:                "to_number",
		`result := {"allow": input.node.quote_age / 0 == 1}`:                                     "divide by zero",
		"result := {\"allow\": true} if input.entry\nresult := {\"allow\": false} if input.node": "conflict",
	} {
		d, err := issuance(t, text).Decide(t.Context(), request("/w"))
		if err == nil || errors.As(err, new(*Denied)) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, %v; want %q", text, d, err, want)
		}
	}
	_, err := issuance(t, `result := {"allow": true, "deny": {""}}`).Decide(t.Context(), request("/w"))
	wantDenied(t, "a denial without words", err, "no reason given")
	_, err = issuance(t, `result := {}`).Decide(t.Context(), request("/w"))
	wantDenied(t, "an empty result", err, "")
}

// TestTimeout: a policy that computes without end is stopped.
func TestTimeout(t *testing.T) {
	conf := config(write(t, t.TempDir(), "p.rego", "package assay.issue\nresult := {\"allow\": count([1 | some a in numbers.range(1, 100000); some b in numbers.range(1, 100000); a + b == 0]) == 0}"), "")
	conf.Timeout = 50 * time.Millisecond
	i, err := OpenIssuance(conf)
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if _, err := i.Decide(t.Context(), request("/w")); !errors.Is(err, ErrTimeout) {
		t.Errorf("%v, want %v", err, ErrTimeout)
	}
	if took := time.Since(began); took > 10*time.Second {
		t.Errorf("stopped after %v", took)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := i.Decide(ctx, request("/w")); !errors.Is(err, context.Canceled) {
		t.Errorf("a caller that has gone: %v", err)
	}
}

// TestRefusedAtTheStart: what a policy can not be is said with file and line.
func TestRefusedAtTheStart(t *testing.T) {
	for text, want := range map[string]string{
		"package assay.issue\n\nresult := {":                                                             "p.rego:3:",
		"package assay.issue\nresult := {\"allow\": x}":                                                  "p.rego:2: rego_unsafe_var_error",
		"package assay.issue\nresult := {\"allow\": http.send({\"method\": \"get\"}).ok}":                "p.rego:2: undefined function http.send",
		"package assay.issue\nresult := {\"allow\": opa.runtime().env.HOME == \"\"}":                     "undefined function opa.runtime",
		"package assay.issue\nresult := {\"allow\": net.lookup_ip_addr(\"a\") == set()}":                 "undefined function net.lookup_ip_addr",
		"package assay.issue\nresult := {\"allow\": rand.intn(\"a\", 2) == 1}":                           "undefined function rand.intn",
		"package assay.issue\nresult := {\"allow\": json.match_schema({}, {\"$ref\": \"http://x\"})[0]}": "undefined function json.match_schema",
		"package assay.issue\nimport data.a\nresult := {\"allow\": true}":                                "p.rego:2:", // strict: not used
		"package assay.other\nresult := {}":                                                              "no rule assay.issue.result",
		"":                                                                                               "p.rego",
	} {
		_, err := OpenIssuance(config(write(t, t.TempDir(), "p.rego", text), ""))
		if err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "var x is unsafe", "rego_unsafe_var_error"), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
	dir := t.TempDir()
	if _, err := OpenIssuance(config(dir, "")); err == nil || !strings.Contains(err.Error(), "holds no policy") {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := OpenIssuance(config(filepath.Join(dir, "none"), "")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no folder: %v", err)
	}
	p := write(t, dir, "p.rego", "package assay.issue\nresult := {\"allow\": data.yes}")
	for text, want := range map[string]string{`[1]`: "JSON object", `{} {}`: "one JSON object", `null`: "one JSON object", `{`: "JSON object"} {
		if _, err := OpenIssuance(config(p, write(t, dir, "d.json", text))); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("data %s: %v, want %q", text, err, want)
		}
	}
	if i, err := OpenIssuance(config(p, write(t, dir, "d.json", `{"yes": true}`))); err != nil {
		t.Error(err)
	} else if _, err := i.Decide(t.Context(), request("/w")); err != nil {
		t.Errorf("data: %v", err)
	}
	write(t, dir, "big.rego", "package x\n#"+strings.Repeat(" ", maxFile))
	if _, err := OpenIssuance(config(dir, "")); err == nil || !strings.Contains(err.Error(), "is larger than") {
		t.Errorf("a large file: %v", err)
	}
	both := write(t, t.TempDir(), "a.rego", "package assay.authz\nallow := true")
	write(t, filepath.Dir(both), "b.rego", "package spire\nresult := {}")
	if _, err := OpenAuthorization(config(filepath.Dir(both), "")); err == nil || !strings.Contains(err.Error(), "has both rules") {
		t.Errorf("two questions: %v", err)
	}
}

// TestReload: a changed policy is taken when it compiles; else the one before goes on, and is told.
func TestReload(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "p.rego", "package assay.issue\nresult := {\"allow\": true}")
	var logs bytes.Buffer
	var loaded []error
	conf := config(dir, "")
	conf.Logger, conf.Loaded = slog.New(slog.NewTextHandler(&logs, nil)), func(err error) { loaded = append(loaded, err) }
	i, err := OpenIssuance(conf)
	if err != nil {
		t.Fatal(err)
	}
	first := i.Digest()
	step := func(what string, changes int, allowed bool) {
		t.Helper()
		i.look(t.Context())
		i.look(t.Context())
		_, err := i.Decide(t.Context(), request("/w"))
		if (err == nil) != allowed || len(loaded) != changes {
			t.Errorf("%s: %v, %d changes told; want %v, %d", what, err, len(loaded), allowed, changes)
		}
	}
	step("unchanged", 0, true)
	write(t, dir, "p_test.rego", "package x_test\ntest_x if true")
	step("another test", 0, true)
	write(t, dir, "p.rego", "package assay.issue\nresult := {\"allow\": fals}")
	step("broken", 1, true)
	if loaded[0] == nil || !strings.Contains(logs.String(), "p.rego:2") || !strings.Contains(logs.String(), "level=ERROR") || i.Digest() != first {
		t.Errorf("a broken policy: %v, %s", loaded, logs.String())
	}
	write(t, dir, "p.rego", "package assay.issue\nresult := {\"allow\": false}")
	step("another", 2, false)
	if loaded[1] != nil || i.Digest() == first {
		t.Errorf("another policy: %v", loaded)
	}
	if err := os.Remove(filepath.Join(dir, "p.rego")); err != nil {
		t.Fatal(err)
	}
	step("gone", 3, false)
	write(t, dir, "p.rego", "package assay.issue\nresult := {\"allow\": true}")
	step("back", 4, true)
	if i.Digest() != first {
		t.Error("the same files have another digest")
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { i.run(ctx, time.Millisecond); close(done) }()
	write(t, dir, "p.rego", "package assay.issue\nresult := {\"allow\": false}")
	for i.Digest() == first {
		time.Sleep(time.Millisecond)
	}
	cancel()
	<-done
}

// TestAuthorization: the worked example.
func TestAuthorization(t *testing.T) {
	at := noon
	conf := config("testdata/authz", "")
	conf.Now = func() time.Time { return at }
	a, err := OpenAuthorization(conf)
	if err != nil {
		t.Fatal(err)
	}
	entries := func(path string) map[string]any {
		return map[string]any{"entries": []any{map[string]any{"spiffe_id": map[string]any{"path": path}}}}
	}
	write := &Call{Kind: "admin", SPIFFEID: "spiffe://example.org/ops", Admin: true, Method: "/spire.api.server.entry.v1.Entry/BatchCreateEntry", Verb: "entry.write", Request: entries("/prod/x")}
	if err := a.Allow(t.Context(), write); err != nil {
		t.Errorf("at noon: %v", err)
	}
	at = noon.Add(8 * time.Hour)
	wantDenied(t, "in the evening", a.Allow(t.Context(), write), "from 08:00 to 18:00")
	write.Request = entries("/dev/x")
	if err := a.Allow(t.Context(), write); err != nil {
		t.Errorf("not production: %v", err)
	}
	ban := &Call{Kind: "admin", SPIFFEID: "spiffe://example.org/ops", Verb: "node.write"}
	wantDenied(t, "nodes", a.Allow(t.Context(), ban), "only the platform team")
	ban.SPIFFEID = "spiffe://example.org/platform/ann"
	if err := a.Allow(t.Context(), ban); err != nil {
		t.Errorf("the platform team: %v", err)
	}
	for text, want := range map[string]string{
		`allow := "true"`: "allow is a string", "allow := true\nreason := 5": "reason is a number",
		"allow := true if input.method\nallow := false if input.caller": "conflict",
	} {
		a, err := OpenAuthorization(config(writeFile(t, "package assay.authz\n"+text), ""))
		if err != nil {
			t.Fatal(err)
		}
		if err := a.Allow(t.Context(), ban); err == nil || errors.As(err, new(*Denied)) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	undefined, err := OpenAuthorization(config(writeFile(t, "package assay.authz\nallow if input.caller.spiffe_id == \"x\""), ""))
	if err != nil {
		t.Fatal(err)
	}
	wantDenied(t, "what is not allowed", undefined.Allow(t.Context(), ban), "")
}

func writeFile(t testing.TB, text string) string { return write(t, t.TempDir(), "p.rego", text) }

// TestSPIRE: a policy of SPIRE's, with its data, as its documentation has them.
func TestSPIRE(t *testing.T) {
	a, err := OpenAuthorization(config("testdata/spire", "testdata/spire/data.json"))
	if err != nil {
		t.Fatal(err)
	}
	const list, create, nested = "/spire.api.server.entry.v1.Entry/ListEntries", "/spire.api.server.entry.v1.Entry/BatchCreateEntry", "/spire.api.server.svid.v1.SVID/NewDownstreamX509CA"
	request := func(path string) map[string]any {
		return map[string]any{"entries": []any{map[string]any{"spiffe_id": map[string]any{"path": path}}}}
	}
	for what, c := range map[string]struct {
		call    Call
		allowed bool
	}{
		"an admin lists":             {Call{Admin: true, Method: list}, true},
		"a socket lists":             {Call{Local: true, Method: list}, true},
		"a workload lists":           {Call{SPIFFEID: "spiffe://example.org/w", Method: list}, false},
		"a nested server":            {Call{Downstream: true, Method: nested}, true},
		"an admin as nested server":  {Call{Admin: true, Method: nested}, false},
		"a scheduler creates":        {Call{SPIFFEID: "spiffe://example.org/schedulers/finance", Method: create, Request: request("/ns1/a")}, true},
		"a scheduler elsewhere":      {Call{SPIFFEID: "spiffe://example.org/schedulers/finance", Method: create, Request: request("/ns2/a")}, false},
		"another creates":            {Call{SPIFFEID: "spiffe://example.org/w", Method: create, Request: request("/ns1/a")}, false},
		"a method not in the tables": {Call{Admin: true, Local: true, Method: "/x/Y"}, false},
	} {
		err := a.Allow(t.Context(), &c.call)
		if c.allowed && err != nil {
			t.Errorf("%s: %v", what, err)
		} else if !c.allowed {
			wantDenied(t, what, err, "")
		}
	}
	bad, err := OpenAuthorization(config(writeFile(t, `package spire
result := {"allow": true, "allow_if_anyone": true}`), ""))
	if err != nil {
		t.Fatal(err)
	}
	if err := bad.Allow(t.Context(), &Call{}); err == nil || !strings.Contains(err.Error(), "allow_if_anyone") {
		t.Errorf("an unknown field: %v", err)
	}
}

// TestTests: policies' own tests run, count, and see what the server would give.
func TestTests(t *testing.T) {
	var out bytes.Buffer
	if err := Test(t.Context(), "testdata/issue", "", true, &out); err != nil || !strings.Contains(out.String(), "PASS: 4/4") {
		t.Errorf("%v\n%s", err, out.String())
	}
	for text, want := range map[string]string{
		"package x_test\ntest_a if false":                 "tests failed",
		"package x_test\ntest_a if to_number(\"x\") == 1": "tests failed",
		"package x_test\n":                                "there are none",
		"package x_test\ntest_a if http.send({\"a\": 1})": "undefined function http.send",
		"package x_test\ntest_a if some_other_thing":      "p_test.rego:2",
	} {
		dir := t.TempDir()
		write(t, dir, "p.rego", "package assay.issue\nresult := {}")
		write(t, dir, "p_test.rego", text)
		if err := Test(t.Context(), dir, "", false, &out); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	answers, digest, err := Check(t.Context(), "testdata/issue", "")
	if err != nil || strings.Join(answers, " ") != "issuance" || len(digest) != 64 {
		t.Errorf("Check = %v, %v, %v", answers, digest, err)
	}
	if _, _, err := Check(t.Context(), writeFile(t, "package x\na := 1"), ""); err == nil || !strings.Contains(err.Error(), "no rule assay.authz.allow") {
		t.Errorf("Check of something else: %v", err)
	}
}

// TestDocs: the policies of docs/policy.md are those that are tested here.
func TestDocs(t *testing.T) {
	doc, err := os.ReadFile("../../docs/policy.md")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, pattern := range []string{"testdata/*/*.rego", "testdata/*/*.json"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			n++
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(doc, text) {
				t.Errorf("docs/policy.md does not have %s as it is", path)
			}
		}
	}
	if n != 5 {
		t.Errorf("%d files", n)
	}
}
