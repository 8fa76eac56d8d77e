// SPDX-License-Identifier: Apache-2.0

package replica

import (
	"hash/maphash"
	"slices"

	"github.com/assay-id/assay/selectors"
)

// seed makes collisions unpredictable to those who choose names.
var seed = maphash.MakeSeed()

func hashOf[T comparable](v T) uint32 { return uint32(maphash.Comparable(seed, v)) }

// interner gives equal values one number for as long as somebody refers to it.
type interner[T comparable] struct {
	pool  pool[counted[T]]
	table table
}

type counted[T comparable] struct {
	value T
	refs  uint32
}

// find returns the number of a value, or 0.
func (in *interner[T]) find(v T) uint32 {
	return in.table.find(hashOf(v), func(n uint32) bool { return in.pool.at(n).value == v })
}

// take adds a reference; own returns a copy to keep of a value that is new.
func (in *interner[T]) take(v T, own func(T) T) uint32 {
	n := in.find(v)
	if n == 0 {
		n = in.pool.take()
		in.pool.at(n).value = own(v)
		in.table.add(hashOf(v), n)
	}
	in.pool.at(n).refs++
	return n
}

func (in *interner[T]) give(n uint32) {
	c := in.pool.at(n)
	if c.refs--; c.refs == 0 {
		in.table.remove(hashOf(c.value), n)
		in.pool.give(n)
	}
}

func (in *interner[T]) value(n uint32) T { return in.pool.at(n).value }

// lists interns lists of selectors, each with the canonical list of the same set.
type lists struct {
	selectors interner[selectors.Selector]
	pool      pool[list]
	table     table
	arena     []uint32         // the numbers of all lists' selectors
	holes     map[int][]uint32 // places in arena by length
}

type list struct {
	at, length uint32 // in the arena
	set        uint32 // the canonical list; itself, uncounted, if it is that
	refs       uint32
}

func (l *lists) numbers(n uint32) []uint32 {
	x := l.pool.at(n)
	return l.arena[x.at : x.at+x.length]
}

// set returns the canonical list's number.
func (l *lists) set(n uint32) uint32 { return l.pool.at(n).set }

// members of the canonical list: all different.
func (l *lists) members(n uint32) []uint32 { return l.numbers(l.set(n)) }

func (l *lists) decode(n uint32) []selectors.Selector {
	out := make([]selectors.Selector, 0, l.pool.at(n).length)
	for _, s := range l.numbers(n) {
		out = append(out, l.selectors.value(s))
	}
	return out
}

// find returns the number of a list, or 0.
func (l *lists) find(ss []selectors.Selector) uint32 {
	numbers := make([]uint32, 0, 16)
	for _, s := range ss {
		n := l.selectors.find(s)
		if n == 0 {
			return 0
		}
		numbers = append(numbers, n)
	}
	return l.findNumbers(numbers)
}

func (l *lists) findNumbers(numbers []uint32) uint32 {
	return l.table.find(hashNumbers(numbers...), func(n uint32) bool { return slices.Equal(l.numbers(n), numbers) })
}

// take adds a reference to a list.
func (l *lists) take(ss []selectors.Selector) uint32 {
	numbers := make([]uint32, 0, 16)
	for _, s := range ss {
		numbers = append(numbers, l.selectors.take(s, ownSelector))
	}
	n := l.findNumbers(numbers)
	if n != 0 { // the list holds its selectors once
		for _, s := range numbers {
			l.selectors.give(s)
		}
		l.pool.at(n).refs++
		return n
	}
	n = l.pool.take()
	*l.pool.at(n) = list{at: l.room(numbers), length: uint32(len(numbers)), set: n, refs: 1}
	l.table.add(hashNumbers(numbers...), n)
	if set := selectors.NewSet(ss...); !slices.Equal(set, ss) {
		l.pool.at(n).set = l.take(set)
	}
	return n
}

func (l *lists) give(n uint32) {
	x := l.pool.at(n)
	if x.refs--; x.refs > 0 {
		return
	}
	numbers, set := l.numbers(n), x.set
	l.table.remove(hashNumbers(numbers...), n)
	for _, s := range numbers {
		l.selectors.give(s)
	}
	if l.holes == nil {
		l.holes = map[int][]uint32{}
	}
	l.holes[len(numbers)] = append(l.holes[len(numbers)], x.at)
	l.pool.give(n)
	if set != n {
		l.give(set)
	}
}

// room copies numbers into the arena.
func (l *lists) room(numbers []uint32) uint32 {
	if holes := l.holes[len(numbers)]; len(holes) > 0 {
		at := holes[len(holes)-1]
		l.holes[len(numbers)] = holes[:len(holes)-1]
		copy(l.arena[at:], numbers)
		return at
	}
	at := len(l.arena)
	l.arena = append(l.arena, numbers...)
	return uint32(at)
}

// hashNumbers mixes numbers that we gave out ourselves.
func hashNumbers(ns ...uint32) uint32 {
	h := uint64(len(ns)) + 0x9e3779b97f4a7c15
	for _, n := range ns {
		h = (h ^ uint64(n)) * 0xff51afd7ed558ccd
		h ^= h >> 32
	}
	return uint32(h)
}
