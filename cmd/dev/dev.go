// SPDX-License-Identifier: Apache-2.0

// Package dev runs a whole Assay on one machine under one folder: a software TPM (or the
// machine's own), a server with its store, and an agent. `assay dev`, the demo, the scenarios
// and the benchmarks stand on it. Close leaves nothing behind: no process, socket, mount or
// kernel program.
package dev

import (
	"bytes"
	"context"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	bundlev1 "github.com/spiffe/spire-api-sdk/proto/spire/api/server/bundle/v1"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	adminpb "github.com/assay-id/assay/proto/agentadmin"
	"github.com/assay-id/assay/tpm/swtpm"
)

// Options say what to start. The zero value is what `assay dev` uses.
type Options struct {
	// Dir holds everything; "" makes a new one under /run.
	Dir string
	// Bin holds assay-server and assay-agent; "" is the folder of the running program.
	Bin string
	// TrustDomain; "" is example.org.
	TrustDomain string
	// TPM is the device to use and EKCA the PEM file of its manufacturer's CA. With TPM empty
	// a software TPM is made.
	TPM, EKCA string
	// ServerOnly starts the server alone, for nodes elsewhere; EKCA vouches for their TPMs.
	ServerOnly bool
	// ElsewhereAddress and ElsewhereBundle (PEM) are of a server that runs already: the agent alone is
	// started, and no TPM made.
	ElsewhereAddress, ElsewhereBundle string
	// Server and Agent are more lines for the configuration files, ServerTPM for the server's block tpm.
	Server, ServerTPM, Agent string
	// Log takes the logs of both.
	Log io.Writer
}

// Env is what runs.
type Env struct {
	Dir, TrustDomain string
	// ServerSocket and AgentSocket are the admin sockets, WorkloadSocket is the Workload API's
	// address as SPIFFE_ENDPOINT_SOCKET wants it.
	ServerSocket, AgentSocket, WorkloadSocket string
	// ServerAddress is the server's TCP address.
	ServerAddress string
	// NodeID is the agent's SPIFFE ID.
	NodeID string

	opts   Options
	log    *syncWriter
	server *process
	agent  *process
	undo   []func() error // in reverse order
}

// Start starts everything and waits until the agent has its entries (the server, if ServerOnly). On an error nothing is
// left running, and the error ends with what was logged last.
func Start(ctx context.Context, o Options) (env *Env, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("this loads programs into the kernel: run it as root (sudo)")
	}
	e := &Env{opts: o, TrustDomain: or(o.TrustDomain, "example.org"), log: &syncWriter{w: o.Log}}
	defer func() {
		if err != nil {
			err = errors.Join(err, e.Close())
		}
	}()
	steps := []func(context.Context) error{e.makeDir, e.mountBPF, e.makeTPM, e.StartServer, e.StartAgent}
	switch {
	case o.ServerOnly:
		steps = []func(context.Context) error{e.makeDir, e.StartServer}
	case o.ElsewhereAddress != "":
		steps = []func(context.Context) error{e.makeDir, e.mountBPF, e.findServer, e.StartAgent}
	}
	for _, step := range steps {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// Close stops everything and removes what was made.
func (e *Env) Close() error {
	var errs []error
	for i := len(e.undo) - 1; i >= 0; i-- {
		errs = append(errs, e.undo[i]())
	}
	e.undo = nil
	return errors.Join(errs...)
}

func (e *Env) onClose(f func() error) { e.undo = append(e.undo, f) }

func (e *Env) path(name string) string { return filepath.Join(e.Dir, name) }

func (e *Env) makeDir(context.Context) error {
	if e.opts.Bin == "" {
		exe, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find the programs: %w", err)
		}
		e.opts.Bin = filepath.Dir(exe)
	}
	e.Dir = e.opts.Dir
	if e.Dir == "" {
		dir, err := os.MkdirTemp("/run", "assay-dev-")
		if err != nil {
			return fmt.Errorf("make a folder: %w", err)
		}
		e.Dir = dir
	} else if err := os.Mkdir(e.Dir, 0o755); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	e.onClose(func() error { return os.RemoveAll(e.Dir) })
	e.ServerSocket, e.AgentSocket, e.WorkloadSocket = e.path("server/admin.sock"), e.path("agent/admin.sock"), "unix://"+e.path("agent/api.sock")
	// Workloads of any user must reach the sockets below.
	return os.Chmod(e.Dir, 0o755)
}

func (e *Env) mountBPF(context.Context) error {
	at := e.path("bpf")
	if err := os.Mkdir(at, 0o700); err != nil {
		return fmt.Errorf("bpffs: %w", err)
	}
	if err := syscall.Mount("bpf", at, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount a bpffs at %s: %w", at, err)
	}
	e.onClose(func() error { return syscall.Unmount(at, syscall.MNT_DETACH) })
	return nil
}

func (e *Env) makeTPM(ctx context.Context) error {
	if e.opts.TPM != "" {
		return nil
	}
	dir := e.path("tpm")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("software TPM: %w", err)
	}
	ca, err := swtpm.Manufacture(ctx, e.path("tpm-ca"), dir)
	if err != nil {
		return err
	}
	e.opts.EKCA = e.path("ek-ca.pem")
	if err := os.WriteFile(e.opts.EKCA, ca, 0o644); err != nil {
		return fmt.Errorf("software TPM: %w", err)
	}
	chip, err := swtpm.Start(ctx, dir)
	if err != nil {
		return err
	}
	e.opts.TPM = chip.Path()
	e.onClose(chip.Stop)
	return nil
}

// findServer lets the agent know the server that runs elsewhere.
func (e *Env) findServer(context.Context) error {
	e.ServerAddress = e.opts.ElsewhereAddress
	return os.WriteFile(e.path("bundle.pem"), []byte(e.opts.ElsewhereBundle), 0o644)
}

// StartServer starts the server, or starts it again after StopServer.
func (e *Env) StartServer(ctx context.Context) error {
	if e.ServerAddress == "" {
		port, err := freePort()
		if err != nil {
			return err
		}
		e.ServerAddress = fmt.Sprintf("127.0.0.1:%d", port)
		e.onClose(func() error { return e.StopServer() })
	}
	var err error
	if e.server, err = e.start("assay-server", e.ServerConfig()); err != nil {
		return err
	}
	return e.server.wait(ctx, e.writeBundle)
}

// writeBundle succeeds once the server answers, and writes what the agent knows it by.
func (e *Env) writeBundle(ctx context.Context) error {
	conn, err := Dial(e.ServerSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	b, err := bundlev1.NewBundleClient(conn).GetBundle(ctx, &bundlev1.GetBundleRequest{})
	if err != nil {
		return err
	}
	var out bytes.Buffer
	for _, a := range b.X509Authorities {
		if err := pem.Encode(&out, &pem.Block{Type: "CERTIFICATE", Bytes: a.Asn1}); err != nil {
			return err
		}
	}
	return os.WriteFile(e.path("bundle.pem"), out.Bytes(), 0o644)
}

// StopServer stops the server and its store.
func (e *Env) StopServer() error { return e.server.stop() }

// StartAgent starts the agent, or starts it again after StopAgent.
func (e *Env) StartAgent(ctx context.Context) error {
	if e.agent == nil {
		e.onClose(func() error {
			err := e.StopAgent()
			unload := exec.Command(filepath.Join(e.opts.Bin, "assay-agent"), "unload", "--config", e.path("assay-agent.hcl"))
			if out, uerr := unload.CombinedOutput(); uerr != nil {
				err = errors.Join(err, fmt.Errorf("unload the sensor: %w: %s", uerr, out))
			}
			return err
		})
	}
	if err := e.StartAgentAlone(ctx); err != nil {
		return err
	}
	return e.agent.wait(ctx, func(ctx context.Context) error {
		s, err := e.AgentStatus(ctx)
		if err != nil {
			return err
		}
		if !s.Connected || s.SyncedAt == 0 {
			return errors.New("the agent is not connected yet")
		}
		e.NodeID = s.AgentId
		return nil
	})
}

// StartAgentAlone starts an agent that StartAgent started before, and does not wait for a server.
func (e *Env) StartAgentAlone(ctx context.Context) (err error) {
	if e.agent, err = e.start("assay-agent", e.AgentConfig()); err != nil {
		return err
	}
	return e.agent.wait(ctx, func(ctx context.Context) error {
		_, err := e.AgentStatus(ctx)
		return err
	})
}

// ServerConfig is the text of the server's configuration file.
func (e *Env) ServerConfig() string {
	_, port, _ := net.SplitHostPort(e.ServerAddress)
	return fmt.Sprintf("trust_domain = %q\nbind_address = \"127.0.0.1\"\nbind_port = %s\nsocket_path = %q\ndata_dir = %q\nlog_level = \"debug\"\ntpm {\n  ek_ca_path = %q\n%s\n}\njoin_token {}\n%s\n",
		e.TrustDomain, port, e.ServerSocket, e.path("data/server"), e.opts.EKCA, e.opts.ServerTPM, e.opts.Server)
}

// AgentConfig is the text of the agent's configuration file.
func (e *Env) AgentConfig() string {
	conf := fmt.Sprintf("trust_domain = %q\nserver_address = %q\ntrust_bundle_path = %q\ndata_dir = %q\nsocket_path = %q\nadmin_socket_path = %q\npin_dir = %q\n",
		e.TrustDomain, e.ServerAddress, e.path("bundle.pem"), e.path("data/agent"), strings.TrimPrefix(e.WorkloadSocket, "unix://"), e.AgentSocket, e.path("bpf/assay"))
	if !slices.ContainsFunc([]string{"join_token", "x509pop", "tpm_devid"}, func(block string) bool { return strings.Contains(e.opts.Agent, block) }) {
		conf += fmt.Sprintf("tpm {\n  device = %q\n}\n", e.opts.TPM)
	}
	return conf + e.opts.Agent + "\n"
}

// SetServer replaces Options.Server for the next StartServer.
func (e *Env) SetServer(lines string) { e.opts.Server = lines }

// SetAgent replaces Options.Agent for the next StartAgent.
func (e *Env) SetAgent(lines string) { e.opts.Agent = lines }

// StopAgent stops the agent; the sensor stays in the kernel.
func (e *Env) StopAgent() error { return e.agent.stop() }

// KillAgent ends the agent as a crash would.
func (e *Env) KillAgent() error { return e.agent.kill() }

// AgentStatus asks the agent how it is.
func (e *Env) AgentStatus(ctx context.Context) (*adminpb.StatusResponse, error) {
	conn, err := Dial(e.AgentSocket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return adminpb.NewAgentAdminClient(conn).Status(ctx, &adminpb.StatusRequest{})
}

// Wait returns when the server or the agent has ended by itself, or ctx ends.
func (e *Env) Wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-e.server.done:
		return fmt.Errorf("the server ended: %w", e.server.failure())
	case <-e.agent.done:
		return fmt.Errorf("the agent ended: %w", e.agent.failure())
	}
}

// Dial connects to an admin socket.
func Dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix:"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"))
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func or(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

// startTimeout bounds a start; an emulated guest is slow to load the sensor.
const startTimeout = 3 * time.Minute
