// SPDX-License-Identifier: Apache-2.0

// Command payments is a workload of the demo: a stock go-spiffe client. It knows nothing of
// Assay.
//
//	payments call ADDRESS     book a payment with ledger over mTLS
//	payments watch            print every identity that arrives
//	payments sleep            do nothing; its PID is what an attacker wants
//	payments lend PROGRAM …   open the Workload API and let PROGRAM inherit the connection as
//	                          descriptor 3: what a careless or bought workload might do
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

// marker is the byte that the demo's first impostor has changed.
var marker = "payments build A"

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("payments:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx := context.Background()
	switch {
	case len(args) == 2 && args[0] == "call":
		return call(ctx, args[1])
	case len(args) == 1 && args[0] == "watch":
		return watch(ctx)
	case len(args) == 1 && args[0] == "sleep":
		time.Sleep(time.Minute)
		return nil
	case len(args) >= 2 && args[0] == "lend":
		return lend(args[1:])
	}
	return errors.New("usage: payments call ADDRESS | watch | sleep | lend PROGRAM … (" + marker + ")")
}

func call(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := workloadapi.FetchX509SVID(ctx); err != nil { // a source would wait for one
		return fmt.Errorf("no identity: %w", err)
	}
	source, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return err
	}
	defer source.Close()
	svid, err := source.GetX509SVID()
	if err != nil {
		return err
	}
	fmt.Println("payments: I am", svid.ID)
	ledger := spiffeid.RequireFromPath(svid.ID.TrustDomain(), "/ledger")
	conn, err := spiffetls.DialWithMode(ctx, "tcp", address, spiffetls.MTLSClientWithSource(tlsconfig.AuthorizeID(ledger), source))
	if err != nil {
		return err
	}
	defer conn.Close()
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return err
	}
	peer, err := spiffetls.PeerIDFromConn(conn)
	if err != nil {
		return err
	}
	fmt.Printf("payments: talked to %s, which says %q\n", peer, strings.TrimSpace(answer))
	return nil
}

func watch(ctx context.Context) error {
	client, err := workloadapi.New(ctx)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.WatchX509Context(ctx, printer{})
}

type printer struct{}

func (printer) OnX509ContextUpdate(x *workloadapi.X509Context) {
	at := time.Now().UnixNano()
	s := x.DefaultSVID()
	fmt.Printf("update %d %s serial=%s dns=%v\n", at, s.ID, s.Certificates[0].SerialNumber, s.Certificates[0].DNSNames)
}

func (printer) OnX509ContextWatchError(err error) { fmt.Println("watch:", err) }

func lend(program []string) error {
	conn, err := net.Dial("unix", strings.TrimPrefix(os.Getenv("SPIFFE_ENDPOINT_SOCKET"), "unix://"))
	if err != nil {
		return err
	}
	f, err := conn.(*net.UnixConn).File()
	if err != nil {
		return err
	}
	thief := exec.Command(program[0], program[1:]...)
	thief.Stdout, thief.Stderr, thief.ExtraFiles = os.Stdout, os.Stderr, []*os.File{f}
	return thief.Run()
}
