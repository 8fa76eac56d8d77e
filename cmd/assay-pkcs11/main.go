// SPDX-License-Identifier: Apache-2.0

//go:build cgo

// Command assay-pkcs11 does what assay-server asks of an HSM. It loads the HSM's module (PKCS #11
// v2.40) so that the server need not: if the module crashes or hangs, it does so here.
package main

import (
	"fmt"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/assay-id/assay/server/keys/pkcs11"
)

// goodbye is how long an end may take once the server has gone.
const goodbye = 4 * time.Second

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "assay-pkcs11:", err)
		os.Exit(1)
	}
}

func run() error {
	// The PIN is in memory.
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("forbid core dumps: %w", err)
	}
	syscall.CloseOnExec(3)
	file := os.NewFile(3, "assay-server")
	conn, err := net.FileConn(file)
	if err != nil {
		return fmt.Errorf("assay-server starts this program, for key_manager \"pkcs11\"; it is of no use by hand (%w)", err)
	}
	if err := file.Close(); err != nil {
		return err
	}
	return pkcs11.Serve(server{conn}, open)
}

// server is the connection. Once it has ended the program ends, whatever the module does.
type server struct{ net.Conn }

func (s server) Read(b []byte) (int, error) {
	n, err := s.Conn.Read(b)
	if err != nil {
		time.AfterFunc(goodbye, func() { os.Exit(1) })
	}
	return n, err
}
