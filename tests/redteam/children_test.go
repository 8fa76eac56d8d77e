// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Actors whose child plays a tape: it is no program of its own.

func beForking(flags uintptr) {
	t := newTape()
	q := t.question(dial(), true)
	q.end(exit)
	say(t.childAsks(flags, q))
}

// beReadByChild has a child before it asks.
func beReadByChild() {
	fd := dial()
	t := newTape()
	q := t.question(fd, false)
	q.end(exit)
	say(t.childAsks(0, q, step{nr: unix.SYS_WRITE, args: [6]uintptr{uintptr(fd), t.put(request), uintptr(len(request))}}))
}

// beReadLater has a child once the answer lies in the socket's queue.
func beReadLater() {
	fd := dial()
	must(unix.Write(fd, request))
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(patience()); ; time.Sleep(10 * time.Millisecond) {
		n, _, err := unix.Recvfrom(fd, buf, unix.MSG_PEEK|unix.MSG_DONTWAIT)
		if err == nil && bytes.Contains(buf[:n], wanted()) {
			break
		}
		if time.Now().After(end) {
			panic(fmt.Sprint("the victim's own call: no answer, ", err))
		}
	}
	t := newTape()
	q := t.question(fd, false)
	q.end(exit)
	say(t.childAsks(0, q))
}

// bePrefork is stopped while its worker asks.
func bePrefork() {
	fd := dial()
	t := newTape()
	signal := func(s syscall.Signal) step {
		return step{nr: unix.SYS_KILL, args: [6]uintptr{uintptr(os.Getpid()), uintptr(s)}}
	}
	q := t.question(fd, true, signal(unix.SIGSTOP))
	q.end(signal(unix.SIGCONT), exit)
	say(t.childAsks(0, q))
}

// mmMap is struct prctl_mm_map (linux/prctl.h).
type mmMap struct {
	startCode, endCode, startData, endData, startBrk, brk, startStack, argStart, argEnd, envStart, envEnd, auxv uint64
	auxvSize, exe                                                                                               uint32
}

// beWithOtherExe: a child unmaps its program and has the kernel call the victim's file its exe
// (prctl(2), PR_SET_MM: no mapping of the former file may be left). PR_SET_MM_MAP does what
// PR_SET_MM_EXE_FILE does and needs CAP_CHECKPOINT_RESTORE only.
func beWithOtherExe() {
	t := newTape()
	var steps []step
	self := must(os.Readlink("/proc/self/exe"))
	for line := range strings.Lines(string(must(os.ReadFile("/proc/self/maps")))) {
		f := strings.Fields(line)
		if len(f) < 6 || f[5] != self {
			continue
		}
		from, to, _ := strings.Cut(f[0], "-")
		a, b := must(strconv.ParseUint(from, 16, 64)), must(strconv.ParseUint(to, 16, 64))
		steps = append(steps, step{nr: unix.SYS_MUNMAP, args: [6]uintptr{uintptr(a), uintptr(b - a)}})
	}
	file := must(unix.Open(os.Getenv("REDTEAM_VICTIM"), unix.O_RDONLY, 0))
	fd := socket()
	// Any addresses that are in order will do.
	layout := mmMap{1 << 20, 2 << 20, 3 << 20, 4 << 20, 5 << 20, 5 << 20, 6 << 20, 7 << 20, 7 << 20, 7 << 20, 7 << 20, 0, 0, uint32(file)}
	to := unix.RawSockaddrUnix{Family: unix.AF_UNIX}
	for i, b := range []byte(os.Getenv("REDTEAM_SOCKET")) {
		to.Path[i] = int8(b)
	}
	prctl := len(steps)
	steps = append(steps,
		step{nr: unix.SYS_PRCTL, args: [6]uintptr{unix.PR_SET_MM, unix.PR_SET_MM_MAP, t.put((*[unsafe.Sizeof(layout)]byte)(unsafe.Pointer(&layout))[:]), unsafe.Sizeof(layout)}},
		step{nr: unix.SYS_CONNECT, args: [6]uintptr{uintptr(fd), t.put((*[unsafe.Sizeof(to)]byte)(unsafe.Pointer(&to))[:]), unsafe.Sizeof(to)}})
	q := t.question(fd, true, steps...)
	q.end(exit)
	v := t.childAsks(0, q, step{nr: unix.SYS_CLOSE, args: [6]uintptr{uintptr(fd)}})
	if e := t.result(q.list, prctl); e < 0 {
		deny("PR_SET_MM", unix.Errno(-e))
		return
	}
	say(v)
}
