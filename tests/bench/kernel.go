// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf"
	"github.com/assay-id/assay/selectors"
)

const (
	kernelRounds = 60 // blocks with the sensor, and as many without, in turn
	warm         = 10 // more samples before each block, not counted
)

// operation is something that any process of the host does, whether we know it or not.
type operation struct {
	name string
	// samples in a block, of which each is the mean of so many calls.
	samples, calls int
	do             func()
}

// kernelCost does things that concern us not, with the sensor in the kernel and without.
func kernelCost() error {
	dir, err := os.MkdirTemp("/run", "assay-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := unix.Mount("bpf", dir, "bpf", 0, ""); err != nil {
		return fmt.Errorf("mount a bpffs: %w", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	elsewhere, err := os.MkdirTemp("", "assay-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(elsewhere)
	operations, err := foreign(elsewhere)
	if err != nil {
		return err
	}
	on, off := make([]sample, len(operations)), make([]sample, len(operations))
	pins := filepath.Join(dir, "assay")
	for range kernelRounds {
		block(operations, off)
		sensor, err := bpf.Load(bpf.Config{PinDir: pins, MinimumTier: selectors.TierT2, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			return err
		}
		block(operations, on)
		if err := sensor.Close(); err != nil {
			return err
		}
		if err := bpf.Unpin(pins); err != nil {
			return err
		}
	}
	for i, o := range operations {
		compare(o.name+" with the sensor", on[i], off[i], "without")
	}
	return nil
}

// block waits until what attaching or detaching has left behind in the kernel is done.
func block(operations []operation, into []sample) {
	time.Sleep(250 * time.Millisecond)
	for i, o := range operations {
		for n := range warm + o.samples {
			began := time.Now()
			for range o.calls {
				o.do()
			}
			if n >= warm {
				into[i] = append(into[i], time.Since(began)/time.Duration(o.calls))
			}
		}
	}
}

// foreign is what the sensor's hooks are near to, but not about: sockets of somebody else, a
// file that is no program.
func foreign(dir string) ([]operation, error) {
	listener := must(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	address := &unix.SockaddrUnix{Name: filepath.Join(dir, "someone.sock")}
	if err := unix.Bind(listener, address); err != nil {
		return nil, err
	}
	if err := unix.Listen(listener, 8); err != nil {
		return nil, err
	}
	pair := must(unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
	file := filepath.Join(dir, "file")
	message, page := make([]byte, 64), os.Getpagesize()
	return []operation{
		{"fork+exec+wait of /bin/true", 40, 1, func() {
			pid := must(syscall.ForkExec("/bin/true", []string{"true"}, nil))
			must(unix.Wait4(pid, nil, 0, nil))
		}},
		{"connect+accept+close of a Unix socket", 20, 50, func() {
			c := must(unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0))
			check(unix.Connect(c, address))
			a, _, err := unix.Accept4(listener, unix.SOCK_CLOEXEC)
			check(err)
			check(unix.Close(a))
			check(unix.Close(c))
		}},
		{"send+receive of 64 bytes on a Unix socket", 20, 200, func() {
			must(unix.Write(pair[0], message))
			must(unix.Read(pair[1], message))
		}},
		{"open for writing+close", 20, 100, func() {
			fd := must(unix.Open(file, unix.O_WRONLY|unix.O_CREAT|unix.O_CLOEXEC, 0o600))
			check(unix.Close(fd))
		}},
		{"mmap+munmap of an anonymous page", 20, 200, func() {
			m := must(unix.Mmap(-1, 0, page, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON))
			check(unix.Munmap(m))
		}},
	}, nil
}

// must and check panic: what they guard fails only where nothing can be measured.
func must[T any](v T, err error) T {
	check(err)
	return v
}

func check(err error) {
	if err != nil {
		panic(err)
	}
}
