// SPDX-License-Identifier: Apache-2.0

package pkcs11

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Config of a Helper.
type Config struct {
	// Program is the path of assay-pkcs11.
	Program string
	// Open says which token; the PIN comes from PINFile, again at each start of the program.
	Open    Open
	PINFile PINFile
	// Deadline of one request (default 10s; opening and making keys may take nine times as long). A
	// program that has not answered by then is ended.
	Deadline time.Duration
	Logger   *slog.Logger
}

const (
	defaultDeadline = 10 * time.Second
	longer          = 9 // times the deadline, for what HSMs do slowly
	backoffMin      = 200 * time.Millisecond
	backoffMax      = 5 * time.Second
)

var errClosed = errors.New("the key manager is closed")

// Helper has assay-pkcs11 running whenever there is something to ask. A program that ends, or hangs, is
// started again with the next request. Safe for concurrent use.
type Helper struct {
	cfg  Config
	life context.Context // ends with Close
	end  context.CancelFunc
	turn chan struct{} // held while looking at what is below
	now  *child        // nil at first

	failure   error // of the last start
	notBefore time.Time
	wait      time.Duration
}

// NewHelper starts nothing yet.
func NewHelper(cfg Config) *Helper {
	if cfg.Deadline == 0 {
		cfg.Deadline = defaultDeadline
	}
	life, end := context.WithCancel(context.Background())
	return &Helper{cfg: cfg, life: life, end: end, turn: make(chan struct{}, 1)}
}

// Do asks the program. Errors of the token are of type *Error. A request whose program ends is repeated once
// with the next program, except that keys are never made twice.
func (h *Helper) Do(ctx context.Context, q Request) (Response, error) {
	limit := h.cfg.Deadline
	if q.Op == OpGenerate {
		limit *= longer
	}
	began := time.Now()
	for again := q.Op != OpGenerate; ; again = false {
		c, err := h.running(ctx)
		if err != nil {
			return Response{}, err
		}
		a, err := c.ask(ctx, q, limit)
		if errors.Is(err, errEnded) && again && time.Since(began) < limit { // else it was this one that hung
			continue
		}
		switch KindOf(err) {
		case PIN:
			err = errors.Join(err, h.cfg.PINFile.refuse(c.pinState))
			c.kill(err)
		case Broken:
			c.kill(fmt.Errorf("%w, for its module to be loaded anew: %w", errEnded, err))
			if again {
				continue
			}
		}
		return a, err
	}
}

// Close ends the program; requests fail from then on.
func (h *Helper) Close() error {
	h.end()
	h.turn <- struct{}{}
	defer func() { <-h.turn }()
	if h.now != nil {
		h.now.stop()
	}
	return nil
}

// running returns the program, started if need be.
func (h *Helper) running(ctx context.Context) (*child, error) {
	select {
	case h.turn <- struct{}{}:
		defer func() { <-h.turn }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if h.life.Err() != nil {
		return nil, errClosed
	}
	if h.now != nil && h.now.alive() {
		return h.now, nil
	}
	if h.now != nil && h.now.useful.Load() {
		h.now, h.wait = nil, 0
	}
	if time.Now().Before(h.notBefore) {
		return nil, fmt.Errorf("assay-pkcs11 is started again soon: %w", h.failure)
	}
	if h.now != nil { // it ended before it was of any use
		h.postpone(h.now.why())
		h.now = nil
		return nil, h.failure
	}
	c, err := h.start()
	if err != nil {
		h.postpone(err)
		return nil, err
	}
	h.now = c
	return c, nil
}

func (h *Helper) postpone(err error) {
	h.wait = min(max(2*h.wait, backoffMin), backoffMax)
	h.failure, h.notBefore = err, time.Now().Add(h.wait)
}

// start starts the program and opens the token, for all who will ask: whoever waits first may have little time.
func (h *Helper) start() (*child, error) {
	pin, state, err := h.cfg.PINFile.read()
	if err != nil {
		return nil, err
	}
	c, err := startChild(h.cfg.Program, h.cfg.Logger)
	if err != nil {
		return nil, err
	}
	c.pinState = state
	open := h.cfg.Open
	open.Version, open.PIN = Version, pin
	a, err := c.ask(h.life, Request{Op: OpOpen, Open: &open}, longer*h.cfg.Deadline)
	if err == nil && a.Sessions < 1 {
		err = errFrame
	}
	if err != nil {
		c.kill(err)
		if KindOf(err) == PIN {
			err = errors.Join(err, h.cfg.PINFile.refuse(state))
		}
		return nil, err
	}
	c.opened(a.Sessions)
	return c, nil
}
