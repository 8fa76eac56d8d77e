// SPDX-License-Identifier: Apache-2.0

package delegated

import (
	"context"

	"github.com/assay-id/assay/agent/delivery"
	"github.com/assay-id/assay/selectors"
)

// description is a workload that a delegate described: there is no process to look at.
type description struct{ set selectors.Set }

func (description) Facts() *selectors.Facts    { return &selectors.Facts{} }
func (d description) Selectors() selectors.Set { return d.set }
func (description) Check() error               { return nil }
func (description) Changed() <-chan struct{}   { return nil }
func (description) Done() <-chan struct{}      { return nil }

// pair is a workload and the delegate that is served for it: both count.
type pair struct {
	delivery.Workload
	delegate delivery.Workload
	ctx      context.Context
	done     <-chan struct{}
	changed  <-chan struct{} // nil before the first Changed
}

// onBehalf joins the two for as long as ctx lasts.
func onBehalf(ctx context.Context, delegate, w delivery.Workload) *pair {
	return &pair{Workload: w, delegate: delegate, ctx: ctx, done: either(ctx, delegate.Done(), w.Done())}
}

// Check judges the delegate first.
func (p *pair) Check() error {
	if err := p.delegate.Check(); err != nil {
		return err
	}
	return p.Workload.Check()
}

// Done is closed when one of them has exited.
func (p *pair) Done() <-chan struct{} { return p.done }

// Changed tells of both. It is for one goroutine, as a delivery.Session is.
func (p *pair) Changed() <-chan struct{} {
	select {
	case <-p.changed:
		p.changed = nil
	default:
	}
	if p.changed == nil {
		p.changed = either(p.ctx, p.delegate.Changed(), p.Workload.Changed())
	}
	return p.changed
}

// either is closed with the first of the two, or when ctx ends.
func either(ctx context.Context, a, b <-chan struct{}) <-chan struct{} {
	out := make(chan struct{})
	go func() {
		defer close(out)
		select {
		case <-a:
		case <-b:
		case <-ctx.Done():
		}
	}()
	return out
}
