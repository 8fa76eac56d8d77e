// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"bytes"
	"slices"
	"sort"
)

const blockSize = 512

// order is the records by key, in blocks: keys ascend nearly always, so blocks fill at the end,
// and a removal moves one block only.
type order struct{ blocks [][]uint32 }

// seek returns where the first record is whose key is not below key.
func (r *Replica) seek(key Key) (block, at int) {
	below := func(n uint32) bool { return bytes.Compare(r.records.at(n).key[:], key[:]) < 0 }
	blocks := r.order.blocks
	block = sort.Search(len(blocks), func(i int) bool { return !below(blocks[i][len(blocks[i])-1]) })
	if block == len(blocks) {
		return block, 0
	}
	return block, sort.Search(len(blocks[block]), func(i int) bool { return !below(blocks[block][i]) })
}

func (r *Replica) insert(key Key, n uint32) {
	o := &r.order
	block, at := r.seek(key)
	last := len(o.blocks) - 1
	switch {
	case block > last && (last < 0 || len(o.blocks[last]) >= blockSize):
		o.blocks = append(o.blocks, append(make([]uint32, 0, blockSize), n))
		return
	case block > last:
		o.blocks[last] = append(o.blocks[last], n)
		return
	case len(o.blocks[block]) >= blockSize:
		half := blockSize / 2
		upper := append(make([]uint32, 0, blockSize), o.blocks[block][half:]...)
		o.blocks[block] = o.blocks[block][:half]
		o.blocks = slices.Insert(o.blocks, block+1, upper)
		if at > half {
			block, at = block+1, at-half
		}
	}
	o.blocks[block] = slices.Insert(o.blocks[block], at, n)
}

func (r *Replica) cut(key Key) {
	o := &r.order
	block, at := r.seek(key)
	o.blocks[block] = slices.Delete(o.blocks[block], at, at+1)
	switch rest := o.blocks[block]; {
	case len(rest) == 0:
		o.blocks = slices.Delete(o.blocks, block, block+1)
	case block > 0 && len(rest)+len(o.blocks[block-1]) <= blockSize/2: // many small ones would be a leak
		o.blocks[block-1] = append(o.blocks[block-1], rest...)
		o.blocks = slices.Delete(o.blocks, block, block+1)
	}
}
