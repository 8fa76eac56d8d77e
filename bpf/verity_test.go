// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/assay-id/assay/bpf/hooks"
	"github.com/assay-id/assay/selectors"
)

// testVerity: the digest of a file that fs-verity seals. The image is an ext4 file system with
// that feature, which the guests bring along.
func testVerity(t *testing.T, s *Sensor, image string) {
	dir := mountLoop(t, image)
	raw, err := os.ReadFile("/proc/self/exe")
	check(err)
	path := filepath.Join(dir, "program")
	check(os.WriteFile(path, raw, 0o755))
	seal(path)
	if f, err := os.OpenFile(path, os.O_WRONLY, 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("opening a sealed file for writing: %v, %v", f, err)
	}
	p := startFile(t, path, "wait")
	defer p.stop()
	p.word(t)
	info := mustExec(t, s, p.pidfd)
	on := slices.ContainsFunc(s.Hooks(), func(h hooks.Hook) bool { return h.Program == "on_verity" && h.State == hooks.On })
	if want := verityDigest(raw); on && (info.Verity == nil || *info.Verity != want) || !on && info.Verity != nil {
		t.Errorf("fs-verity digest %v, want %v (hook on: %v)", info.Verity, want, on)
	}
	t.Logf("fs-verity hook on: %v, digest %v", on, info.Verity)
}

// mountLoop mounts a writable copy of a file system's image until the test ends.
func mountLoop(t *testing.T, image string) string {
	t.Helper()
	raw, err := os.ReadFile(image)
	check(err)
	backing, err := os.Create(filepath.Join(t.TempDir(), "image"))
	check(err)
	defer backing.Close()
	_, err = backing.Write(raw)
	check(err)
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	check(err)
	defer control.Close()
	n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
	check(err)
	device := "/dev/loop" + strconv.Itoa(n)
	loop, err := os.OpenFile(device, os.O_RDWR, 0)
	check(err)
	defer loop.Close()
	check(unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_SET_FD, int(backing.Fd())))
	dir := t.TempDir()
	check(unix.Mount(device, dir, "ext4", 0, ""))
	t.Cleanup(func() {
		check(unix.Unmount(dir, unix.MNT_DETACH))
		loop, err := os.OpenFile(device, os.O_RDWR, 0)
		check(err)
		defer loop.Close()
		check(unix.IoctlSetInt(int(loop.Fd()), unix.LOOP_CLR_FD, 0))
	})
	return dir
}

const verityBlock = 4096

// seal makes a file read-only and its content checked at every read (linux/fsverity.h).
func seal(path string) {
	f, err := os.Open(path)
	check(err)
	defer f.Close()
	arg := unix.FsverityEnableArg{Version: 1, Hash_algorithm: unix.FS_VERITY_HASH_ALG_SHA256, Block_size: verityBlock}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, f.Fd(), unix.FS_IOC_ENABLE_VERITY, uintptr(unsafe.Pointer(&arg))); errno != 0 {
		panic(errno)
	}
}

// verityDigest is the digest that fs-verity gives to a file, computed from its definition
// (Documentation/filesystems/fsverity.rst, "Merkle tree" and "fs-verity descriptor").
func verityDigest(data []byte) selectors.Digest {
	level := hashBlocks(data)
	for len(level) > sha256.Size {
		level = hashBlocks(level)
	}
	d := make([]byte, 256)      // struct fsverity_descriptor
	d[0], d[1], d[2] = 1, 1, 12 // version, SHA-256, log2 of the block's size
	binary.LittleEndian.PutUint64(d[8:], uint64(len(data)))
	copy(d[16:], level)
	return sha256.Sum256(d)
}

// hashBlocks is the digests of the blocks of data, the last one padded with zeros.
func hashBlocks(data []byte) []byte {
	var out []byte
	for block := range slices.Chunk(data, verityBlock) {
		sum := sha256.Sum256(append(slices.Clone(block), make([]byte, verityBlock-len(block))...))
		out = append(out, sum[:]...)
	}
	return out
}
