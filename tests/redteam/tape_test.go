// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// A tape is a list of system calls and the few instructions that issue them, in memory that is
// shared with every child. It lets a process that can not run Go go on: a forked or vforked
// child, one that shares its parent's memory, one that has unmapped its own program.
type tape struct {
	mem  []byte
	used int
}

// step is one system call. If it returns 0 and then is not 0, the list at then follows.
type step struct {
	nr   uintptr
	args [6]uintptr
	then uintptr
}

const stepSize = 9 * 8 // and the result

// notYet is the result of a step before it ran: -EAGAIN, which for a read means the same.
const notYet = ^uint64(unix.EAGAIN) + 1

// player takes the list in AX, keeps it in R12, and touches neither stack nor Go's registers:
//
//	1:  mov  rax, [r12]          ; end of the list?
//	    cmp  rax, -1
//	    je   3f
//	    mov  rdi, [r12+8] …      ; six arguments
//	    syscall
//	    test rax, rax
//	    jne  2f
//	    mov  rcx, [r12+56]       ; 0 and a list for the child?
//	    test rcx, rcx
//	    je   2f
//	    mov  r12, rcx
//	    jmp  1b
//	2:  mov  [r12+64], rax
//	    add  r12, 72
//	    jmp  1b
//	3:  ret
var player = []byte{
	0x49, 0x89, 0xc4, 0x49, 0x8b, 0x04, 0x24, 0x48, 0x83, 0xf8, 0xff, 0x74, 0x3f, 0x49, 0x8b, 0x7c, 0x24, 0x08, 0x49, 0x8b, 0x74, 0x24, 0x10, 0x49,
	0x8b, 0x54, 0x24, 0x18, 0x4d, 0x8b, 0x54, 0x24, 0x20, 0x4d, 0x8b, 0x44, 0x24, 0x28, 0x4d, 0x8b, 0x4c, 0x24, 0x30, 0x0f, 0x05, 0x48, 0x85, 0xc0,
	0x75, 0x0f, 0x49, 0x8b, 0x4c, 0x24, 0x38, 0x48, 0x85, 0xc9, 0x74, 0x05, 0x49, 0x89, 0xcc, 0xeb, 0xc2, 0x49, 0x89, 0x44, 0x24, 0x40, 0x49, 0x83,
	0xc4, 0x48, 0xeb, 0xb7, 0xc3,
}

func newTape() *tape {
	t := &tape{mem: must(unix.Mmap(-1, 0, 4<<20, unix.PROT_READ|unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_SHARED|unix.MAP_ANONYMOUS))}
	t.put(player)
	return t
}

func (t *tape) base() uintptr { return uintptr(unsafe.Pointer(&t.mem[0])) }

// reserve returns the address of n bytes of zeros.
func (t *tape) reserve(n int) uintptr {
	at := t.used
	t.used += (n + 63) &^ 63
	return t.base() + uintptr(at)
}

func (t *tape) put(b []byte) uintptr {
	at := t.reserve(len(b))
	copy(t.bytes(at, len(b)), b)
	return at
}

func (t *tape) bytes(at uintptr, n int) []byte {
	off := int(at - t.base())
	return t.mem[off : off+n]
}

func (t *tape) list(steps ...step) uintptr {
	var b []byte
	for _, s := range steps {
		b = binary.NativeEndian.AppendUint64(b, uint64(s.nr))
		for _, a := range s.args {
			b = binary.NativeEndian.AppendUint64(b, uint64(a))
		}
		b = binary.NativeEndian.AppendUint64(b, uint64(s.then))
		b = binary.NativeEndian.AppendUint64(b, notYet)
	}
	return t.put(binary.NativeEndian.AppendUint64(b, ^uint64(0)))
}

func (t *tape) result(list uintptr, i int) int {
	return int(int64(binary.NativeEndian.Uint64(t.bytes(list+uintptr(i*stepSize+64), 8))))
}

// play runs a list on this thread.
func (t *tape) play(list uintptr) {
	code := t.base()
	entry := &code // a func value is a pointer to its code's address
	(*(*func(uintptr))(unsafe.Pointer(&entry)))(list)
}

// question is a list's part that sends the request and reads the answer without ever blocking
// in the socket, as an event loop does.
type question struct {
	t      *tape
	steps  []step
	answer uintptr
	pause  uintptr // a timespec
	write  int     // index of the write, -1 without
	first  int     // of the pauses and reads
	list   uintptr
}

const (
	readings    = 40
	readingSize = 1 << 14
)

// question adds to the steps that come before it; with send false it only reads.
func (t *tape) question(fd int, send bool, before ...step) *question {
	q := &question{t: t, steps: before, answer: t.reserve(readings * readingSize), write: -1}
	if send {
		q.write = len(q.steps)
		q.steps = append(q.steps, step{nr: unix.SYS_WRITE, args: [6]uintptr{uintptr(fd), t.put(request), uintptr(len(request))}})
	}
	pause := patience() / readings
	ts := unix.NsecToTimespec(pause.Nanoseconds())
	q.pause = t.put((*[unsafe.Sizeof(ts)]byte)(unsafe.Pointer(&ts))[:])
	q.first = len(q.steps)
	for i := range readings {
		q.steps = append(q.steps,
			step{nr: unix.SYS_NANOSLEEP, args: [6]uintptr{q.pause}},
			step{nr: unix.SYS_RECVFROM, args: [6]uintptr{uintptr(fd), q.answer + uintptr(i*readingSize), readingSize, unix.MSG_DONTWAIT}})
	}
	return q
}

// end completes the list with more steps.
func (q *question) end(after ...step) uintptr {
	q.list = q.t.list(append(q.steps, after...)...)
	return q.list
}

// verdict reads what the list has done so far; settled says that nothing more is to come.
func (q *question) verdict() (v verdict, settled bool) {
	if q.write >= 0 {
		if n := q.t.result(q.list, q.write); n < 0 && unix.Errno(-n) != unix.EAGAIN {
			return verdict{detail: "write: " + unix.ErrnoName(unix.Errno(-n))}, true
		}
	}
	var all []byte
	for i := range readings {
		n := q.t.result(q.list, q.first+2*i+1)
		switch {
		case n > 0:
			all = append(all, q.t.bytes(q.answer+uintptr(i*readingSize), n)...)
		case n == 0:
			v.detail, settled = "the connection was closed by the agent", true
		case unix.Errno(-n) != unix.EAGAIN:
			v.detail, settled = "read: "+unix.ErrnoName(unix.Errno(-n)), true
		}
	}
	_, ended := frames(all)
	switch {
	case bytes.Contains(all, wanted()):
		return verdict{delivered: true}, true
	case ended:
		return verdict{detail: "the call was ended by the agent"}, true
	case !settled:
		return verdict{detail: "no answer"}, false
	}
	return v, settled
}

// hurry ends the pauses once there is a verdict.
func (q *question) hurry(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(20 * time.Millisecond):
		}
		if _, settled := q.verdict(); settled {
			clear(q.t.bytes(q.pause, 16))
			return
		}
	}
}

var exit = step{nr: unix.SYS_EXIT, args: [6]uintptr{0}}

// childAsks makes a child by clone(2) with the flags, which plays the question, and waits for
// it. This process goes on with more steps at once.
func (t *tape) childAsks(flags uintptr, q *question, more ...step) verdict {
	parent := t.list(append([]step{{nr: unix.SYS_CLONE, args: [6]uintptr{flags | uintptr(unix.SIGCHLD)}, then: q.list}}, more...)...)
	done := make(chan struct{})
	defer close(done)
	go q.hurry(done)
	t.play(parent)
	pid := t.result(parent, 0)
	if pid < 0 {
		return verdict{denied: true, detail: "clone: " + unix.ErrnoName(unix.Errno(-pid))}
	}
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(pid, &status, 0, nil)
		if err == nil {
			break
		}
		if err != unix.EINTR {
			panic(err)
		}
	}
	if status.ExitStatus() != 0 {
		return verdict{detail: fmt.Sprintf("the child ended with %#x", int(status))}
	}
	v, _ := q.verdict()
	return v
}
