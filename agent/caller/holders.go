// SPDX-License-Identifier: Apache-2.0

package caller

import (
	"github.com/assay-id/assay/bpf/record"
	"github.com/assay-id/assay/selectors"
)

// holders answers which processes hold the other end of a connection (bpf.Sensor, at T2).
type holders interface {
	Holders(connFD int) (record.Holders, error)
}

// walkAt is the try of Check after which it is worth a walk over the host's descriptors: a child
// between fork and execve is mostly gone by then.
const walkAt = 6

// unexplained reports references to the caller's end beyond its descriptors, and nothing else
// against it.
func unexplained(b record.Binding, key selectors.ProcessKey) bool {
	b.Holder.References = b.Holder.Held
	r, _ := judge(b, key)
	return r == nil
}

// blocked reports whether the references beyond the caller's descriptors can only be its own system
// calls that wait with the socket, such as a thread in read(2): no other process has a descriptor
// of it, none is under way, and the caller has no io_uring.
func (c *Caller) blocked() bool {
	finder, ok := c.conn.binder.(holders)
	if !ok {
		return false
	}
	var found record.Holders
	var err error
	if errControl := c.conn.withFD(func(fd int) { found, err = finder.Holders(fd) }); errControl != nil || err != nil || !found.Sole() {
		return false
	}
	b, err := c.conn.ask() // a descriptor may have been sent away during the walk
	return err == nil && unexplained(b, c.Key())
}
