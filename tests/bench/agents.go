// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"

	"github.com/assay-id/assay/tests/soak/fleet"
)

// few is the crowd that is measured first.
const few = 100

// settling is how long a quiet server takes to give back what it does not need: the runtime collects
// at least every two minutes. BENCH_SETTLE makes it another time.
func settling() time.Duration {
	if d, err := time.ParseDuration(os.Getenv("BENCH_SETTLE")); err == nil {
		return d
	}
	return 130 * time.Second
}

// agents measures a server in a process of its own with n agents that are simulated in this one.
func agents(ctx context.Context, n int) (err error) {
	if n < few {
		return fmt.Errorf("%d agents are too few: write %d or more", n, few)
	}
	dir, err := os.MkdirTemp("/run", "assay-bench-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	server, err := fleet.NewServer(filepath.Dir(exe), dir, "")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if err := server.Start(ctx); err != nil {
		return err
	}
	all, err := crowdOf(ctx, server, n)
	if err != nil {
		return err
	}
	return broadcastLimit(ctx, dir, all)
}

// crowdOf measures our server, stops it, and returns the crowd for another.
func crowdOf(ctx context.Context, server *fleet.Server, n int) (*crowd, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &crowd{address: server.Address, admin: server.Admin, process: server.Process()}
	for _, step := range []func(context.Context, *crowd, int) error{attestAll, withFew, withAll} {
		if err := step(ctx, c, n); err != nil {
			return nil, err
		}
	}
	bundle, err := bundlev1.NewBundleClient(c.admin).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return nil, err
	}
	if err := storm(ctx, server, c, n); err != nil {
		return nil, err
	}
	cancel()
	return &crowd{all: c.all, bundle: bundle}, c.gone()
}

func attestAll(ctx context.Context, c *crowd, n int) error {
	began := time.Now()
	if err := c.gather(ctx, n); err != nil {
		return err
	}
	took := time.Since(began)
	fmt.Printf("%d agents attest by join tokens and get an entry each, %d at a time: %s, %.0f/s; load %s\n", n, atATime, took.Round(time.Millisecond), float64(n)/took.Seconds(), load())
	return nil
}

func withFew(ctx context.Context, c *crowd, _ int) error {
	if err := c.connect(ctx, c.all[:few]); err != nil {
		return err
	}
	if _, err := c.one(ctx, few, 50); err != nil { // both sides have run before
		return err
	}
	return tell(ctx, c, few, 20)
}

// tell measures changes; bundles is how often everybody is told.
func tell(ctx context.Context, c *crowd, n, bundles int) error {
	one, err := c.one(ctx, n, 300)
	if err != nil {
		return err
	}
	fmt.Printf("%d agents connected, from the operator's call on; load %s\n", n, load())
	one.print("the agent of a changed entry is told")
	return c.announce(ctx, bundles)
}

// announce measures changes of the bundle.
func (c *crowd) announce(ctx context.Context, bundles int) error {
	before, _ := c.process.CPU()
	all, err := c.everybody(ctx, bundles)
	if err != nil {
		return err
	}
	after, _ := c.process.CPU()
	all.print("each is told of a changed bundle")
	fmt.Printf("  server's CPU for each agent told of a bundle %s\n", ((after - before) / time.Duration(len(all))).Round(100*time.Nanosecond))
	return nil
}

func (s sample) print(what string) {
	fmt.Printf("  %-36s p50 %s   p99 %s   max %s\n", what, s.at(0.5).Round(100*time.Microsecond), s.at(0.99).Round(100*time.Microsecond), s.at(1).Round(100*time.Microsecond))
}

func withAll(ctx context.Context, c *crowd, n int) error {
	time.Sleep(settling())
	before, err := c.process.Memory("VmRSS")
	if err != nil {
		return err
	}
	cpu, _ := c.process.CPU()
	began := time.Now()
	if err := c.connect(ctx, c.all[few:]); err != nil {
		return err
	}
	after, _ := c.process.CPU()
	fmt.Printf("%d more feeds open: %s, server's CPU %s each\n", n-few, time.Since(began).Round(time.Millisecond), ((after - cpu) / time.Duration(n-few)).Round(time.Microsecond))
	if err := tell(ctx, c, n, 10); err != nil {
		return err
	}
	running, err := c.process.Memory("VmRSS")
	if err != nil {
		return err
	}
	time.Sleep(settling())
	settled, err := c.process.Memory("VmRSS")
	if err != nil {
		return err
	}
	each := func(rss int64) float64 { return float64(rss-before) / float64(n-few) / 1000 }
	fmt.Printf("server's RSS: %d MB with %d feeds; for each feed more %.1f kB running, %.1f kB settled\n", before/1e6, few, each(running), each(settled))
	return nil
}

// storm kills the server: everybody comes back at once, as agents do.
func storm(ctx context.Context, server *fleet.Server, c *crowd, n int) error {
	if err := server.Kill(); err != nil {
		return err
	}
	if err := c.gone(); err != nil {
		return err
	}
	began := time.Now()
	if err := server.Start(ctx); err != nil {
		return err
	}
	c.process = server.Process()
	ready := time.Since(began)
	c.failures.Store(0) // those were of a server that was not there
	if err := c.await(int64(n), 10*time.Minute); err != nil {
		return err
	}
	took := time.Since(began)
	why := ""
	if n := c.failures.Load(); n > 0 {
		why = fmt.Sprintf(" (%v)", *c.failed.Load())
	}
	peak, err := c.process.Memory("VmHWM")
	cpu, _ := c.process.CPU()
	fmt.Printf("server killed and started: answers after %s, all %d feeds open after %s; %d attempts failed meanwhile%s; its CPU %s, peak of RSS %d MB; load %s\n",
		ready.Round(time.Millisecond), n, took.Round(time.Millisecond), c.failures.Load(), why, cpu.Round(10*time.Millisecond), peak/1e6, load())
	return err
}

// gone waits until all feeds have noticed that the server is.
func (c *crowd) gone() error {
	for began := time.Now(); c.open.Load() > 0; time.Sleep(10 * time.Millisecond) {
		if time.Since(began) > time.Minute {
			return fmt.Errorf("%d feeds have outlived their server by a minute", c.open.Load())
		}
	}
	return nil
}

func load() string {
	text, _ := os.ReadFile("/proc/loadavg")
	return strings.Join(strings.Fields(string(text))[:1], "")
}

// newAuthority is a key that signs tokens.
func newAuthority() (*types.JWTKey, error) {
	key, err := fleet.NewKey()
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	return &types.JWTKey{PublicKey: der, KeyId: rand.Text(), ExpiresAt: time.Now().Add(time.Hour).Unix()}, err
}
