// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * A process's credentials and namespaces, by reads that may be of any task: at connect those
 * it acts with (cred), later those it is (real_cred), which differ for moments only.
 * What this kernel was built without reads as unset.
 */
#pragma once

#define UNSET (~0u)
#define PFA_NO_NEW_PRIVS 1ul

/* Two ways to read a field: plain, by a pointer that the verifier knows; or by any address. */
#define PLAIN(p, field) ((p)->field)
#define PROBED(p, field) BPF_CORE_READ(p, field)

/* That of a process's deepest number, which is at a distance that only the kernel knows. */
static __always_inline __u32 deep_namespace(struct task_struct *t)
{
	struct pid *p = BPF_CORE_READ(t, thread_pid);
	__u32 level = BPF_CORE_READ(p, level);
	struct upid *u = (void *)p + bpf_core_field_offset(struct pid, numbers) +
			 level * bpf_core_type_size(struct upid);
	return BPF_CORE_READ(u, ns, ns.inum);
}

#define READ_NAMESPACES(READ, n, t, cred)                                                          \
	do {                                                                                       \
		struct nsproxy *_p = READ(t, nsproxy);                                             \
		struct user_namespace *_user = READ(cred, user_ns);                                \
		struct mnt_namespace *_mnt = READ(_p, mnt_ns);                                     \
		struct net *_net = READ(_p, net_ns);                                               \
		struct cgroup_namespace *_cgroup = READ(_p, cgroup_ns);                            \
		struct ipc_namespace *_ipc = READ(_p, ipc_ns);                                     \
		struct uts_namespace *_uts = READ(_p, uts_ns);                                     \
		(n)->user = READ(_user, ns.inum);                                                  \
		struct pid *_pid = READ(t, thread_pid);                                            \
		struct pid_namespace *_first = READ(_pid, numbers[0].ns);                          \
		(n)->pid = READ(_pid, level) ? deep_namespace(t) : READ(_first, ns.inum);          \
		(n)->mnt = READ(_mnt, ns.inum);                                                    \
		(n)->net = READ(_net, ns.inum);                                                    \
		(n)->cgroup = READ(_cgroup, ns.inum);                                              \
		(n)->ipc = READ(_ipc, ns.inum);                                                    \
		(n)->uts = READ(_uts, ns.inum);                                                    \
	} while (0)

/* Sorted by the kernel, so two lists that are equal have equal bytes. */
static __always_inline void read_groups(struct credentials *c, struct group_info *list, __u32 count)
{
	__builtin_memset(c->groups, 0, sizeof(c->groups));
	c->group_count = UNSET;
	if (!list)
		return;
	__u32 few = count, size = sizeof(c->groups);
	barrier_var(few); /* else there is no mask, which is the bound that all verifiers know */
	if (count < GROUPS)
		size = (few & (GROUPS - 1)) * sizeof(c->groups[0]);
	if (!bpf_probe_read_kernel(c->groups, size, &list->gid))
		c->group_count = count;
}

#define READ_CREDENTIALS(READ, c, t, cred)                                                         \
	do {                                                                                       \
		if (bpf_core_field_exists((cred)->cap_permitted.val)) {                            \
			(c)->permitted = READ(cred, cap_permitted.val);                            \
			(c)->effective = READ(cred, cap_effective.val);                            \
		} else {                                                                           \
			bpf_core_read(&(c)->permitted, 8, &(cred)->cap_permitted);                 \
			bpf_core_read(&(c)->effective, 8, &(cred)->cap_effective);                 \
		}                                                                                  \
		(c)->uid = READ(cred, euid.val);                                                   \
		(c)->gid = READ(cred, egid.val);                                                   \
		(c)->real_uid = READ(cred, uid.val);                                               \
		(c)->real_gid = READ(cred, gid.val);                                               \
		(c)->saved_uid = READ(cred, suid.val);                                             \
		(c)->saved_gid = READ(cred, sgid.val);                                             \
		(c)->fs_uid = READ(cred, fsuid.val);                                               \
		(c)->fs_gid = READ(cred, fsgid.val);                                               \
		(c)->login_uid = (c)->session_id = UNSET;                                          \
		if (bpf_core_field_exists((t)->loginuid))                                          \
			(c)->login_uid = READ(t, loginuid.val);                                    \
		if (bpf_core_field_exists((t)->sessionid))                                         \
			(c)->session_id = READ(t, sessionid);                                      \
		(c)->no_new_privs = READ(t, atomic_flags) & PFA_NO_NEW_PRIVS;                      \
		(c)->seccomp = 0;                                                                  \
		if (bpf_core_field_exists((t)->seccomp))                                           \
			(c)->seccomp = READ(t, seccomp.mode);                                      \
		READ_NAMESPACES(READ, &(c)->ns, t, cred);                                          \
		struct group_info *_groups = READ(cred, group_info);                               \
		read_groups(c, _groups, READ(_groups, ngroups));                                   \
	} while (0)

/* Those that the current task acts with. */
static __always_inline void read_current_credentials(struct credentials *c, struct task_struct *t)
{
	const struct cred *cred = t->cred;
	READ_CREDENTIALS(PLAIN, c, t, cred);
}

#define READ_NOW(READ, n, t)                                                                       \
	do {                                                                                       \
		(n)->start = 0;                                                                    \
		if (!READ(t, nsproxy))                                                             \
			break; /* it is exiting */                                                 \
		struct css_set *_set = READ(t, cgroups);                                           \
		struct cgroup *_cgroup = READ(_set, dfl_cgrp);                                     \
		struct kernfs_node *_node = READ(_cgroup, kn);                                     \
		(n)->cgroup = READ(_node, id);                                                     \
		const struct cred *_cred = READ(t, real_cred);                                     \
		READ_CREDENTIALS(READ, &(n)->creds, t, _cred);                                     \
		(n)->start = READ(t, start_boottime);                                              \
	} while (0)

/* The process that connected an accepted socket. The socket holds a reference to the struct
 * pid, and tasks are freed by RCU, so this needs no look-up by number. */
static __always_inline void read_peer_now(struct now *n, struct sock *accepted)
{
	n->start = 0;
	struct hlist_node *leader = BPF_CORE_READ(accepted, sk_peer_pid, tasks[1].first);
	if (!leader)
		return;
	struct task_struct *t = (void *)leader -
				bpf_core_field_offset(struct task_struct, pid_links) -
				sizeof(struct hlist_node);
	READ_NOW(PROBED, n, t);
}
