// SPDX-License-Identifier: Apache-2.0

// Command ledger is a workload of the demo: a stock go-spiffe server that lets only
// payments in. It knows nothing of Assay.
//
//	ledger ADDRESS
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

func main() {
	if err := run(os.Args[1]); err != nil {
		fmt.Println("ledger:", err)
		os.Exit(1)
	}
}

func run(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	fmt.Println("ledger: I am", svid.ID)

	payments := spiffeid.RequireFromPath(svid.ID.TrustDomain(), "/payments")
	l, err := spiffetls.ListenWithMode(ctx, "tcp", address, spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeID(payments), source))
	if err != nil {
		return err
	}
	defer l.Close()
	fmt.Println("ledger: listening on", l.Addr())
	context.AfterFunc(ctx, func() { l.Close() })
	for {
		conn, err := l.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintln(conn, "booked"); err != nil {
			fmt.Println("ledger: refused a client:", err)
		} else if peer, err := spiffetls.PeerIDFromConn(conn); err == nil {
			fmt.Println("ledger: talked to", peer)
		}
		conn.Close()
	}
}
