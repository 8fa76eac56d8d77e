// SPDX-License-Identifier: Apache-2.0

// Package clock sets the clock of a machine on which a whole Assay runs, forward and back. Only a guest's
// (tests/guest, suite "clock").
package clock

import (
	"context"
	"crypto/x509"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/assay-id/assay/cmd/dev"
)

// settles is how long after a jump everything must be right again.
const settles = 90 * time.Second

type machine struct {
	*dev.Env
	bin string
}

// TestJumps: SVIDs are made anew, of an authority that is valid now, by server and agent themselves; within 2 s nothing that is not
// valid is given any more.
func TestJumps(t *testing.T) {
	if os.Getenv("ASSAY_GUEST") != "1" {
		t.Skip("guest only: it sets the machine's clock")
	}
	m := machine{bin: os.Getenv("ASSAY_BIN")}
	var err error
	m.Env, err = dev.Start(t.Context(), dev.Options{Bin: m.bin, TPM: os.Getenv("ASSAY_TPM"), EKCA: os.Getenv("ASSAY_EK_CA"), Log: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	m.assay(t, "entry", "create", "--spiffe-id", "spiffe://example.org/w", "--parent", m.NodeID, "--selector", "unix:uid:0")
	m.settle(t, 0)
	for _, jump := range []time.Duration{2 * time.Hour, -2 * time.Hour, 48 * time.Hour, -48 * time.Hour} {
		set(t, jump)
		m.settle(t, jump)
	}
}

// set moves the machine's clock.
func set(t *testing.T, by time.Duration) {
	t.Helper()
	tv := syscall.NsecToTimeval(time.Now().Add(by).UnixNano())
	if err := syscall.Settimeofday(&tv); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) assay(t *testing.T, args ...string) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(m.bin, "assay"), append(args, "--server-socket", m.ServerSocket, "-o", "json")...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("assay %v: %v: %s", args, err, out)
	}
	return out
}

// settle waits until all is right and reports how long that took, and how long wrong things were given.
func (m *machine) settle(t *testing.T, jump time.Duration) {
	t.Helper()
	began := time.Now() // its difference to others is not the clock's
	var wrong time.Duration
	var why error
	for {
		given, err := m.right(t)
		if err == nil {
			break
		}
		if given {
			wrong = time.Since(began)
		}
		why = err
		if time.Since(began) > settles {
			t.Fatalf("%v after a jump of %v: %v (the last that was wrong was given after %v)", settles, jump, err, wrong)
		}
		time.Sleep(250 * time.Millisecond)
	}
	t.Logf("CLOCK jump %v: right after %v; wrong SVIDs until %v; before that: %v", jump, time.Since(began).Round(time.Millisecond), wrong.Round(time.Millisecond), why)
	if wrong > 2*time.Second {
		t.Errorf("after a jump of %v an SVID that is not valid was given %v later", jump, wrong)
	}
}

// right checks what a workload gets now; given is whether it got an SVID.
func (m *machine) right(t *testing.T) (given bool, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	svid, err := workloadapi.FetchX509SVID(ctx, workloadapi.WithAddr(m.WorkloadSocket))
	if err != nil {
		return false, err
	}
	bundle, err := x509bundle.Parse(spiffeid.RequireTrustDomainFromString(m.TrustDomain), m.pem(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := x509svid.Verify(svid.Certificates, bundle); err != nil {
		leaf := svid.Certificates[0]
		return true, fmt.Errorf("valid from %v to %v, it is %v: %w", leaf.NotBefore, leaf.NotAfter, time.Now().UTC(), err)
	}
	if valid := func(c *x509.Certificate) bool {
		return !time.Now().Before(c.NotBefore) && time.Now().Before(c.NotAfter)
	}; !slices.ContainsFunc(bundle.X509Authorities(), valid) {
		return true, fmt.Errorf("no authority in the bundle is valid now")
	}
	s, err := m.AgentStatus(ctx)
	if err != nil || !s.Connected {
		return false, fmt.Errorf("the agent is not connected: %v", err)
	}
	return true, nil
}

func (m *machine) pem(t *testing.T) []byte {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(m.bin, "assay"), "bundle", "show", "--server-socket", m.ServerSocket)
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	return out
}
