// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	agentv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/agent/v1"
	entryv1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/entry/v1"
	"github.com/spiffe/spire-api-sdk/proto/spire/api/types"
	"google.golang.org/grpc/codes"

	"github.com/assay-id/assay/cmd/dev"
)

// node shows what the server verified of this machine.
func (s *story) node(ctx context.Context) error {
	s.say("The node proved itself to the server with its TPM")
	conn, err := dev.Dial(s.env.ServerSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	list, err := agentv1.NewAgentClient(conn).ListAgents(ctx, &agentv1.ListAgentsRequest{})
	if err != nil {
		return err
	}
	if len(list.Agents) != 1 {
		return fmt.Errorf("the server knows %d nodes, not one", len(list.Agents))
	}
	n := list.Agents[0]
	for line := range strings.Lines(s.logs.String()) {
		if _, check, ok := strings.Cut(line, "check="); ok {
			s.tell("verified: %s", strings.TrimSpace(check))
		}
	}
	s.tell("it is now spiffe://%s%s", n.Id.TrustDomain, n.Id.Path)
	s.tell("and proved %d selectors, among them:", len(n.Selectors))
	for i, sel := range n.Selectors {
		if i < 6 {
			s.tell("  %s:%s", sel.Type, sel.Value)
		}
	}
	status, err := s.env.AgentStatus(ctx)
	if err != nil {
		return err
	}
	s.tell("its kernel evidence is of tier %s", strings.TrimPrefix(status.Tier.String(), "TIER_"))
	return nil
}

// workloads registers payments and ledger by what they are and who started them, and lets them talk.
func (s *story) workloads(ctx context.Context) error {
	s.say("Two workloads are registered by the digest of their program and by who starts them")
	s.dir = filepath.Join(s.env.Dir, "workloads")
	if err := os.Mkdir(s.dir, 0o755); err != nil {
		return err
	}
	starter, err := digestOf("/proc/self/exe")
	if err != nil {
		return err
	}
	for _, name := range []string{"payments", "ledger"} {
		if err := copyFile(filepath.Join(s.dir, name), filepath.Join(s.bin, name), nil); err != nil {
			return err
		}
		sum, err := digestOf(filepath.Join(s.dir, name))
		if err != nil {
			return err
		}
		id, err := s.register(ctx, "/"+name, "unix:sha256:"+sum, "parent:sha256:"+starter)
		if err != nil {
			return err
		}
		if name == "payments" {
			s.payments = id
		}
		s.tell("spiffe://%s/%s is for unix:sha256:%.12s… started by parent:sha256:%.12s…", s.env.TrustDomain, name, sum, starter)
	}
	ledger := s.program(ctx, filepath.Join(s.dir, "ledger"), "127.0.0.1:0")
	out, err := ledger.StdoutPipe()
	if err != nil {
		return err
	}
	if err := ledger.Start(); err != nil {
		return err
	}
	defer func() {
		_ = ledger.Process.Signal(syscall.SIGTERM)
		_ = ledger.Wait()
	}()
	lines := bufio.NewScanner(out)
	address := ""
	for address == "" && lines.Scan() {
		s.tell("  | %s", lines.Text())
		_, address, _ = strings.Cut(lines.Text(), "listening on ")
	}
	call, err := s.program(ctx, filepath.Join(s.dir, "payments"), "call", address).CombinedOutput()
	s.quote(call)
	if err != nil {
		return fmt.Errorf("payments could not talk to ledger: %w", err)
	}
	lines.Scan()
	s.tell("  | %s", lines.Text())
	return nil
}

// change measures how long an update of an entry takes to reach an open stream.
func (s *story) change(ctx context.Context) error {
	s.say("The entry of payments gets a DNS name while a stream is open")
	watch := s.program(ctx, filepath.Join(s.dir, "payments"), "watch")
	out, err := watch.StdoutPipe()
	if err != nil {
		return err
	}
	if err := watch.Start(); err != nil {
		return err
	}
	defer func() {
		_ = watch.Process.Kill()
		_ = watch.Wait()
	}()
	lines := bufio.NewScanner(out)
	if !lines.Scan() {
		return errors.New("the stream did not open")
	}
	conn, err := dev.Dial(s.env.ServerSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	began := time.Now()
	resp, err := entryv1.NewEntryClient(conn).BatchUpdateEntry(ctx, &entryv1.BatchUpdateEntryRequest{
		Entries: []*types.Entry{{Id: s.payments, DnsNames: []string{"payments.example.org"}}}, InputMask: &types.EntryMask{DnsNames: true}})
	if err != nil {
		return err
	}
	if st := resp.Results[0].Status; st.Code != int32(codes.OK) {
		return errors.New(st.Message)
	}
	for lines.Scan() {
		var at int64
		if _, err := fmt.Sscanf(lines.Text(), "update %d", &at); err != nil || !strings.Contains(lines.Text(), "dns=[payments.example.org]") {
			continue
		}
		s.tell("%.1f ms after the command, the program had: %s", float64(at-began.UnixNano())/1e6, strings.SplitN(lines.Text(), " ", 3)[2])
		return nil
	}
	return errors.New("the change did not arrive")
}

func (s *story) register(ctx context.Context, path string, sels ...string) (id string, err error) {
	conn, err := dev.Dial(s.env.ServerSocket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	e := &types.Entry{SpiffeId: &types.SPIFFEID{TrustDomain: s.env.TrustDomain, Path: path},
		ParentId: &types.SPIFFEID{TrustDomain: s.env.TrustDomain, Path: strings.TrimPrefix(s.env.NodeID, "spiffe://"+s.env.TrustDomain)}}
	for _, sel := range sels {
		t, v, _ := strings.Cut(sel, ":")
		e.Selectors = append(e.Selectors, &types.Selector{Type: t, Value: v})
	}
	resp, err := entryv1.NewEntryClient(conn).BatchCreateEntry(ctx, &entryv1.BatchCreateEntryRequest{Entries: []*types.Entry{e}})
	if err != nil {
		return "", err
	}
	if st := resp.Results[0].Status; st.Code != int32(codes.OK) {
		return "", errors.New(st.Message)
	}
	return resp.Results[0].Entry.Id, nil
}

func digestOf(path string) (string, error) {
	data, err := os.ReadFile(path)
	return fmt.Sprintf("%x", sha256.Sum256(data)), err
}

// copyFile copies a program, changed by edit if there is one.
func copyFile(dst, src string, edit func([]byte) []byte) error {
	data, err := os.ReadFile(src)
	if err != nil {
		return err
	}
	if edit != nil {
		data = edit(data)
	}
	if err := os.WriteFile(dst+".new", data, 0o755); err != nil {
		return err
	}
	return os.Rename(dst+".new", dst)
}
