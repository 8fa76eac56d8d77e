// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * T2: who holds the client's end, when it has more references than its owner has descriptors.
 * A system call that waits with it (read(2) in a thread, poll(2)) holds one, as another process
 * does, and so does an io_uring that it is registered with.
 *
 * Hooks:  iter/task_file (5.8) walks over all descriptors of all processes, 0.1 to 2 ms
 *         iter/task walks over all threads: which of the owner's have used io_uring
 * State:  one question at a time in `held`. The file may go while it is being looked for, and its
 *         address come again, so the agent asks the socket again afterwards.
 * Not seen: a descriptor that moves from process to process during the walk; an io_uring whose
 *         maker was a thread that ended, and whose descriptor the owner has closed.
 */
#pragma once

static __always_inline int is_owner(const struct holders *h, struct task_struct *t)
{
	return t->tgid == h->tgid && t->group_leader->start_boottime == h->start;
}

/* By the beginning of its name, "[io_uring]"; another file of that name counts as one, too. */
static __always_inline int is_ring(struct file *f)
{
	char name[8] = {};
	bpf_probe_read_kernel_str(name, sizeof(name), BPF_CORE_READ(f, f_path.dentry, d_name.name));
	return name[0] == '[' && name[1] == 'i' && name[2] == 'o' && name[3] == '_' &&
	       name[4] == 'u';
}

SEC("iter/task_file")
int find_holders(struct bpf_iter__task_file *ctx)
{
	struct task_struct *t = ctx->task;
	struct file *f = ctx->file;
	__u32 zero = 0;
	struct holders *h = bpf_map_lookup_elem(&held, &zero);
	if (!t || !f || !h)
		return 0;
	int owner = is_owner(h, t);
	if (owner && is_ring(f))
		h->rings++;
	if ((__u64)f != h->file)
		return 0;
	if (owner) {
		h->own++;
	} else {
		h->others++;
		h->other_tgid = t->tgid;
	}
	return 0;
}

SEC("iter/task")
int find_rings(struct bpf_iter__task *ctx)
{
	struct task_struct *t = ctx->task;
	__u32 zero = 0;
	struct holders *h = bpf_map_lookup_elem(&held, &zero);
	if (t && h && is_owner(h, t) && bpf_core_field_exists(t->io_uring) && t->io_uring)
		h->rings++;
	return 0;
}
