// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/assay-id/assay/cmd/dev"
)

const restarts = 5

// entries measures an agent with one entry and with n of them: its memory, and how long it takes from its start, attestation
// with a quote included, until it has them all.
func entries(n int) func(context.Context, *dev.Env) error {
	return func(ctx context.Context, env *dev.Env) error {
		few, fewRSS, err := starts(ctx, env, 0)
		if err != nil {
			return err
		}
		bytes, err := fill(ctx, env, n)
		if err != nil {
			return err
		}
		end := time.Now().Add(time.Minute)
		for {
			s, err := env.AgentStatus(ctx)
			if err == nil && int(s.Entries) >= n {
				break
			} else if time.Now().After(end) {
				return fmt.Errorf("the agent has %d of %d entries, %w", s.GetEntries(), n, err)
			}
			time.Sleep(50 * time.Millisecond)
		}
		grown, err := agentRSS(env)
		if err != nil {
			return err
		}
		many, manyRSS, err := starts(ctx, env, n)
		if err != nil {
			return err
		}
		fmt.Printf("an agent with %d entries of %d bytes each (as the feed sends them), %d starts\n", n, bytes/n, restarts)
		fmt.Printf("  start → attested, with all of them: p50 %s   max %s   (no entries: p50 %s   max %s)\n",
			many.at(0.5).Round(time.Millisecond), many.at(1).Round(time.Millisecond), few.at(0.5).Round(time.Millisecond), few.at(1).Round(time.Millisecond))
		fmt.Printf("  RSS after a start: %.1f MiB (no entries: %.1f MiB) = %d bytes an entry; after they came one by one: %.1f MiB\n",
			mib(manyRSS), mib(fewRSS), (manyRSS-fewRSS)/n, mib(grown))
		return nil
	}
}

func mib(bytes int) float64 { return float64(bytes) / (1 << 20) }

// starts restarts the agent a few times; it must then have the entries.
func starts(ctx context.Context, env *dev.Env, n int) (all sample, rss int, err error) {
	for range restarts {
		if err := env.StopAgent(); err != nil {
			return nil, 0, err
		}
		began := time.Now()
		if err := env.StartAgent(ctx); err != nil {
			return nil, 0, err
		}
		all = append(all, time.Since(began))
		if s, err := env.AgentStatus(ctx); err != nil || int(s.Entries) < n {
			return nil, 0, fmt.Errorf("the agent began with %d of %d entries, %w", s.GetEntries(), n, err)
		}
	}
	time.Sleep(time.Second)
	rss, err = agentRSS(env)
	return all, rss, err
}

// fill registers n entries for the node and returns their size.
func fill(ctx context.Context, env *dev.Env, n int) (size int, err error) {
	conn, err := dev.Dial(env.ServerSocket)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	parent := &types.SPIFFEID{TrustDomain: env.TrustDomain, Path: strings.TrimPrefix(env.NodeID, "spiffe://"+env.TrustDomain)}
	for at := 0; at < n; at += 500 {
		req := &entryv1.BatchCreateEntryRequest{}
		for i := at; i < min(at+500, n); i++ {
			req.Entries = append(req.Entries, &types.Entry{ParentId: parent, SpiffeId: &types.SPIFFEID{TrustDomain: env.TrustDomain, Path: fmt.Sprintf("/bench/service-%d", i)},
				Selectors: []*types.Selector{{Type: "unix", Value: fmt.Sprintf("sha256:%064x", i)}, {Type: "unix", Value: "uid:1000"}, {Type: "unix", Value: fmt.Sprintf("path:/usr/lib/service-%d", i)}}})
		}
		resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, req)
		if err != nil {
			return 0, err
		}
		for _, r := range resp.Results {
			if r.Status.Code != int32(codes.OK) {
				return 0, errors.New(r.Status.Message)
			}
			size += proto.Size(r.Entry)
		}
	}
	return size, nil
}

// agentRSS is the resident memory of the agent's process, in bytes.
func agentRSS(env *dev.Env) (int, error) {
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		return 0, err
	}
	for _, path := range found {
		args, err := os.ReadFile(path)
		if err != nil || !strings.HasSuffix(string(args), "run\x00--config\x00"+env.Dir+"/assay-agent.hcl\x00") {
			continue
		}
		text, err := os.ReadFile(filepath.Join(filepath.Dir(path), "status"))
		if err != nil {
			return 0, err
		}
		_, after, _ := strings.Cut(string(text), "VmRSS:")
		kb, _, _ := strings.Cut(strings.TrimSpace(after), " ")
		n, err := strconv.Atoi(kb)
		return n << 10, err
	}
	return 0, errors.New("no agent runs")
}
