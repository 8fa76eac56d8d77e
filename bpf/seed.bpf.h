// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Hook:   iter/task (5.8), run once after the other hooks are attached, when the maps are new
 * State:  a process without a record gets one from what the kernel says now, marked SEEDED;
 *         its ancestors are its living parents. A record that exists is never touched: the
 *         new one is inserted whole or not at all.
 * Clock:  seed_time, CLOCK_BOOTTIME in milliseconds, is a part of the ids.
 */
#pragma once

#define PF_KTHREAD 0x200000

static __always_inline __u64 seeded_id(const struct sensor_state *s, __u32 tgid)
{
	return SEEDED_EXEC_ID | s->seed_time << 22 | tgid;
}

static __always_inline void seed_ancestors(struct caller *c, struct task_struct *t,
					   const struct sensor_state *s)
{
	struct task_record *r = &c->task;
	__u32 n = 0;
#pragma unroll
	for (int i = 0; i < ANCESTORS; i++) {
		t = BPF_CORE_READ(t, real_parent, group_leader);
		__u32 tgid = BPF_CORE_READ(t, tgid);
		if (!tgid)
			break;
		struct ancestor *a = i < NEAR ? &r->ancestors[i] : &c->far.list[i - NEAR];
		struct inode *inode = BPF_CORE_READ(t, mm, exe_file, f_inode);
		a->exec_id = seeded_id(s, tgid);
		a->start = BPF_CORE_READ(t, start_boottime);
		a->ino = BPF_CORE_READ(inode, i_ino);
		a->dev = BPF_CORE_READ(inode, i_sb, s_dev);
		a->tgid = tgid;
		a->flags = SEEDED;
		n++;
	}
	r->ancestor_count = n;
	if (n == ANCESTORS && BPF_CORE_READ(t, real_parent, tgid))
		r->flags |= TRUNCATED;
}

/* The host's namespaces are the initial ones, which process 2 (kthreadd) never leaves. */
static __always_inline void note_host(struct sensor_state *s, struct task_struct *t)
{
	if (t->tgid == 2 && t->flags & PF_KTHREAD)
		READ_NAMESPACES(PLAIN, &s->host, t, t->real_cred);
}

SEC("iter/task")
int seed(struct bpf_iter__task *ctx)
{
	struct task_struct *t = ctx->task;
	struct sensor_state *s = sensor();
	__u32 zero = 0;
	struct caller *c = bpf_map_lookup_elem(&scratch, &zero);
	if (!t || !s || !c || t->pid != t->tgid)
		return 0;
	note_host(s, t);
	if (bpf_task_storage_get(&tasks, t, 0, 0))
		return 0;
	struct task_record *r = &c->task;
	__builtin_memset(r, 0, sizeof(*r));
	__builtin_memset(&c->far, 0, sizeof(c->far));
	r->exec_id = seeded_id(s, t->tgid);
	r->start = t->start_boottime;
	r->tgid = t->tgid;
	r->flags = SEEDED;
	r->cgroup = BPF_CORE_READ(t, cgroups, dfl_cgrp, kn, id);
	r->uid = BPF_CORE_READ(t, cred, euid.val);
	r->gid = BPF_CORE_READ(t, cred, egid.val);
	struct inode *inode = t->mm->exe_file->f_inode; /* reads as 0 below a 0 */
	if (inode) {
		read_executable(&r->exe, inode);
		r->flags |= file_flags(&r->exe);
	}
	seed_ancestors(c, t, s);
	c->far.exec_id = r->exec_id;
	if (r->ancestor_count > NEAR && !bpf_task_storage_get(&far, t, &c->far, CREATE))
		cut_lineage(r);
	if (bpf_task_storage_get(&tasks, t, r, CREATE))
		__sync_fetch_and_add(&s->seeded, 1);
	else
		record_lost();
	return 0;
}

/* The answer to a question about one process, for people: one walk over all tasks, 1 ms. */
SEC("iter/task")
int look(struct bpf_iter__task *ctx)
{
	struct task_struct *t = ctx->task;
	__u32 zero = 0;
	struct looked *l = bpf_map_lookup_elem(&looked, &zero);
	if (t && l && t->pid == t->tgid && t->tgid == l->tgid)
		READ_NOW(PLAIN, &l->now, t);
	return 0;
}
