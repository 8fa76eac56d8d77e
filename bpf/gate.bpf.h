// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * T1, lsm/… only, opt-in: connect() to the agent's socket is refused with EPERM, unless it
 * comes from one of some cgroups (v2) or from below one.
 *
 *   unix_stream_connect  looks for the caller's cgroup and those above it in `admitted`
 *   cgroup_mkdir         runs before a process can enter the new cgroup: if its path is one of
 *                        `doors`, its id is admitted
 *   cgroup_rmdir         a cgroup that is no more; its id is not used again
 *
 * State: `doors` and the ids of the cgroups that were there are written by the agent at its
 * start. An admitted cgroup that lies deeper than LEVELS is not found: refused.
 * Minimum kernel 5.7.
 */
#pragma once

#define LEVELS 32

static __always_inline int is_admitted(void)
{
	for (int level = 0; level < LEVELS; level++) {
		__u64 id = bpf_get_current_ancestor_cgroup_id(level);
		if (!id)
			return 0;
		if (bpf_map_lookup_elem(&admitted, &id))
			return 1;
	}
	return 0;
}

SEC("lsm/unix_stream_connect")
int BPF_PROG(on_gate, struct sock *sock, struct sock *other, struct sock *newsk, int ret)
{
	if (ret || !bpf_sk_storage_get(&listeners, other, 0, 0) || is_agent() || is_admitted())
		return ret;
	return refuse(REFUSED_CONNECT);
}

SEC("tp_btf/cgroup_mkdir")
int BPF_PROG(on_gate_mkdir, struct cgroup *made, const char *path)
{
	char key[CGROUP_PATH] = {};
	__u64 id = made->kn->id;
	if (made->root->hierarchy_id || bpf_probe_read_kernel_str(key, sizeof(key), path) <= 0)
		return 0;
	__u32 one = 1;
	if (bpf_map_lookup_elem(&doors, key))
		bpf_map_update_elem(&admitted, &id, &one, BPF_ANY);
	return 0;
}

SEC("tp_btf/cgroup_rmdir")
int BPF_PROG(on_gate_rmdir, struct cgroup *gone)
{
	__u64 id = gone->kn->id;
	if (!gone->root->hierarchy_id)
		bpf_map_delete_elem(&admitted, &id);
	return 0;
}
