// SPDX-License-Identifier: Apache-2.0

package scenarios

import (
	"context"
	"crypto/x509"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestNodeProvedItself(t *testing.T) {
	var nodes []struct {
		ID              string `json:"spiffe_id"`
		AttestationType string `json:"attestation_type"`
		CanReattest     bool   `json:"can_reattest"`
		Standing        struct{ State, By string }
	}
	shared.must(t, &nodes, "node", "list")
	if len(nodes) != 1 || nodes[0].AttestationType != "tpm" || !nodes[0].CanReattest || nodes[0].Standing.State != "admitted" || nodes[0].Standing.By != "attestation" {
		t.Fatalf("got %+v", nodes)
	}
	shown := shared.must(t, nil, "node", "show", shared.NodeID)
	hash, ok := strings.CutPrefix(nodes[0].ID, "spiffe://example.org/spire/agent/tpm/")
	if !ok {
		t.Errorf("the node is %s", nodes[0].ID)
	}
	contains(t, "node show", shown, "admitted since", "by attestation", "checked", "tpm:ek:spki-sha256:"+hash, "tpm:key:tpm-resident", "tpm:pcr:sha256:0:")
}

// A program gets its identity by what it is and who started it, and its SVID verifies with
// the bundle that the operator sees.
func TestByDigestAndParent(t *testing.T) {
	shared.create(t, "/tool", "--binary", bin("assay"), "--started-by", self, "--dns", "tool.example.org", "--hint", "cli")
	dir := t.TempDir()
	var got []struct {
		SPIFFEID string   `json:"spiffe_id"`
		DNS      []string `json:"dns_names"`
		Hint     string
	}
	shared.must(t, &got, "fetch", "x509", "--write", dir)
	if len(got) != 1 || got[0].SPIFFEID != "spiffe://example.org/tool" || got[0].DNS[0] != "tool.example.org" || got[0].Hint != "cli" {
		t.Fatalf("got %+v", got)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(shared.must(t, nil, "bundle", "show"))) {
		t.Fatal("bundle show printed no certificates")
	}
	pemText, err := os.ReadFile(filepath.Join(dir, "svid.0.pem"))
	if err != nil {
		t.Fatal(err)
	}
	leaf := parsePEM(t, pemText)
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
		t.Error(err)
	}
}

// The same program started by another one is somebody else.
func TestOtherParentGetsNothing(t *testing.T) {
	shared.create(t, "/tool", "--binary", bin("assay"), "--started-by", self)
	cmd := exec.Command("/bin/sh", "-c", bin("assay")+" fetch x509; exit $?")
	cmd.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+shared.WorkloadSocket)
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "no identity issued") {
		t.Errorf("got %s, %v", out, err)
	}
	lacks := "lacks=parent:sha256:" + digestOf(t, self)
	eventually(t, "the agent's log to say what was missing", func() bool { return strings.Contains(shared.logs.String(), lacks) })

	// What the caller was told leads the operator to the rest.
	_, ref, _ := strings.Cut(string(out), "(reference ")
	ref, _, _ = strings.Cut(ref, ")")
	missing := "parent:sha256:" + digestOf(t, self)
	contains(t, "explain REFERENCE", shared.must(t, nil, "explain", ref), ref+" was denied", bin("assay"), missing)
	contains(t, "explain --last-denials", shared.must(t, nil, "explain", "--last-denials", "1"), ref)
	contains(t, "explain --spiffe-id", shared.must(t, nil, "explain", "--spiffe-id", "spiffe://example.org/tool"), "demands", missing, ref)
	if _, err := shared.assay(t, "explain", "NEVER123"); err == nil || !strings.Contains(err.Error(), "its log has them") {
		t.Errorf("an unknown reference: %v", err)
	}
}

func TestExplain(t *testing.T) {
	e := shared.create(t, "/other", "--selector", "unix:uid:0", "--selector", "unix:sha256:"+strings.Repeat("0", 64))
	w := shared.startWorkload(t, self) // after the sensor: it saw it start
	w.next(t, shared)
	got := shared.must(t, nil, "explain", "--pid", w.pid())
	contains(t, "explain", got, "unix:sha256:"+digestOf(t, self), "evidence:tier:t2", "evidence:observed", "matches no entry", "not entry "+e.ID, "unix:sha256:"+strings.Repeat("0", 64))
	if out, err := shared.assay(t, "explain", "--pid", "4194303"); err != nil || !strings.Contains(string(out), "gets no identity") {
		t.Errorf("a process that is not there: %s, %v", out, err)
	}
}

// watcher collects what a stream delivers.
type watcher struct {
	updates chan *workloadapi.X509Context
	errs    chan error
}

func (w watcher) OnX509ContextUpdate(x *workloadapi.X509Context) { w.updates <- x }
func (w watcher) OnX509ContextWatchError(err error) {
	select {
	case w.errs <- err:
	default:
	}
}

func (m *machine) watch(t *testing.T) watcher {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(m.WorkloadSocket))
	if err != nil {
		t.Fatal(err)
	}
	w := watcher{make(chan *workloadapi.X509Context, 100), make(chan error, 100)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = client.WatchX509Context(ctx, w) // ends with ctx
	}()
	t.Cleanup(func() { cancel(); <-done; client.Close() })
	return w
}

func (w watcher) next(t *testing.T) *workloadapi.X509Context {
	t.Helper()
	select {
	case x := <-w.updates:
		return x
	case <-time.After(time.Minute):
		t.Fatalf("no update came\n--- logs\n%s", shared.logs.String())
		return nil
	}
}

func me(t *testing.T) string { return "unix:sha256:" + digestOf(t, self) }

func TestOpenStreamFollowsTheEntries(t *testing.T) {
	e := shared.create(t, "/me", "--selector", me(t))
	w := shared.watch(t)
	first := w.next(t)
	if len(first.SVIDs) != 1 || first.SVIDs[0].ID.Path() != "/me" {
		t.Fatalf("got %v", first.SVIDs)
	}
	shared.must(t, nil, "entry", "update", e.ID, "--dns", "me.example.org")
	if x := w.next(t); len(x.SVIDs[0].Certificates[0].DNSNames) != 1 || x.SVIDs[0].Certificates[0].SerialNumber.Cmp(first.SVIDs[0].Certificates[0].SerialNumber) == 0 {
		t.Errorf("after an update: %v", x.SVIDs[0].Certificates[0].DNSNames)
	}
	second := shared.create(t, "/me-too", "--selector", "unix:uid:0")
	if x := w.next(t); len(x.SVIDs) != 2 {
		t.Errorf("after a second entry: %d SVIDs", len(x.SVIDs))
	}
	shared.must(t, nil, "entry", "delete", second.ID)
	if x := w.next(t); len(x.SVIDs) != 1 {
		t.Errorf("after its deletion: %d SVIDs", len(x.SVIDs))
	}
	shared.must(t, nil, "entry", "delete", e.ID)
	select {
	case err := <-w.errs:
		if status.Code(err) != codes.PermissionDenied {
			t.Errorf("the stream ended with %v", err)
		}
	case <-time.After(time.Minute):
		t.Error("the stream of a workload without entries stayed open")
	}
}

func TestBundleOnlyForThoseWithAnIdentity(t *testing.T) {
	if _, err := workloadapi.FetchX509Bundles(t.Context(), workloadapi.WithAddr(shared.WorkloadSocket)); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without an identity: %v", err)
	}
	shared.create(t, "/me", "--selector", me(t))
	set, err := workloadapi.FetchX509Bundles(t.Context(), workloadapi.WithAddr(shared.WorkloadSocket))
	if err != nil || set.Len() != 1 {
		t.Errorf("got %v, %v", set, err)
	}
}
