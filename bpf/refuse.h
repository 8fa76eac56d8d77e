// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/* What the hooks share that refuse: who acts, and the report of what was refused. */
#pragma once

static __always_inline struct sensor_settings *agreed(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&settings, &zero);
}

static __always_inline int is_agent(void)
{
	struct sensor_settings *s = agreed();
	return s && s->agent_tgid == (__u32)(bpf_get_current_pid_tgid() >> 32);
}

/* Counts, reports and refuses what the current process tried. The reader is not woken: who
 * tries all the time would make the agent work all the time. */
static __always_inline int refuse(__u32 what)
{
	struct sensor_state *s = sensor();
	if (s)
		__sync_fetch_and_add(&s->refused, 1);
	struct event *e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e) {
		if (s)
			__sync_fetch_and_add(&s->events_lost, 1);
		return -EPERM;
	}
	struct task_struct *t = bpf_get_current_task_btf();
	struct task_record *r = bpf_task_storage_get(&tasks, t->group_leader, 0, 0);
	__builtin_memset(e, 0, sizeof(*e));
	if (r) {
		e->exec_id = r->exec_id;
		e->start = r->start;
		e->ino = r->exe.ino;
		e->dev = r->exe.dev;
		e->flags = r->flags;
	}
	e->time = bpf_ktime_get_boot_ns();
	e->cgroup = bpf_get_current_cgroup_id();
	e->tgid = t->tgid;
	e->uid = t->cred->euid.val;
	e->kind = EVENT_REFUSED;
	e->what = what;
	bpf_ringbuf_submit(e, BPF_RB_NO_WAKEUP);
	return -EPERM;
}
