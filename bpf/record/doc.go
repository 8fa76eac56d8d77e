// SPDX-License-Identifier: Apache-2.0

// Package record is what the kernel's programs record, in Go's words, and the only reader of their
// bytes: one Decode for each structure of bpf/wire.h, where the layouts are drawn. It is pure: no
// system call, no BPF. What the kernel could not tell is zero or not Known, never a guess;
// bytes that break the layout are ErrMalformed.
package record
