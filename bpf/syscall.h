// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * What a task is about to do to another one, by the number of its system call: the hooks that
 * see the access do not see its direction. x86-64 and arm64; anything else is OTHER, which
 * callers take as the worst: also calls by 32-bit numbers, which a 64-bit program may make, too
 * (x86: int 0x80, where 4 is write(2) and not stat(2)).
 */
#pragma once

#define PF_IO_WORKER 0x10
#define TS_COMPAT 2           /* x86: this call is by a 32-bit number */
#define TIF_32BIT (1ul << 22) /* arm64: this is a 32-bit program */

/* The second argument of the system call that the current task makes. */
static __always_inline __u64 second_argument(struct task_struct *t)
{
	struct pt_regs___x86 *x86 = (void *)bpf_task_pt_regs(t);
	struct pt_regs___arm64 *arm64 = (void *)x86;
	if (bpf_core_field_exists(x86->orig_ax))
		return BPF_CORE_READ(x86, si);
	if (bpf_core_field_exists(arm64->syscallno))
		return BPF_CORE_READ(arm64, regs[1]);
	return 0;
}

enum access { OTHER, READ, WRITE, ATTACH, READ_VM, WRITE_VM, TAKE_DESCRIPTOR, OPEN };

static __always_inline enum access access_x86(unsigned long nr)
{
	switch (nr) {
	case 0:   /* read */
	case 17:  /* pread64 */
	case 19:  /* readv */
	case 295: /* preadv */
	case 327: /* preadv2 */
	case 4: /* stat, lstat, newfstatat, statx, readlink(at), access, getdents64: names in /proc
		 */
	case 6:
	case 262:
	case 332:
	case 89:
	case 267:
	case 21:
	case 269:
	case 217:
	case 256: /* migrate_pages, move_pages, swapoff, process_mrelease: content stays */
	case 279:
	case 168:
	case 448:
		return READ;
	case 1:
		return WRITE;
	case 101:
		return ATTACH;
	case 310:
		return READ_VM;
	case 311:
		return WRITE_VM;
	case 438:
		return TAKE_DESCRIPTOR;
	case 2: /* open, openat, openat2 */
	case 257:
	case 437:
		return OPEN;
	}
	return OTHER;
}

static __always_inline enum access access_arm64(long nr)
{
	switch (nr) {
	case 63: /* read, pread64, readv, preadv, preadv2 */
	case 67:
	case 65:
	case 69:
	case 286:
	case 79: /* newfstatat, statx, readlinkat, faccessat, getdents64 */
	case 291:
	case 78:
	case 48:
	case 61:
	case 238: /* migrate_pages, move_pages, swapoff, process_mrelease */
	case 239:
	case 225:
	case 448:
		return READ;
	case 64:
		return WRITE;
	case 117:
		return ATTACH;
	case 270:
		return READ_VM;
	case 271:
		return WRITE_VM;
	case 438:
		return TAKE_DESCRIPTOR;
	case 56:
	case 437:
		return OPEN;
	}
	return OTHER;
}

static __always_inline int is_32bit(struct task_struct *t)
{
	if (bpf_core_field_exists(t->thread_info.status))
		return BPF_CORE_READ(t, thread_info.status) & TS_COMPAT;
	return !!(BPF_CORE_READ(t, thread_info.flags) & TIF_32BIT);
}

static __always_inline enum access current_access(struct task_struct *t)
{
	struct pt_regs___x86 *x86 = (void *)bpf_task_pt_regs(t);
	struct pt_regs___arm64 *arm64 = (void *)x86;
	if (BPF_CORE_READ(t, flags) & PF_IO_WORKER || is_32bit(t))
		return OTHER; /* a worker's registers are of another call */
	if (bpf_core_field_exists(x86->orig_ax))
		return access_x86(BPF_CORE_READ(x86, orig_ax));
	if (bpf_core_field_exists(arm64->syscallno))
		return access_arm64(BPF_CORE_READ(arm64, syscallno));
	return OTHER;
}
