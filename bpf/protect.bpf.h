// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * T1, lsm/… only, opt-in: the agent can not be debugged, killed, stopped or crashed, and its
 * pins can not be removed, by anybody but itself and process 1, as long as it lives.
 *
 * State: settings.protected is the exec_id of the agent; exec ids are not used again, and the
 * exit of the agent clears it. So the way out is to end the agent: by its service manager
 * (process 1 may send any signal) or by SIGTERM, which everybody with the right may send.
 * Not covered: bpf(2) by another process with CAP_BPF or CAP_SYS_ADMIN.
 */
#pragma once

#define SIGINT 2
#define SIGTERM 15
#define SIGCONT 18

/* The settings, if somebody else than the agent or process 1 acts while the agent is protected. */
static __always_inline struct sensor_settings *stranger(void)
{
	__u32 zero = 0, tgid = bpf_get_current_pid_tgid() >> 32;
	struct sensor_settings *s = bpf_map_lookup_elem(&settings, &zero);
	return s && s->protected && tgid != 1 && tgid != s->agent_tgid ? s : 0;
}

static __always_inline int is_agent(struct sensor_settings *s, struct task_struct *t)
{
	return exec_id_of(t->group_leader) == s->protected;
}

static __always_inline int holds_pins(struct sensor_settings *s, struct inode *dir)
{
	return dir->i_ino == s->pin_ino && dir->i_sb->s_dev == s->pin_dev;
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(on_protect_ptrace, struct task_struct *child, unsigned int mode, int ret)
{
	struct sensor_settings *s = ret || !(mode & PTRACE_MODE_ATTACH) ? 0 : stranger();
	return s && is_agent(s, child) ? -EPERM : ret;
}

SEC("lsm/task_kill")
int BPF_PROG(on_protect_kill, struct task_struct *p, struct kernel_siginfo *info, int sig,
	     const struct cred *cred, int ret)
{
	if (ret || sig == 0 || sig == SIGINT || sig == SIGTERM || sig == SIGCHLD || sig == SIGCONT)
		return ret;
	struct sensor_settings *s = stranger();
	return s && is_agent(s, p) ? -EPERM : 0;
}

SEC("lsm/inode_unlink")
int BPF_PROG(on_protect_unlink, struct inode *dir, struct dentry *d, int ret)
{
	struct sensor_settings *s = ret ? 0 : stranger();
	return s && holds_pins(s, dir) ? -EPERM : ret;
}

SEC("lsm/inode_rename")
int BPF_PROG(on_protect_rename, struct inode *from, struct dentry *d, struct inode *to)
{
	struct sensor_settings *s = stranger();
	return s && (holds_pins(s, from) || holds_pins(s, to)) ? -EPERM : 0;
}

SEC("lsm/sb_umount")
int BPF_PROG(on_protect_umount, struct vfsmount *mnt, int flags, int ret)
{
	struct sensor_settings *s = ret ? 0 : stranger();
	return s && mnt->mnt_sb->s_dev == s->pin_dev ? -EPERM : ret;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_protect_exit, struct task_struct *t)
{
	if (t->pid != t->tgid)
		return 0;
	__u32 zero = 0;
	struct sensor_settings *s = bpf_map_lookup_elem(&settings, &zero);
	if (s && s->protected && t->tgid == s->agent_tgid)
		s->protected = 0;
	return 0;
}
