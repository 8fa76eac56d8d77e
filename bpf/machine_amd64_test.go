// SPDX-License-Identifier: Apache-2.0

package bpf

const elfMachine = 62 // EM_X86_64

// Machine code of programs that do one thing only, much faster than anything with a runtime.
var (
	// executes itself: execve(argv[0], argv, environ), for ever.
	execsItself = []byte("\x48\x8b\x7c\x24\x08\x48\x8d\x74\x24\x08\x48\x8b\x04\x24\x48\x8d\x54\xc4\x10\xb8\x3b\x00\x00\x00\x0f\x05" +
		"\xbf\x01\x00\x00\x00\xb8\x3c\x00\x00\x00\x0f\x05")
	// forks until the kernel refuses, as do its children, then pauses: a fork bomb.
	forksItself = []byte("\xb8\x39\x00\x00\x00\x0f\x05\x85\xc0\x79\xf5\xb8\x22\x00\x00\x00\x0f\x05\xeb\xf7")
	// writes its first byte to descriptor 3 by the number that write(2) has for 32-bit programs,
	// int 0x80, and exits with 0 if that was written.
	writes32 = []byte("\xb8\x04\x00\x00\x00\xbb\x03\x00\x00\x00\xb9\x78\x00\x40\x00\xba\x01\x00\x00\x00\xcd\x80\x89\xc3\xff\xcb\xb8\x01\x00\x00\x00\xcd\x80")
)
