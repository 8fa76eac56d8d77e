// SPDX-License-Identifier: Apache-2.0

package device

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"strings"
	"syscall"
	"time"

	"github.com/google/go-tpm/tpm2"
	"github.com/google/go-tpm/tpm2/transport"
	"github.com/google/go-tpm/tpm2/transport/linuxtpm"
)

const (
	// answerTimeout bounds one command to a socket TPM. The kernel has its own bound for a device.
	answerTimeout = 60 * time.Second
	// busyTimeout bounds the time that a TPM may go on asking to be asked again.
	busyTimeout = 20 * time.Second
	// maxResponse is more than any TPM's TPM_PT_MAX_RESPONSE_SIZE (4096 in practice).
	maxResponse = 64 << 10
	headerSize  = 10 // tag, size, response code: TPM 2.0 Part 1, 18.1
)

// ErrBusy is wrapped when a TPM does not become ready to take a command.
var ErrBusy = errors.New("the TPM is busy; if it stays so, look for another program that holds it (fuser /dev/tpm0 /dev/tpmrm0)")

// openTransport opens "/dev/tpmrm<n>" or "unix:<socket>".
func openTransport(path string) (t transport.TPMCloser, managed bool, err error) {
	socket, isSocket := strings.CutPrefix(path, "unix:")
	switch {
	case isSocket:
		t = &socketTPM{path: socket}
	case strings.HasPrefix(path, "/dev/tpmrm"):
		managed = true
		t, err = linuxtpm.Open(path)
	case strings.HasPrefix(path, "/dev/tpm"):
		return nil, false, fmt.Errorf("%s has no resource manager and would be taken away from every other program; use /dev/tpmrm%s", path, strings.TrimPrefix(path, "/dev/tpm"))
	default:
		return nil, false, fmt.Errorf("%q is no TPM path; use /dev/tpmrm0 or unix:/path/of/swtpm.sock", path)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, false, fmt.Errorf("%s does not exist: enable the TPM 2.0 in the firmware setup and see that the kernel has its driver (tpm_crb or tpm_tis): %w", path, err)
	case errors.Is(err, fs.ErrPermission):
		return nil, false, fmt.Errorf("%s may not be opened: run the agent as root or as a member of the device's group (tss): %w", path, err)
	case errors.Is(err, syscall.EBUSY):
		return nil, false, fmt.Errorf("%s: %w", path, ErrBusy)
	case err != nil:
		return nil, false, err
	}
	return &patient{TPMCloser: t, sleep: time.Sleep}, managed, nil
}

// patient sends a command again while the TPM says that it could not start it. The same bytes
// may be sent again: with these codes the TPM has changed no state, session nonces included
// (TPM 2.0 Part 2, 6.6.3).
type patient struct {
	transport.TPMCloser
	sleep func(time.Duration)
}

func (p *patient) Send(command []byte) ([]byte, error) {
	wait, waited := 2*time.Millisecond, time.Duration(0)
	for {
		response, err := p.TPMCloser.Send(command)
		if err != nil || len(response) < headerSize {
			return response, err
		}
		switch tpm2.TPMRC(binary.BigEndian.Uint32(response[6:])) {
		case tpm2.TPMRCRetry, tpm2.TPMRCYielded, tpm2.TPMRCTesting, tpm2.TPMRCNVRate:
		default:
			return response, nil
		}
		if waited >= busyTimeout {
			return nil, fmt.Errorf("%w (it asked to wait for %s)", ErrBusy, waited)
		}
		p.sleep(wait)
		waited += wait
		wait = min(2*wait, time.Second)
	}
}

// observed tells how long commands take, waiting for the TPM included.
type observed struct {
	transport.TPMCloser
	tell func(command []byte, took time.Duration)
}

func (o *observed) Send(command []byte) ([]byte, error) {
	began := time.Now()
	defer func() { o.tell(command, time.Since(began)) }()
	return o.TPMCloser.Send(command)
}

// socketTPM speaks to swtpm: one connection for each command, so that several programs can
// take turns. swtpm's data channel carries bare TPM commands and responses.
type socketTPM struct{ path string }

func (s *socketTPM) Send(command []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, "unix", s.path)
	if err != nil {
		return nil, fmt.Errorf("no TPM answers on %s; is swtpm running? %w", s.path, err)
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, err
	}
	if _, err := c.Write(command); err != nil {
		return nil, fmt.Errorf("sending a command to the TPM on %s: %w", s.path, err)
	}
	header := make([]byte, headerSize)
	if _, err := io.ReadFull(c, header); err != nil {
		return nil, fmt.Errorf("reading from the TPM on %s: %w", s.path, err)
	}
	size := binary.BigEndian.Uint32(header[2:])
	if size < headerSize || size > maxResponse {
		return nil, fmt.Errorf("reading from the TPM on %s: a response of %d bytes", s.path, size)
	}
	response := append(header, make([]byte, size-headerSize)...)
	if _, err := io.ReadFull(c, response[headerSize:]); err != nil {
		return nil, fmt.Errorf("reading from the TPM on %s: %w", s.path, err)
	}
	return response, nil
}

func (s *socketTPM) Close() error { return nil }
