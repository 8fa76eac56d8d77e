// SPDX-License-Identifier: Apache-2.0

package record

import (
	"bytes"
	"fmt"

	"github.com/assay-id/assay/selectors"
)

// ExecInfo is what is known of an execve beside the task's record. What the kernel could not
// tell is zero.
type ExecInfo struct {
	// Path was given to execve, cut to 255 bytes: a name, relative to a directory that is not known.
	Path string
	// Script is the file given to execve, if ScriptKnown and the task's flags say Script.
	Script      File
	ScriptKnown bool
	// ScriptToken and ScriptWGen are the script's as bpf.Sensor.FileState tells them, at a moment when nobody
	// could have it open for writing. Zero ScriptToken: unknown.
	ScriptToken, ScriptWGen uint64
	// IMA is the SHA-256 that the kernel computed of the executable's content. Verity is the
	// fs-verity digest (SHA-256 of a Merkle tree's descriptor), for files that are sealed by it.
	IMA, Verity *selectors.Digest
}

// The digest algorithm of fs-verity and of IMA that is reported.
const (
	veritySHA256 = 1 // FS_VERITY_HASH_ALG_SHA256
	imaSHA256    = 4 // HASH_ALGO_SHA256
)

// DecodeExec reads struct exec_info, and which execve it is of.
func DecodeExec(raw []byte) (x ExecInfo, execID uint64, err error) {
	if len(raw) != ExecSize {
		return ExecInfo{}, 0, fmt.Errorf("%w: an execve of %d bytes, want %d", ErrMalformed, len(raw), ExecSize)
	}
	r := reader(raw)
	execID = r.u64()
	x = ExecInfo{Script: decodeFile(&r), ScriptToken: r.u64(), ScriptWGen: r.u64()}
	x.ScriptKnown = x.Script.Inode != 0
	ima, verity := int32(r.u32()), r.u32()
	if verity == veritySHA256|32<<16 {
		d := selectors.Digest(r[:32])
		x.Verity = &d
	}
	r = r[32:]
	if ima == imaSHA256+1 {
		d := selectors.Digest(r[:32])
		x.IMA = &d
	}
	r = r[32:]
	path, _, _ := bytes.Cut(r, []byte{0})
	x.Path = string(path)
	return x, execID, nil
}

// MappedFile is a file that a process has mapped as code, as it was when it was mapped first.
type MappedFile struct {
	Inode  uint64
	Device uint32 // as File.Device
	// Token and WGen are those of bpf.Sensor.FileState.
	Token, WGen uint64
	// Writers says that somebody had the file open for writing: its content can not be told.
	Writers bool
}

// Code is what a process executes: its program, its libraries, and memory without a file.
type Code struct {
	// Files are distinct, in the order in which they were mapped; also those that were unmapped.
	Files []MappedFile
	// Overflow says that there are more files than are kept (MaxMappedFiles).
	Overflow bool
	// AnonymousExec says that memory which is no unchanged file was made executable (JIT, or an
	// attack). Executable stacks are not seen.
	AnonymousExec bool
	// Known is false when the hooks did not see the image from its start (T1 only).
	Known bool
}

// DecodeFileState reads struct inode_state; ErrNoRecord if it is empty.
func DecodeFileState(raw []byte) (token, wgen uint64, err error) {
	if len(raw) != FileStateSize {
		return 0, 0, fmt.Errorf("%w: a file's state of %d bytes", ErrMalformed, len(raw))
	}
	r := reader(raw)
	if token = r.u64(); token == 0 {
		return 0, 0, ErrNoRecord
	}
	return token, r.u64(), nil
}

// DecodeCode reads struct code_record.
func DecodeCode(raw []byte) (Code, error) {
	if len(raw) != CodeSize {
		return Code{}, fmt.Errorf("%w: mapped code of %d bytes, want %d", ErrMalformed, len(raw), CodeSize)
	}
	r := reader(raw)
	count, flags := r.u32(), r.u32()
	if flags&^3 != 0 {
		return Code{}, fmt.Errorf("%w: mapped code with flags %#x", ErrMalformed, flags)
	}
	c := Code{Overflow: flags&1 != 0 || count > MaxMappedFiles, AnonymousExec: flags&2 != 0, Known: true}
	for range min(count, MaxMappedFiles) {
		m := MappedFile{Inode: r.u64(), Token: r.u64(), WGen: r.u64(), Device: r.u32(), Writers: r.u32() != 0}
		if m.Inode == 0 { // being written
			return Code{}, nil
		}
		c.Files = append(c.Files, m)
	}
	return c, nil
}
