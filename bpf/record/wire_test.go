// SPDX-License-Identifier: Apache-2.0

package record

import (
	"encoding/binary"
	"errors"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStatDevice(t *testing.T) {
	for _, d := range [][2]uint32{{8, 1}, {259, 300}, {0, 4095}, {4095, 1048575}} {
		if got := statDevice(d[0]<<20 | d[1]); got != unix.Mkdev(d[0], d[1]) {
			t.Errorf("device %v: %#x, want %#x", d, got, unix.Mkdev(d[0], d[1]))
		}
	}
}

// sampleTask is a record of wire.h with one ancestor.
func sampleTask() []byte {
	b := make([]byte, TaskSize)
	e := binary.NativeEndian
	e.PutUint64(b[0:], 77)                // exec_id
	e.PutUint64(b[8:], 1000)              // start
	e.PutUint32(b[32:], 42)               // tgid
	e.PutUint32(b[48:], uint32(Observed)) // flags
	e.PutUint32(b[52:], 1)                // ancestor_count
	e.PutUint64(b[104:], 76)              // ancestors[0].exec_id
	e.PutUint32(b[104+28:], 41)           // ancestors[0].tgid
	return b
}

// sampleFar is what sampleTask has of far ancestors when it has n in all.
func sampleFar(task []byte, n byte) []byte {
	task[countAt] = n
	for i := range int(min(n, nearAncestors)) {
		copy(task[taskHead+i*ancestorSize:], task[taskHead:taskHead+ancestorSize])
	}
	far := append(make([]byte, 0, FarSize), task[:8]...)
	for i := range MaxAncestors - nearAncestors {
		far = append(far, task[taskHead:taskHead+ancestorSize]...)
		far[8+i*ancestorSize] += byte(i + 1)
	}
	return far
}

func TestDecodeFarAncestors(t *testing.T) {
	raw := sampleTask()
	far := sampleFar(raw, nearAncestors+2)
	task, err := DecodeTask(raw, far, "boot")
	if err != nil || len(task.Ancestors) != nearAncestors+2 || task.Ancestors[nearAncestors+1].Process.ExecID != 78 || !HasFar(raw) {
		t.Fatalf("%+v, %v", task, err)
	}
	far[0]++
	if _, err := DecodeTask(raw, far, "boot"); !errors.Is(err, ErrTorn) {
		t.Errorf("ancestors of another image: %v, want ErrTorn", err)
	}
	if _, err := DecodeTask(raw, nil, "boot"); !errors.Is(err, ErrMalformed) {
		t.Errorf("no far ancestors: %v, want ErrMalformed", err)
	}
	if near := sampleTask(); HasFar(near) {
		t.Error("a task with one ancestor has far ones")
	}
}

func TestDecodeTask(t *testing.T) {
	task, err := DecodeTask(sampleTask(), nil, "boot")
	if err != nil || task.Process.TGID != 42 || task.Process.ExecID != 77 || len(task.Ancestors) != 1 || task.Ancestors[0].Process.TGID != 41 {
		t.Fatalf("%+v, %v", task, err)
	}
	for name, breakIt := range map[string]func(b []byte){
		"two origins":    func(b []byte) { b[48] |= byte(Seeded) },
		"unknown flag":   func(b []byte) { b[51] = 0x80 },
		"17 ancestors":   func(b []byte) { b[52] = 17 },
		"empty ancestor": func(b []byte) { b[52] = 2 },
		"no process":     func(b []byte) { b[32] = 0 },
	} {
		b := sampleTask()
		breakIt(b)
		if _, err := DecodeTask(b, nil, "boot"); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v, want ErrMalformed", name, err)
		}
	}
	if _, err := DecodeTask(make([]byte, TaskSize), nil, "boot"); !errors.Is(err, ErrNoRecord) {
		t.Errorf("an empty record: %v, want ErrNoRecord", err)
	}
}

// sampleExec is a record of wire.h with both digests.
func sampleExec() []byte {
	b := make([]byte, ExecSize)
	e := binary.NativeEndian
	e.PutUint64(b[0:], 6)  // exec_id
	e.PutUint64(b[56:], 7) // script_token
	e.PutUint64(b[64:], 8) // script_wgen
	e.PutUint32(b[72:], imaSHA256+1)
	e.PutUint16(b[76:], veritySHA256)
	e.PutUint16(b[78:], 32)
	b[80], b[112] = 0xaa, 0xbb // verity, ima
	copy(b[144:], "./a\x00rest")
	return b
}

func TestDecodeExec(t *testing.T) {
	x, of, err := DecodeExec(sampleExec())
	if err != nil || of != 6 || x.ScriptToken != 7 || x.ScriptWGen != 8 || x.Path != "./a" || x.ScriptKnown || x.Verity == nil || x.Verity[0] != 0xaa || x.IMA == nil || x.IMA[0] != 0xbb {
		t.Errorf("%+v, %v", x, err)
	}
	for _, at := range []int{72, 76, 78} { // another algorithm, another length
		b := sampleExec()
		b[at]++
		if y, _, err := DecodeExec(b); err != nil || (y.IMA == nil) == (y.Verity == nil) {
			t.Errorf("byte %d: %+v, %v", at, y, err)
		}
	}
	full := sampleExec()
	for i := range full[144:] {
		full[144+i] = 'x'
	}
	if x, _, err := DecodeExec(full); err != nil || len(x.Path) != 256 {
		t.Errorf("a path without an end: %q, %v", x.Path, err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add(sampleTask())
	long := sampleTask()
	f.Add(append(long, sampleFar(long, MaxAncestors)...))
	f.Add(append(sampleTask(), make([]byte, BindingSize-TaskSize)...))
	f.Add(make([]byte, EventSize))
	f.Add(sampleExec())
	f.Add(make([]byte, CodeSize))
	f.Add(make([]byte, LookedSize))
	f.Add(make([]byte, HoldersSize))
	f.Add([]byte("token...written."))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if task, err := DecodeTask(raw[:min(len(raw), TaskSize)], raw[min(len(raw), TaskSize):], "b"); err == nil && (task.Process.ExecID == 0 || task.Process.TGID == 0 || len(task.Ancestors) > MaxAncestors) {
			t.Errorf("accepted %+v", task)
		}
		if b, _, err := DecodeBinding(raw, "b"); err == nil && (b.Task.Process.ExecID == 0 || b.Tier == 0) {
			t.Errorf("accepted %+v", b)
		}
		if e, err := DecodeEvent(raw, "b"); err == nil && (e.Process.TGID == 0 || e.Process.ExecID == 0 && e.Kind != EventRefused) {
			t.Errorf("accepted %+v", e)
		}
		if c, err := DecodeCode(raw); err == nil && len(c.Files) > MaxMappedFiles {
			t.Errorf("accepted %+v", c)
		}
		if x, _, err := DecodeExec(raw); err == nil && (len(x.Path) > 256 || x.ScriptKnown && x.Script.Inode == 0) {
			t.Errorf("accepted %+v", x)
		}
		if token, _, err := DecodeFileState(raw); err == nil && token == 0 {
			t.Error("accepted a file without a token")
		}
		if n, start, err := DecodeNow(raw); err == nil && n.Known != (start != 0) {
			t.Errorf("accepted %+v of %d", n, start)
		}
		if h, err := DecodeHolders(raw); (err == nil) != (len(raw) == HoldersSize) {
			t.Errorf("%d bytes are %+v, %v", len(raw), h, err)
		}
		_, _ = DecodeState(raw)
	})
}
