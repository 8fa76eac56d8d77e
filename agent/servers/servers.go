// SPDX-License-Identifier: Apache-2.0

// Package servers chooses among the servers of a trust domain: of all addresses of all names one at random,
// the next one at once if that does not answer, and no other for as long as the connection's user lives. A server
// that was left is tried last.
package servers

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
)

const (
	lookupTimeout = 10 * time.Second
	lookupsApart  = 2 * time.Second // at least, on one connection
	// A server that is gone without a word is noticed after both. Ours pings more often than that, and SPIRE's is
	// polled, so that this one, which would not like it, gets no ping.
	pingAfter   = 45 * time.Second
	pingTimeout = 20 * time.Second
)

// Set is the servers that an agent may talk to, for concurrent use.
type Set struct {
	names   []string // host:port
	lookup  func(ctx context.Context, host string) ([]string, error)
	options []grpc.DialOption

	mu            sync.Mutex
	several       bool // the last lookup found more than one
	prefer, avoid string
}

// New checks the names, host:port each. lookup finds a host's addresses (net.DefaultResolver.LookupHost).
func New(names []string, lookup func(ctx context.Context, host string) ([]string, error)) (*Set, error) {
	if len(names) == 0 {
		return nil, errors.New("server_address is missing: write the host and port of the server, as in \"assay.example.org:8081\"")
	}
	for _, name := range names {
		if host, port, err := net.SplitHostPort(name); err != nil || host == "" || port == "" {
			return nil, fmt.Errorf("server address %q: write host:port, as in \"assay.example.org:8081\"", name)
		}
	}
	return &Set{names: names, lookup: lookup, several: len(names) > 1}, nil
}

// String is for people.
func (s *Set) String() string { return strings.Join(s.names, ", ") }

// Several reports whether there is any choice, as far as is known.
func (s *Set) Several() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.several
}

// Prefer has the address tried first by the next Dial; "" is none.
func (s *Set) Prefer(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.prefer = address
}

// Avoid has the address tried last from now on, and another one no more.
func (s *Set) Avoid(address string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.avoid = address
	if s.prefer == address {
		s.prefer = ""
	}
}

// Conn is a connection to one of the servers.
type Conn struct {
	*grpc.ClientConn
	r *answers
}

// Use adds options to the connections. Call it before the first Dial.
func (s *Set) Use(options ...grpc.DialOption) { s.options = append(s.options, options...) }

// Dial returns a connection that goes to the first server that answers. It is made when it is used.
func (s *Set) Dial(creds credentials.TransportCredentials) (*Conn, error) {
	r := &answers{set: s, wake: make(chan struct{}, 1)}
	conn, err := grpc.NewClient(scheme+":///", append(slices.Clip(s.options), grpc.WithResolvers(r), grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingAfter, Timeout: pingTimeout}))...)
	if err != nil {
		return nil, fmt.Errorf("server address %s: %w", s, err)
	}
	return &Conn{conn, r}, nil
}

// Pin has the connection stay with the server at that address, to which it is connected: what a server knows of an
// agent from one stream it needs for its calls. A server that drains (GOAWAY) is left by whoever dialled.
func (c *Conn) Pin(address string) { c.r.pin(address) }

// scheme is that of our targets; they stay within this package.
const scheme = "assay-servers"

// addresses looks all names up, in the order in which to try them.
func (s *Set) addresses(ctx context.Context) ([]resolver.Address, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	var found []resolver.Address
	var failed error
	for _, name := range s.names {
		host, port, _ := net.SplitHostPort(name)
		ips := []string{host}
		if net.ParseIP(host) == nil {
			var err error
			if ips, err = s.lookup(ctx, host); err != nil {
				failed = errors.Join(failed, err)
				continue
			}
		}
		for _, ip := range ips {
			if a := (resolver.Address{Addr: net.JoinHostPort(ip, port), ServerName: host}); !slices.ContainsFunc(found, func(b resolver.Address) bool { return a.Addr == b.Addr }) {
				found = append(found, a)
			}
		}
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("no address is known for %s: %w", s, failed)
	}
	rand.Shuffle(len(found), func(i, j int) { found[i], found[j] = found[j], found[i] })
	s.mu.Lock()
	defer s.mu.Unlock()
	s.several = len(found) > 1
	rank := func(a resolver.Address) int {
		switch a.Addr {
		case s.prefer:
			return -1
		case s.avoid:
			return 1
		}
		return 0
	}
	slices.SortStableFunc(found, func(a, b resolver.Address) int { return rank(a) - rank(b) })
	return found, nil
}

// answers tells one connection of gRPC's which addresses there are (resolver.Builder, resolver.Resolver).
type answers struct {
	set  *Set
	wake chan struct{}
	end  context.CancelFunc

	mu     sync.Mutex
	cc     resolver.ClientConn
	list   []resolver.Address // what it told last
	pinned bool
}

// Scheme is part of resolver.Builder.
func (r *answers) Scheme() string { return scheme }

// OverrideAuthority is what the server is called in HTTP; the TLS name is each address's own.
func (r *answers) OverrideAuthority(resolver.Target) string { return r.set.names[0] }

// Build is part of resolver.Builder.
func (r *answers) Build(_ resolver.Target, cc resolver.ClientConn, _ resolver.BuildOptions) (resolver.Resolver, error) {
	r.mu.Lock()
	r.cc = cc
	r.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	r.end = cancel
	go r.run(ctx)
	r.ResolveNow(resolver.ResolveNowOptions{})
	return r, nil
}

// ResolveNow is part of resolver.Resolver.
func (r *answers) ResolveNow(resolver.ResolveNowOptions) {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// Close is part of resolver.Resolver.
func (r *answers) Close() { r.end() }

func (r *answers) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.wake:
		}
		list, err := r.set.addresses(ctx)
		r.say(list, err)
		select {
		case <-ctx.Done():
		case <-time.After(lookupsApart):
		}
	}
}

func (r *answers) say(list []resolver.Address, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.pinned:
		return
	case err != nil:
		r.cc.ReportError(err)
		return
	}
	r.list = list
	r.update()
}

// update needs the lock. What gRPC answers is whether it could use the list, which shows on the connection.
func (r *answers) update() { _ = r.cc.UpdateState(resolver.State{Addresses: r.list}) }

func (r *answers) pin(address string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.IndexFunc(r.list, func(a resolver.Address) bool { return a.Addr == address })
	if r.pinned || i < 0 {
		return
	}
	r.pinned, r.list = true, r.list[i:i+1]
	r.update()
}
