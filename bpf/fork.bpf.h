// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Hook:   tp_btf/sched_process_fork; runs in the parent before the child first runs (5.5)
 * State:  a new process runs its parent's image: it gets a copy of the parent's record with
 *         its own number and start, and remembers who forked it; and of far ancestors and of
 *         what is known of the execve beside that, if there is anything.
 * A parent without a record leaves the child without one: unknown stays unknown.
 */
#pragma once

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork, struct task_struct *parent, struct task_struct *child)
{
	if (child->pid != child->tgid)
		return 0; /* a thread */
	struct task_record *p = bpf_task_storage_get(&tasks, parent->group_leader, 0, 0);
	if (!p || !p->exec_id)
		return 0;
	struct task_record *c = bpf_task_storage_get(&tasks, child, p, CREATE);
	if (!c) {
		record_lost();
		return 0;
	}
	c->tgid = child->tgid;
	c->start = child->start_boottime;
	c->forker_tgid = p->tgid;
	c->forker_start = p->start;
	c->flags |= FORKED;
	c->bound = 0;
	struct far_ancestors *f = far_of(parent->group_leader, p);
	if (p->ancestor_count > NEAR && (!f || !bpf_task_storage_get(&far, child, f, CREATE)))
		cut_lineage(c);
	struct exec_info *info =
		p->noted ? bpf_task_storage_get(&execs, parent->group_leader, 0, 0) : 0;
	if (info && !bpf_task_storage_get(&execs, child, info, CREATE))
		record_lost();
	return 0;
}
