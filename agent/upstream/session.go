// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/assay-id/assay/agent/life"
)

// session attests if need be, then follows the feed and answers the server's questions until
// either breaks or the node's SVID is due for renewal. A nil error means: go on with a new connection.
func (c *Client) session(ctx context.Context, back *backoff) error {
	c.server = ""
	if c.mayRebootstrap() {
		if err := c.rebootstrap(ctx); err != nil {
			return err
		}
	}
	n, err := c.identity(ctx)
	if err != nil {
		return err
	}
	conn, err := c.dialNode(n)
	if err != nil {
		return err
	}
	c.tell(c.life.Take(life.Connect), "connect")
	c.setConn(conn)
	if err := c.postStatus(ctx, n, conn); err != nil {
		return err
	}

	leaf := n.svid.Certificates[0]
	span := leaf.NotAfter.Sub(leaf.NotBefore)
	due := leaf.NotBefore.Add(span/2 - time.Duration(rand.Int64N(int64(span/10)+1)))
	whole, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.setCut(cancel)
	defer c.setCut(nil)
	c.due = func() { cancel(errRenewalDue) }
	timer := time.AfterFunc(max(due.Sub(c.cfg.Now()), 0), c.due)
	defer timer.Stop()
	if c.cfg.Servers.Several() {
		defer time.AfterFunc(c.spread+rand.N(c.spread), func() { cancel(errSpread) }).Stop()
	}

	group, streams := errgroup.WithContext(whole)
	group.Go(func() error { return c.follow(streams, conn, back) })
	group.Go(func() error { c.awaitClock(streams, n, leaf.NotBefore, due); return nil })
	if r, ok := c.cfg.Attestor.(Requoter); ok {
		group.Go(func() error { return c.requote(streams, n, conn.ClientConn, r) })
	}
	err = group.Wait()
	switch cause := context.Cause(whole); {
	case errors.Is(cause, errRenewalDue):
		return c.renew(ctx, n, conn.ClientConn)
	case errors.Is(cause, errSpread):
		c.cfg.Servers.Prefer("")
		return nil
	case errors.Is(cause, errSlow):
		return cause
	}
	return err
}

const (
	// spreadAfter lets agents come back to a server that was away, and share one that was added.
	spreadAfter = 30 * time.Minute
	// firstWord of a feed is all entries.
	firstWord = time.Minute
	// lateCalls in a row end a session, where there is another server.
	lateCalls = 2
)

var (
	errRenewalDue = errors.New("the node's SVID is due for renewal")
	errSpread     = errors.New("the servers are chosen anew from time to time")
	errSlow       = errors.New("the server is connected and does not answer")
)

func (c *Client) setCut(f func(error)) {
	c.mu.Lock()
	c.cut = f
	c.mu.Unlock()
	c.late.Store(0)
}

// answered notes whether the server answered a call in time.
func (c *Client) answered(inTime bool) {
	if inTime {
		c.late.Store(0)
		return
	}
	if c.late.Add(1) < lateCalls || !c.cfg.Servers.Several() {
		return
	}
	c.mu.Lock()
	cut := c.cut
	c.mu.Unlock()
	if cut != nil {
		cut(errSlow)
	}
}
