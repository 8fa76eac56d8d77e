// SPDX-License-Identifier: Apache-2.0

// Command gospiffe is made of unmodified libraries (go.mod has their versions; go-2.2.mod has the oldest go-spiffe that
// tests/clients runs): a server, a caller of all others, and a feeder of files for programs that know only files.
// It runs until its input ends, and then prints what it counted.
package main

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
)

func main() { os.Exit(run()) }

func run() int {
	roles := map[string]func(context.Context, *ledger, []string) error{"serve": serve, "call": call, "feed": feed}
	if len(os.Args) < 2 || roles[os.Args[1]] == nil {
		fmt.Fprintln(os.Stderr, "usage: gospiffe serve TLS GRPC HTTP | call FLOW… | feed FOLDER PIDFILE SIGNAL")
		return 2
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, bufio.NewReader(os.Stdin))
		cancel()
	}()
	l := &ledger{flows: map[string]*flow{}}
	if err := roles[os.Args[1]](ctx, l, os.Args[2:]); err != nil && !errors.Is(err, context.Canceled) {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := l.print(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// flow is what happened between this program and one other.
type flow struct {
	Requests   int
	Failures   []string
	Retries    int             // calls of the Workload API that failed, where the last answer was good enough
	Serials    map[string]bool // certificates or tokens of the other side that were accepted
	Identities int             // most of them that the Workload API gave tokens for at once
}

// ledger counts flows by name.
type ledger struct {
	mu    sync.Mutex
	flows map[string]*flow
}

func (l *ledger) change(name string, f func(*flow)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.flows[name] == nil {
		l.flows[name] = &flow{Serials: map[string]bool{}}
	}
	f(l.flows[name])
}

func (l *ledger) request(name string, err error) {
	l.change(name, func(f *flow) {
		f.Requests++
		if err != nil {
			f.Failures = append(f.Failures, err.Error())
		}
	})
}

func (l *ledger) serial(name, serial string) {
	l.change(name, func(f *flow) { f.Serials[serial] = true })
}

// only accepts one peer, and counts its certificates.
func (l *ledger) only(name string, id spiffeid.ID) tlsconfig.Authorizer {
	return l.counted(tlsconfig.AuthorizeID(id), func(spiffeid.ID) string { return name })
}

// members accepts peers of the trust domain, and counts the certificates of each.
func (l *ledger) members(td spiffeid.TrustDomain) tlsconfig.Authorizer {
	return l.counted(tlsconfig.AuthorizeMemberOf(td), spiffeid.ID.String)
}

func (l *ledger) counted(ok tlsconfig.Authorizer, name func(spiffeid.ID) string) tlsconfig.Authorizer {
	return func(id spiffeid.ID, chains [][]*x509.Certificate) error {
		if err := ok(id, chains); err != nil {
			return err
		}
		l.serial(name(id), chains[0][0].SerialNumber.String())
		return nil
	}
}

func (l *ledger) print() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return json.NewEncoder(os.Stdout).Encode(l.flows)
}
