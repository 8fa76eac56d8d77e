// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * What other processes do to a process: debugging it, reading or writing its memory, taking
 * its descriptors. State: integrity of the task's record, sticky.
 *
 * T1, lsm/… or fentry/security_…, complete:
 *   ptrace_access_check  before any access with the rights of a debugger (PTRACE_MODE_ATTACH),
 *                        also opening /proc/PID/mem, process_vm_*, pidfd_getfd; reading what ps
 *                        shows is PTRACE_MODE_READ and does not count
 *   ptrace_traceme       a process asks its parent to trace it
 * T2, 6.14 (arguments of the tracepoint):
 *   tp_btf/mmap_lock_start_locking  every access to another's memory takes that memory's lock;
 *                        complete for writes. Needs mm->owner (CONFIG_MEMCG)
 *   tp_btf/signal_generate  a process that is traced tells its tracer that it stopped; unseen
 *                        if the tracer declined to hear of it, so it proves only what it shows
 * Both tiers: an execve under a tracer.
 */
#pragma once

#define PTRACE_MODE_ATTACH 2
#define SIGCHLD 17

static __always_inline __u64 exec_id_of(struct task_struct *leader)
{
	struct task_record *r = bpf_task_storage_get(&tasks, leader, 0, 0);
	return r ? r->exec_id : 0;
}

static __always_inline void accessed(struct task_struct *child, unsigned int mode)
{
	if (!(mode & PTRACE_MODE_ATTACH))
		return;
	struct task_record *r = bpf_task_storage_get(&tasks, child->group_leader, 0, 0);
	if (!r)
		return;
	struct task_struct *t = bpf_get_current_task_btf();
	__u32 how = ACCESSED;
	switch (current_access(t)) {
	case ATTACH:
		how = PTRACE_ATTACHED;
		break;
	case READ_VM:
		how = MEMORY_READ;
		break;
	case WRITE_VM:
		how = MEMORY_WRITTEN;
		break;
	case TAKE_DESCRIPTOR:
		how = DESCRIPTOR_TAKEN;
		break;
	case OPEN:
		how = MEMORY_OPENED;
		break;
	default:
		break;
	}
	tamper(r, how, t->tgid, exec_id_of(t->group_leader));
}

static __always_inline void traced_by(struct task_struct *parent)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct task_record *r = bpf_task_storage_get(&tasks, t->group_leader, 0, 0);
	if (r)
		tamper(r, PTRACE_ATTACHED, parent->tgid, exec_id_of(parent->group_leader));
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(on_ptrace_access, struct task_struct *child, unsigned int mode, int ret)
{
	if (!ret)
		accessed(child, mode);
	return ret;
}

SEC("lsm/ptrace_traceme")
int BPF_PROG(on_traceme, struct task_struct *parent, int ret)
{
	if (!ret)
		traced_by(parent);
	return ret;
}

SEC("fentry/security_ptrace_access_check")
int BPF_PROG(see_ptrace_access, struct task_struct *child, unsigned int mode)
{
	accessed(child, mode);
	return 0;
}

SEC("fentry/security_ptrace_traceme")
int BPF_PROG(see_traceme, struct task_struct *parent)
{
	traced_by(parent);
	return 0;
}

SEC("tp_btf/mmap_lock_start_locking")
int BPF_PROG(on_mmap_lock, struct mm_struct *mm, _Bool write)
{
	struct task_struct *t = bpf_get_current_task_btf();
	if (mm == t->mm || !t->mm || !mm)
		return 0;
	struct task_struct *owner = mm->owner;
	if (!owner)
		return 0;
	struct task_record *r = bpf_task_storage_get(&tasks, owner->group_leader, 0, 0);
	if (!r || r->tgid == t->tgid)
		return 0; /* a fork or an execve makes memory of its own */
	__u32 how = MEMORY_WRITTEN;
	switch (current_access(t)) {
	case READ:
	case READ_VM:
	case OPEN:
		return 0;
	case WRITE:
		if (write)
			return 0; /* a move to another cpuset; content is written under the reader's
				     lock */
		break;
	case ATTACH:
		how |= PTRACE_ATTACHED;
		break;
	default:
		break;
	}
	tamper(r, how, t->tgid, exec_id_of(t->group_leader));
	return 0;
}

SEC("tp_btf/signal_generate")
int BPF_PROG(on_signal, int sig)
{
	if (sig != SIGCHLD)
		return 0;
	struct task_struct *t = bpf_get_current_task_btf();
	if (t->ptrace)
		traced_by(t->parent);
	return 0;
}

SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(on_cgroup_attach, struct cgroup *to, const char *path, struct task_struct *t)
{
	struct task_record *r = bpf_task_storage_get(&tasks, t->group_leader, 0, 0);
	if (r && r->bound)
		emit(r, EVENT_MOVED, BPF_RB_FORCE_WAKEUP);
	return 0;
}
