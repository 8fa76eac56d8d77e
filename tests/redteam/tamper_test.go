// SPDX-License-Identifier: Apache-2.0

package redteam

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// returnOne is "mov eax, 1; ret" and two bytes nobody reaches: what honest becomes.
var returnOne = []byte{0xb8, 1, 0, 0, 0, 0xc3, 0x90, 0x90}

// target is the process to change: its number, and the addresses of honest and marker.
func target() (pid int, code, data uintptr) {
	pid = must(strconv.Atoi(os.Getenv("REDTEAM_PID")))
	var a, b uint64
	must(fmt.Sscan(os.Getenv("REDTEAM_ADDRESSES"), &a, &b))
	return pid, uintptr(a), uintptr(b)
}

func bePtracer() {
	runtime.LockOSThread() // the tracer is a thread
	pid, code, _ := target()
	if err := unix.PtraceAttach(pid); err != nil {
		deny("PTRACE_ATTACH", err)
		return
	}
	var status unix.WaitStatus
	must(unix.Wait4(pid, &status, 0, nil))
	if _, err := unix.PtracePokeText(pid, code, returnOne); err != nil {
		deny("PTRACE_POKETEXT", err)
		return
	}
	check(unix.PtraceDetach(pid))
	fmt.Println("done")
}

func beMemWriter() {
	pid, code, _ := target()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0)
	if err == nil {
		_, err = f.WriteAt(returnOne, int64(code))
	}
	if err != nil {
		deny("/proc/PID/mem", err)
		return
	}
	fmt.Println("done")
}

func beVMWriter() {
	pid, _, data := target()
	text := []byte("changed")
	local := []unix.Iovec{{Base: &text[0], Len: uint64(len(text))}}
	if _, err := unix.ProcessVMWritev(pid, local, []unix.RemoteIovec{{Base: data, Len: len(text)}}, 0); err != nil {
		deny("process_vm_writev", err)
		return
	}
	fmt.Println("done")
}

// askByRing is ask with write and read by an io_uring of its own (io_uring(7)).
func askByRing(fd int) verdict {
	var params [120]byte // struct io_uring_params
	n, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 4, uintptr(unsafe.Pointer(&params)), 0)
	if e != 0 {
		return verdict{denied: true, detail: "io_uring_setup: " + errno(e)}
	}
	ring := int(n)
	field := func(at int) int { return int(binary.NativeEndian.Uint32(params[at:])) }
	const sqOff, cqOff = 40, 80 // struct io_sqring_offsets, io_cqring_offsets
	const mapSQ, mapCQ, mapSQEs = 0, 0x8000000, 0x10000000
	sq := must(unix.Mmap(ring, mapSQ, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE))
	cq := must(unix.Mmap(ring, mapCQ, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE))
	sqes := must(unix.Mmap(ring, mapSQEs, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE))
	tail, array := field(sqOff+4), field(sqOff+24)
	cqHead, cqes := field(cqOff), field(cqOff+20)
	var done uint32
	submit := func(op byte, buf []byte) int {
		clear(sqes[:64])
		sqes[0] = op
		binary.NativeEndian.PutUint32(sqes[4:], uint32(fd))
		binary.NativeEndian.PutUint64(sqes[8:], ^uint64(0)) // no offset
		binary.NativeEndian.PutUint64(sqes[16:], uint64(uintptr(unsafe.Pointer(&buf[0]))))
		binary.NativeEndian.PutUint32(sqes[24:], uint32(len(buf)))
		binary.NativeEndian.PutUint32(sq[array+4*int(done%4):], 0)
		done++
		binary.NativeEndian.PutUint32(sq[tail:], done)
		if _, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(ring), 1, 1, 1, 0, 0); e != 0 {
			panic(e)
		}
		runtime.KeepAlive(buf)
		res := int(int32(binary.NativeEndian.Uint32(cq[cqes+16*int((done-1)%8)+8:])))
		binary.NativeEndian.PutUint32(cq[cqHead:], done)
		return res
	}
	const opRead, opWrite = 22, 23
	if n := submit(opWrite, request); n < 0 {
		return verdict{detail: "write: " + unix.ErrnoName(unix.Errno(-n))}
	}
	return read(readFunc(func(p []byte) (int, error) {
		switch n := submit(opRead, p); {
		case n < 0:
			return 0, unix.Errno(-n)
		case n == 0:
			return 0, io.EOF
		default:
			return n, nil
		}
	}))
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(p []byte) (int, error) { return f(p) }
