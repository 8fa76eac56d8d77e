// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Hook:   tp_btf/sched_process_exec (5.5); runs in the new image, after the point of no
 *         return, with the new credentials, when the caller is its group's only thread
 * State:  image A, execve → image B with A pushed as ancestors[0]
 * Also:   tp_btf/sched_prepare_exec (6.10) or fentry/security_bprm_creds_for_exec: execve from a
 *         thread that is not the leader makes that thread the leader, and storage sits on
 *         the thread, so the leader's record is copied to it first.
 * Events: one, which wakes the reader only if the process is bound; else the reader polls.
 */
#pragma once

/* Makes room at the front of a list; the last one falls out. */
static __always_inline void shift(struct ancestor *list, int n)
{
#pragma unroll
	for (int i = n - 1; i > 0; i--) {
		list[i] = list[i - 1];
		barrier(); /* else the compiler loads all of them before it stores any */
	}
}

/* The last of the near ancestors becomes the first of the far ones of image id. */
static __always_inline void push_far(struct task_struct *t, struct task_record *r, __u64 old,
				     __u64 id)
{
	struct far_ancestors *f = bpf_task_storage_get(&far, t, 0, CREATE);
	if (!f || (r->ancestor_count > NEAR && f->exec_id != old)) {
		cut_lineage(r);
		return;
	}
	*(volatile __u64 *)&f->exec_id = 0;
	barrier();
	shift(f->list, ANCESTORS - NEAR);
	f->list[0] = r->ancestors[NEAR - 1];
	if (r->ancestor_count >= ANCESTORS)
		r->flags |= TRUNCATED;
	else
		r->ancestor_count++;
	barrier();
	*(volatile __u64 *)&f->exec_id = id;
}

/* The old image becomes the nearest ancestor, in the process where it was last seen. */
static __always_inline void push_ancestor(struct task_struct *t, struct task_record *r, __u64 old,
					  __u64 id)
{
	if (r->ancestor_count < NEAR)
		r->ancestor_count++;
	else
		push_far(t, r, old, id);
	shift(r->ancestors, NEAR);

	struct ancestor *a = &r->ancestors[0];
	a->exec_id = old;
	__u32 forked = r->flags & FORKED;
	a->tgid = forked ? r->forker_tgid : r->tgid;
	a->start = forked ? r->forker_start : r->start;
	a->ino = r->exe.ino;
	a->dev = r->exe.dev;
	a->flags = (r->flags & ~FORKED) | (forked ? 0 : REPLACED_IN_PLACE);
}

/* What does not fit into the task's record: of a script, or with a digest of the kernel's. */
static __always_inline void note_facts(struct task_struct *t, struct linux_binprm *bprm,
				       struct task_record *r, __u64 exec_id, __u32 flags)
{
	struct exec_facts *f = bpf_task_storage_get(&starting, t, 0, 0);
	if (!(flags & SCRIPT) && !(f && (f->ima_algorithm || f->verity_size))) {
		if (r->noted)
			bpf_task_storage_delete(&execs, t);
		r->noted = 0;
	} else {
		struct exec_info *info = bpf_task_storage_get(&execs, t, 0, CREATE);
		if (!info) {
			record_lost();
			return;
		}
		*(volatile __u64 *)&info->exec_id = 0;
		barrier();
		if (f)
			__builtin_memcpy(&info->facts, f, sizeof(*f));
		else
			__builtin_memset(&info->facts, 0, sizeof(info->facts));
		if (bpf_probe_read_kernel_str(info->path, sizeof(info->path), bprm->filename) < 0)
			info->path[0] = 0;
		barrier();
		*(volatile __u64 *)&info->exec_id = exec_id;
		r->noted = 1;
	}
	if (f)
		bpf_task_storage_delete(&starting, t);
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(on_exec, struct task_struct *t, pid_t old_pid, struct linux_binprm *bprm)
{
	struct sensor_state *s = sensor();
	if (!s)
		return 0;
	struct task_record *r = bpf_task_storage_get(&tasks, t, 0, CREATE);
	if (!r) {
		record_lost();
		return 0;
	}
	__u32 flags = OBSERVED;
	if (bprm->interp != bprm->filename)
		flags |= SCRIPT;
	__u64 old = r->exec_id, id = __sync_fetch_and_add(&s->next_exec_id, 1);
	note_facts(t, bprm, r, id, flags);
	*(volatile __u64 *)&r->exec_id = 0; /* readers see no image while it changes */
	barrier();
	if (old) {
		push_ancestor(t, r, old, id);
		flags |= r->flags & (TRUNCATED | LINEAGE_UNKNOWN);
	} else {
		flags |= LINEAGE_UNKNOWN;
	}
	read_executable(&r->exe, bprm->file->f_inode);
	if (BPF_CORE_READ_BITFIELD_PROBED(bprm, secureexec))
		flags |= SECURE_EXEC;
	r->flags = flags | file_flags(&r->exe);
	r->tgid = t->tgid;
	r->start = t->start_boottime;
	r->forker_tgid = 0;
	r->forker_start = 0;
	r->cgroup = bpf_get_current_cgroup_id();
	r->uid = t->cred->euid.val;
	r->gid = t->cred->egid.val;
	__u32 bound = r->bound;
	r->bound = 0;
	barrier();
	*(volatile __u64 *)&r->exec_id = id;
	if (t->ptrace)
		tamper(r, PTRACE_ATTACHED, t->parent->tgid, 0);
	emit(r, EVENT_EXEC, bound ? BPF_RB_FORCE_WAKEUP : BPF_RB_NO_WAKEUP);
	return 0;
}

static __always_inline void carry_to_thread(struct task_struct *t)
{
	if (t->pid == t->tgid)
		return;
	struct task_record *leader = bpf_task_storage_get(&tasks, t->group_leader, 0, 0);
	if (!leader)
		return;
	struct task_record *r = bpf_task_storage_get(&tasks, t, 0, CREATE);
	if (!r) {
		record_lost();
		return;
	}
	__builtin_memcpy(r, leader, sizeof(*r));
	struct far_ancestors *f = far_of(t->group_leader, leader);
	if (!f)
		return;
	struct far_ancestors *own = bpf_task_storage_get(&far, t, 0, CREATE);
	if (own)
		__builtin_memcpy(own, f, sizeof(*own));
}

SEC("tp_btf/sched_prepare_exec")
int BPF_PROG(on_prepare_exec, struct task_struct *t, struct linux_binprm *bprm)
{
	carry_to_thread(t);
	return 0;
}

SEC("fentry/security_bprm_creds_for_exec")
int BPF_PROG(on_creds_for_exec, struct linux_binprm *bprm)
{
	carry_to_thread(bpf_get_current_task_btf());
	return 0;
}
