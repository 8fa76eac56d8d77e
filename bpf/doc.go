// SPDX-License-Identifier: Apache-2.0

// Package bpf is the kernel boundary: programs that record in the kernel which image every
// process runs and who connected to the agent's socket, and typed look-ups of those records.
// It holds no policy.
//
//	fork, exec ──▶ tasks     (on the task)    ◀── Task, Key by pidfd
//	connect    ──▶ bindings  (on the socket)  ◀── Binding by accepted descriptor
//	ptrace, remote memory ─▶ tasks            ◀── Task.Integrity
//	exec       ──▶ execs     (on the task)    ◀── Exec: script, path, kernel's digests
//	open, truncate ─▶ inodes (on the inode)   ◀── FileState                            (T1)
//	mmap       ──▶ code      (on the task)    ◀── Code                                 (T1)
//	exec, tampering, moves ─▶ events (ring)   ◀── Events; those of callers wake the agent
//
// The tier (selectors.Tier) is the set of hooks that this kernel lets us load and that were
// seen to work: T1 by the kernel's security hooks, T2 by cgroup programs. Beside that, each
// feature (hooks.go) is attached if the kernel takes it; one that is refused leaves its fact
// unknown, which is never the same as clean or empty, and shows in Hooks. The layouts are
// drawn in wire.h and read by bpf/record; programs.txt tells what each program costs the verifier.
//
// One object serves x86-64 and arm64; only syscall.h knows the difference.
//
// Everything is pinned (package hooks): programs and records outlive the agent, and the next agent
// goes on with them when it was built with the same object, else it starts anew.
package bpf
