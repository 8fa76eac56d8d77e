// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * A process's credentials and namespaces, by reads that may be of any task: at connect those
 * it acts with (cred), later those it is (real_cred), which differ for moments only.
 * What this kernel was built without reads as unset.
 */
#pragma once

#define UNSET (~0u)
#define PFA_NO_NEW_PRIVS 1ul

static __always_inline __u32 pid_namespace(struct task_struct *t)
{
	struct pid *p = BPF_CORE_READ(t, thread_pid);
	__u32 level = BPF_CORE_READ(p, level);
	struct upid *u = (void *)p + bpf_core_field_offset(struct pid, numbers) +
			 level * bpf_core_type_size(struct upid);
	return BPF_CORE_READ(u, ns, ns.inum);
}

static __always_inline void read_namespaces(struct namespaces *n, struct task_struct *t,
					    const struct cred *cred)
{
	struct nsproxy *p = BPF_CORE_READ(t, nsproxy);
	n->user = BPF_CORE_READ(cred, user_ns, ns.inum);
	n->pid = pid_namespace(t);
	n->mnt = BPF_CORE_READ(p, mnt_ns, ns.inum);
	n->net = BPF_CORE_READ(p, net_ns, ns.inum);
	n->cgroup = BPF_CORE_READ(p, cgroup_ns, ns.inum);
	n->ipc = BPF_CORE_READ(p, ipc_ns, ns.inum);
	n->uts = BPF_CORE_READ(p, uts_ns, ns.inum);
}

static __always_inline void read_credentials(struct credentials *c, struct task_struct *t,
					     const struct cred *cred)
{
	bpf_core_read(&c->permitted, sizeof(c->permitted), &cred->cap_permitted);
	bpf_core_read(&c->effective, sizeof(c->effective), &cred->cap_effective);
	c->uid = BPF_CORE_READ(cred, euid.val);
	c->gid = BPF_CORE_READ(cred, egid.val);
	c->real_uid = BPF_CORE_READ(cred, uid.val);
	c->real_gid = BPF_CORE_READ(cred, gid.val);
	c->saved_uid = BPF_CORE_READ(cred, suid.val);
	c->saved_gid = BPF_CORE_READ(cred, sgid.val);
	c->fs_uid = BPF_CORE_READ(cred, fsuid.val);
	c->fs_gid = BPF_CORE_READ(cred, fsgid.val);
	c->login_uid = c->session_id = UNSET;
	if (bpf_core_field_exists(t->loginuid))
		c->login_uid = BPF_CORE_READ(t, loginuid.val);
	if (bpf_core_field_exists(t->sessionid))
		c->session_id = BPF_CORE_READ(t, sessionid);
	c->no_new_privs = BPF_CORE_READ(t, atomic_flags) & PFA_NO_NEW_PRIVS;
	c->seccomp = 0;
	if (bpf_core_field_exists(t->seccomp))
		c->seccomp = BPF_CORE_READ(t, seccomp.mode);
	read_namespaces(&c->ns, t, cred);
}

static __always_inline void read_now(struct now *n, struct task_struct *t)
{
	n->start = 0;
	if (!BPF_CORE_READ(t, nsproxy))
		return; /* it is exiting */
	n->cgroup = BPF_CORE_READ(t, cgroups, dfl_cgrp, kn, id);
	read_credentials(&n->creds, t, BPF_CORE_READ(t, real_cred));
	n->start = BPF_CORE_READ(t, start_boottime);
}

/* The process that connected an accepted socket. The socket holds a reference to the struct
 * pid, and tasks are freed by RCU, so this needs no look-up by number. */
static __always_inline void read_peer_now(struct now *n, struct sock *accepted)
{
	n->start = 0;
	struct hlist_node *leader = BPF_CORE_READ(accepted, sk_peer_pid, tasks[1].first);
	if (!leader)
		return;
	read_now(n, (void *)leader - bpf_core_field_offset(struct task_struct, pid_links) -
			    sizeof(struct hlist_node));
}
