// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/spiffe/go-spiffe/v2/spiffegrpc/grpccredentials"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

const (
	pause    = 100 * time.Millisecond // between two requests of a flow
	patience = 20 * time.Second       // for one request
)

// caller calls others with what its sources hold.
type caller struct {
	l      *ledger
	certs  *workloadapi.X509Source
	tokens *workloadapi.JWTSource
}

// call makes requests until ctx ends. A flow is KIND,NAME,ADDRESS[,SPIFFE-ID of the other side].
func call(ctx context.Context, l *ledger, flows []string) error {
	certs, err := workloadapi.NewX509Source(ctx)
	if err != nil {
		return fmt.Errorf("X.509 source: %w", err)
	}
	defer certs.Close()
	tokens, err := workloadapi.NewJWTSource(ctx)
	if err != nil {
		return fmt.Errorf("JWT source: %w", err)
	}
	defer tokens.Close()
	c := &caller{l, certs, tokens}
	kinds := map[string]func(name, address string, id spiffeid.ID) (request, error){
		"tls": c.tls, "grpc": c.grpc, "jwt": c.jwt, "plain": c.plain, "nats": c.nats, "nats-kept": c.natsKept,
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for _, text := range flows {
		f := append(strings.Split(text, ","), "")
		if len(f) < 4 || kinds[f[0]] == nil {
			return fmt.Errorf("flow %q: say KIND,NAME,ADDRESS[,SPIFFE-ID]", text)
		}
		var id spiffeid.ID
		if f[3] != "" {
			if id, err = spiffeid.FromString(f[3]); err != nil {
				return fmt.Errorf("flow %q: %w", text, err)
			}
		}
		do, err := kinds[f[0]](f[1], f[2], id)
		if err != nil {
			return fmt.Errorf("flow %q: %w", text, err)
		}
		wg.Go(func() { c.repeat(ctx, f[1], do) })
	}
	return nil
}

// request is one request; what it is cut short by the end of the program is no failure.
type request func(context.Context) error

func (c *caller) repeat(ctx context.Context, name string, do request) {
	for ctx.Err() == nil {
		one, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
		c.l.request(name, do(one))
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

// get expects 200 of an HTTP request on a connection of its own.
func get(ctx context.Context, url, token string, dial func(ctx context.Context, network, address string) (net.Conn, error)) error {
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialTLSContext: dial}}
	res, err := client.Do(r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", res.Status, body)
	}
	return err
}

// tls is HTTP over mTLS by spiffetls.
func (c *caller) tls(name, address string, id spiffeid.ID) (request, error) {
	mode := spiffetls.MTLSClientWithSource(c.l.only(name, id), c.certs)
	return func(ctx context.Context) error {
		return get(ctx, "https://"+address+"/", "", func(ctx context.Context, network, address string) (net.Conn, error) {
			return spiffetls.DialWithMode(ctx, network, address, mode)
		})
	}, nil
}

// grpc keeps one connection, which the server ends now and then.
func (c *caller) grpc(name, address string, id spiffeid.ID) (request, error) {
	creds := grpccredentials.MTLSClientCredentials(c.certs, c.certs, c.l.only(name, id))
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(creds))
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error {
		_, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
		return err
	}, nil
}

// jwt asks for a token each time, as go-spiffe keeps none. While the agent is away the last one serves, if it still may.
func (c *caller) jwt(name, address string, _ spiffeid.ID) (request, error) {
	var last *jwtsvid.SVID
	return func(ctx context.Context) error {
		short, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		svids, err := c.tokens.FetchJWTSVIDs(short, jwtsvid.Params{Audience: audience})
		switch {
		case err == nil:
			last = svids[0]
			c.l.serial(name, last.Marshal())
			c.l.change(name, func(f *flow) { f.Identities = max(f.Identities, len(svids)) })
		case last == nil || time.Until(last.Expiry) < time.Second:
			return err
		default:
			c.l.change(name, func(f *flow) { f.Retries++ })
		}
		return get(ctx, "http://"+address+"/jwt", last.Marshal(), nil)
	}, nil
}

// plain is HTTP to a proxy that does the rest.
func (c *caller) plain(_, address string, _ spiffeid.ID) (request, error) {
	return func(ctx context.Context) error { return get(ctx, "http://"+address+"/", "", nil) }, nil
}

func (c *caller) natsOptions(name string, id spiffeid.ID) []nats.Option {
	return []nats.Option{
		nats.Secure(tlsconfig.MTLSClientConfig(c.certs, c.certs, c.l.only(name, id))), nats.Timeout(patience), nats.NoReconnect(),
	}
}

// nats connects anew for each message.
func (c *caller) nats(name, address string, id spiffeid.ID) (request, error) {
	return func(ctx context.Context) error {
		nc, err := nats.Connect("tls://"+address, c.natsOptions(name, id)...)
		if err != nil {
			return err
		}
		defer nc.Close()
		return natsEcho(ctx, nc)
	}, nil
}

// natsKept sends all messages over one connection: the server's reloads must leave it alone.
func (c *caller) natsKept(name, address string, id spiffeid.ID) (request, error) {
	nc, err := nats.Connect("tls://"+address, c.natsOptions(name, id)...)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return natsEcho(ctx, nc) }, nil
}

// natsEcho sends a message to itself.
func natsEcho(ctx context.Context, nc *nats.Conn) error {
	inbox := nats.NewInbox()
	sub, err := nc.SubscribeSync(inbox)
	if err != nil {
		return err
	}
	defer func() { _ = sub.Unsubscribe() }() // the connection may be gone
	if err := nc.Publish(inbox, []byte("hello")); err != nil {
		return err
	}
	m, err := sub.NextMsgWithContext(ctx)
	if err == nil && string(m.Data) != "hello" {
		err = errors.New("another message came")
	}
	return err
}
