// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* What the hooks share: reading tasks, files and callers. No state of its own. */
#pragma once

#define TMPFS_MAGIC 0x01021994

#define CREATE BPF_LOCAL_STORAGE_GET_F_CREATE

static __always_inline void record_lost(void)
{
	struct sensor_state *s = sensor();
	if (s)
		__sync_fetch_and_add(&s->records_lost, 1);
}

/* i is a pointer that the verifier knows, so these are plain loads. */
static __always_inline void read_executable(struct executable *x, struct inode *i)
{
	x->ino = i->i_ino;
	x->size = i->i_size;
	x->magic = i->i_sb->s_magic;
	x->dev = i->i_sb->s_dev;
	x->generation = i->i_generation;
	x->nlink = i->i_nlink;

	struct inode___6_6 *i66 = (void *)i;
	struct inode___6_1 *i61 = (void *)i;
	if (bpf_core_field_exists(i->i_ctime_sec)) {
		x->ctime_sec = i->i_ctime_sec;
		/* bit 31 says that somebody asked for it */
		x->ctime_nsec = i->i_ctime_nsec & 0x7fffffff;
	} else if (bpf_core_field_exists(i66->__i_ctime)) {
		x->ctime_sec = i66->__i_ctime.tv_sec;
		x->ctime_nsec = i66->__i_ctime.tv_nsec;
	} else {
		x->ctime_sec = i61->i_ctime.tv_sec;
		x->ctime_nsec = i61->i_ctime.tv_nsec;
	}
}

static __always_inline __u32 file_flags(const struct executable *x)
{
	if (x->nlink)
		return 0;
	return DELETED | (x->magic == TMPFS_MAGIC ? MEMORY_FILE : 0);
}

/* What is further away than the record holds is not known: visibly. */
static __always_inline void cut_lineage(struct task_record *r)
{
	record_lost();
	r->ancestor_count = NEAR;
	r->flags |= TRUNCATED;
}

/* The far ancestors of the record of a process, if it has any. */
static __always_inline struct far_ancestors *far_of(struct task_struct *leader,
						    const struct task_record *r)
{
	if (r->ancestor_count <= NEAR)
		return 0;
	struct far_ancestors *f = bpf_task_storage_get(&far, leader, 0, 0);
	return f && f->exec_id == r->exec_id ? f : 0;
}

/* The current process as a caller; exec_id 0 when it has no record. */
static __always_inline void read_caller(struct caller *c, struct task_struct *t,
					const struct task_record *r)
{
	if (r) {
		__builtin_memcpy(&c->task, r, sizeof(c->task));
		struct far_ancestors *f = far_of(t->group_leader, r);
		if (f)
			__builtin_memcpy(&c->far, f, sizeof(c->far));
		else if (r->ancestor_count > NEAR)
			cut_lineage(&c->task);
	} else {
		c->task.exec_id = 0;
	}
	c->cgroup = bpf_get_current_cgroup_id();
	c->time = bpf_ktime_get_boot_ns();
	read_current_credentials(&c->creds, t);
}

/* A change of a process that is bound wakes the agent; everything else waits to be polled. */
static __always_inline void emit(const struct task_record *r, __u32 kind, __u64 wake)
{
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		struct sensor_state *s = sensor();
		if (s)
			__sync_fetch_and_add(&s->events_lost, 1);
		return;
	}
	e->exec_id = r->exec_id;
	e->start = r->start;
	e->time = bpf_ktime_get_boot_ns();
	e->parent_exec_id = r->ancestors[0].exec_id;
	e->cgroup = r->cgroup;
	e->ino = r->exe.ino;
	e->dev = r->exe.dev;
	e->tgid = r->tgid;
	e->uid = r->uid;
	e->flags = r->flags;
	e->kind = kind;
	e->tamper = r->integrity.flags;
	bpf_ringbuf_submit(e, wake);
}

/* Another process, `by`, did something to the process of the record. */
static __always_inline void tamper(struct task_record *r, __u32 how, __u32 by_tgid,
				   __u64 by_exec_id)
{
	r->integrity.by_tgid = by_tgid;
	r->integrity.by_exec_id = by_exec_id;
	__sync_fetch_and_add(&r->integrity.count, 1);
	if ((r->integrity.flags & how) == how)
		return;
	__sync_fetch_and_or(&r->integrity.flags, how);
	if (r->bound)
		emit(r, EVENT_TAMPER, BPF_RB_FORCE_WAKEUP);
}
