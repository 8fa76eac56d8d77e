// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/record"
)

// answer is the map `answer` as memory of this process: the kernel writes there who connected the
// socket whose name it is asked to write there, so that a question is one system call (T2).
type answer struct {
	mu     sync.Mutex // one question at a time
	memory []byte     // nil: closed
}

var errClosed = errors.New("the sensor is closed")

// askedAt is where struct answer says when it was given.
const askedAt = record.AnswerName + record.AskedAt

func (a *answer) open(mapFD int) error {
	if err := a.close(); err != nil {
		return err
	}
	memory, err := unix.Mmap(mapFD, 0, record.AnswerSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return fmt.Errorf("mapping the map of answers: %w", err)
	}
	a.memory = memory
	return nil
}

func (a *answer) close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.memory == nil {
		return nil
	}
	err := unix.Munmap(a.memory)
	a.memory = nil
	return err
}

// address is what the kernel knows a question by.
func (a *answer) address() uint64 { return uint64(uintptr(unsafe.Pointer(unsafe.SliceData(a.memory)))) }

// ask returns who connected an accepted socket and how he is now.
func (a *answer) ask(connFD int, bootID string) (record.Binding, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.memory == nil {
		return record.Binding{}, errClosed
	}
	asked := (*atomic.Uint64)(unsafe.Pointer(&a.memory[askedAt]))
	asked.Store(0)
	getsockname(connFD, (*[record.AnswerName]byte)(a.memory))
	if asked.Load() == 0 {
		return record.Binding{}, record.ErrNoBinding
	}
	b, _, err := record.DecodeBinding(a.memory[record.AnswerName:], bootID)
	return b, err
}
