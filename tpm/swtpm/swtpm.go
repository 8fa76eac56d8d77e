// SPDX-License-Identifier: Apache-2.0

// Package swtpm runs software TPMs for tests and for `assay dev`: it manufactures one (with
// an EK certificate of a local CA) and starts it on a Unix socket. A software TPM proves
// nothing about a machine: whoever can read its folder holds its keys.
package swtpm

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrMissing says that the programs are not installed.
var ErrMissing = errors.New("swtpm is not installed: run `apt-get install swtpm swtpm-tools` (Debian, Ubuntu)")

// Manufacture makes the state of a new TPM in dir, with an RSA-2048 EK and its certificate in
// NV 0x01c00002, SHA-256 bank only. The certificate is issued by the CA in caDir, which is
// made when it is not there; caPEM holds that CA's certificates, the issuer and its root.
// It takes a second or two; see Clone.
func Manufacture(ctx context.Context, caDir, dir string) (caPEM []byte, err error) {
	setup, err := exec.LookPath("swtpm_setup")
	if err != nil {
		return nil, ErrMissing
	}
	for _, d := range [...]string{caDir, dir} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("making a software TPM: %w", err)
		}
	}
	conf, err := writeConfig(caDir)
	if err != nil {
		return nil, fmt.Errorf("configuring swtpm_setup: %w", err)
	}
	cmd := exec.CommandContext(ctx, setup, "--tpm2", "--tpmstate", dir, "--create-ek-cert",
		"--pcr-banks", "sha256", "--config", conf, "--overwrite")
	if os.Geteuid() == 0 {
		cmd.Args = append(cmd.Args, "--runas", "root")
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("swtpm_setup: %w: %s", err, strings.TrimSpace(string(out)))
	}
	for _, name := range [...]string{"issuercert.pem", "swtpm-localca-rootca-cert.pem"} {
		pem, err := os.ReadFile(filepath.Join(caDir, name))
		if err != nil {
			return nil, fmt.Errorf("reading the CA that swtpm_setup made: %w", err)
		}
		caPEM = append(caPEM, pem...)
	}
	return caPEM, nil
}

// writeConfig points swtpm_setup and swtpm_localca at caDir, away from the machine's own.
func writeConfig(caDir string) (string, error) {
	localca, err := exec.LookPath("swtpm_localca")
	if err != nil {
		return "", ErrMissing
	}
	file := func(name string) string { return filepath.Join(caDir, name) }
	for name, content := range map[string]string{
		"swtpm_setup.conf": fmt.Sprintf("create_certs_tool = %s\ncreate_certs_tool_config = %s\ncreate_certs_tool_options = %s\n",
			localca, file("swtpm-localca.conf"), file("swtpm-localca.options")),
		"swtpm-localca.conf": fmt.Sprintf("statedir = %s\nsigningkey = %s\nissuercert = %s\ncertserial = %s\n",
			caDir, file("signkey.pem"), file("issuercert.pem"), file("certserial")),
		"swtpm-localca.options": "--platform-manufacturer Assay\n--platform-version 1\n--platform-model swtpm\n",
	} {
		if err := os.WriteFile(file(name), []byte(content), 0o600); err != nil {
			return "", err
		}
	}
	return file("swtpm_setup.conf"), nil
}

// Clone copies the state of a TPM that is not running. The copy is the same TPM: same EK,
// same counters.
func Clone(dst, src string) error {
	if err := os.MkdirAll(dst, 0o700); err != nil {
		return fmt.Errorf("cloning a software TPM: %w", err)
	}
	const state = "tpm2-00.permall"
	data, err := os.ReadFile(filepath.Join(src, state))
	if err == nil {
		err = os.WriteFile(filepath.Join(dst, state), data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("cloning a software TPM: %w", err)
	}
	return nil
}

// Process is a running software TPM.
type Process struct {
	cmd    *exec.Cmd
	socket string
	done   chan struct{} // closed when the process is gone
	err    error         // why, once done is closed
}

// startTimeout bounds the wait for the socket to answer.
const startTimeout = 10 * time.Second

// Start powers on the TPM whose state is in dir. It runs until Stop, or until ctx ends, or
// until this process does.
func Start(ctx context.Context, dir string) (*Process, error) {
	socket := filepath.Join(dir, "swtpm.sock")
	return start(ctx, dir, socket, "--server", "type=unixio,path="+socket, "--flags", "not-need-init,startup-clear")
}

// StartForQEMU is Start for QEMU's `-tpmdev emulator`, which powers the TPM itself by the control
// socket that Socket returns. The TPM ends with that machine.
func StartForQEMU(ctx context.Context, dir string) (*Process, error) {
	socket := filepath.Join(dir, "control.sock")
	return start(ctx, dir, socket, "--ctrl", "type=unixio,path="+socket, "--terminate")
}

func start(ctx context.Context, dir, socket string, args ...string) (*Process, error) {
	program, err := exec.LookPath("swtpm")
	if err != nil {
		return nil, ErrMissing
	}
	if len(socket) > 107 {
		return nil, fmt.Errorf("starting swtpm: %s is longer than the 107 bytes that a socket's path may have; use a shorter folder", socket)
	}
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("starting swtpm: %w", err)
	}
	cmd := exec.CommandContext(ctx, program, append([]string{"socket", "--tpm2", "--tpmstate", "dir=" + dir,
		"--log", "file=" + filepath.Join(dir, "swtpm.log") + ",level=1"}, args...)...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM, Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 2 * time.Second
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("starting swtpm: %w", err)
	}
	p := &Process{cmd: cmd, socket: socket, done: make(chan struct{})}
	go func() { p.err = cmd.Wait(); close(p.done) }()
	if err := p.ready(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("starting swtpm in %s: %w", dir, err), p.Stop())
	}
	return p, nil
}

// ready waits until the socket takes a connection.
func (p *Process) ready(ctx context.Context) error {
	timeout := time.After(startTimeout)
	for {
		c, err := net.Dial("unix", p.socket)
		if err == nil {
			return c.Close()
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended (%w); see swtpm.log there", p.err)
		case <-ctx.Done():
			return ctx.Err()
		case <-timeout:
			return fmt.Errorf("no answer within %s: %w", startTimeout, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Path is what tpm/device.Open takes: "unix:" and the socket.
func (p *Process) Path() string { return "unix:" + p.socket }

// Socket is the file that the TPM listens on.
func (p *Process) Socket() string { return p.socket }

// Stop powers the TPM off and waits until it is gone. Its state stays in the folder.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return nil
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stopping swtpm: %w", err)
	}
	select {
	case <-p.done:
	case <-time.After(2 * time.Second):
		if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("stopping swtpm: %w", err)
		}
		<-p.done
	}
	return nil
}
