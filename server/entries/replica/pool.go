// SPDX-License-Identifier: Apache-2.0

package replica

const chunk = 1024

// pool holds values by number, in chunks that never move. Number 0 is never given out.
type pool[T any] struct {
	chunks [][]T
	next   uint32 // the first number that was never given out
	free   []uint32
}

func (p *pool[T]) at(n uint32) *T { return &p.chunks[n/chunk][n%chunk] }

// take returns the number of a zero value.
func (p *pool[T]) take() uint32 {
	if last := len(p.free) - 1; last >= 0 {
		n := p.free[last]
		p.free = p.free[:last]
		return n
	}
	p.next = max(p.next, 1)
	if int(p.next/chunk) == len(p.chunks) {
		p.chunks = append(p.chunks, make([]T, chunk))
	}
	p.next++
	return p.next - 1
}

func (p *pool[T]) give(n uint32) {
	var zero T
	*p.at(n) = zero
	p.free = append(p.free, n)
}

// slot of a table; number 0 is an empty one.
type slot struct{ hash, number uint32 }

// table finds numbers by the hashes of what they stand for: open addressing, linear probing.
// It may hold several numbers with equal hashes.
type table struct {
	slots []slot // a power of two
	used  int
}

// find returns the first number with the hash for which same holds, or 0.
func (t *table) find(hash uint32, same func(uint32) bool) uint32 {
	if len(t.slots) == 0 {
		return 0
	}
	mask := uint32(len(t.slots) - 1)
	for i := hash & mask; t.slots[i].number != 0; i = (i + 1) & mask {
		if s := t.slots[i]; s.hash == hash && same(s.number) {
			return s.number
		}
	}
	return 0
}

func (t *table) add(hash, number uint32) {
	if t.used >= len(t.slots)/5*4 {
		old := t.slots
		t.slots = make([]slot, max(16, 2*len(old)))
		for _, s := range old {
			if s.number != 0 {
				t.place(s)
			}
		}
	}
	t.place(slot{hash, number})
	t.used++
}

func (t *table) place(s slot) {
	mask := uint32(len(t.slots) - 1)
	i := s.hash & mask
	for t.slots[i].number != 0 {
		i = (i + 1) & mask
	}
	t.slots[i] = s
}

// remove takes a number out and moves those after it, so that no probe ends early.
func (t *table) remove(hash, number uint32) {
	mask := uint32(len(t.slots) - 1)
	i := hash & mask
	for t.slots[i].number != number {
		i = (i + 1) & mask
	}
	for j := (i + 1) & mask; t.slots[j].number != 0; j = (j + 1) & mask {
		if home := t.slots[j].hash & mask; (j-home)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = slot{}
	t.used--
}
