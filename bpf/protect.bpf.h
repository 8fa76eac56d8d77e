// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * T1, lsm/… only, opt-in: as long as the agent lives, nobody but itself and process 1
 *
 *   ptrace_access_check   debugs it, or reads or writes its memory, or takes its descriptors
 *   task_kill             kills, stops or crashes it
 *   inode_permission      opens, removes, renames, links, makes or looks up anything in its
 *                         folders: every path walk through a folder asks for leave to search it
 *   inode_rename, inode_setattr  moves these folders or changes their attributes
 *   sb_umount             unmounts the pins
 *   bpf_map, bpf_prog     gets a descriptor of one of the sensor's maps or programs
 *   bpf                   gets one of a link by its id; by its pin: inode_permission
 *
 * Each refusal is EPERM, an event, and counted.
 * State: settings.protected is the exec_id of the agent; exec ids are not used again, and the
 * exit of the agent clears it. So the way out is to end the agent: by its service manager
 * (process 1 may send any signal) or by SIGTERM, which everybody with the right may send.
 * Not covered: descriptors that were got before, other names (hard links, bind mounts) that
 * were made before, the disk below the file system, kernel modules.
 * Minimum kernel 5.11.
 */
#pragma once

#define SIGINT 2
#define SIGTERM 15
#define SIGCONT 18

/* The settings, if somebody else than the agent or process 1 acts while the agent is protected. */
static __always_inline struct sensor_settings *stranger(void)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct sensor_settings *s = agreed();
	return s && s->protected && tgid != 1 && tgid != s->agent_tgid ? s : 0;
}

static __always_inline int runs_agent(struct sensor_settings *s, struct task_struct *t)
{
	return exec_id_of(t->group_leader) == s->protected;
}

static __always_inline int is_guarded(struct inode *i)
{
	return i && bpf_inode_storage_get(&guarded, i, 0, 0);
}

static __always_inline int is_own(__u64 kind, __u32 id)
{
	__u64 key = kind << 32 | id;
	return bpf_map_lookup_elem(&own, &key) != 0;
}

SEC("lsm/ptrace_access_check")
int BPF_PROG(on_protect_ptrace, struct task_struct *child, unsigned int mode, int ret)
{
	struct sensor_settings *s = ret || !(mode & PTRACE_MODE_ATTACH) ? 0 : stranger();
	return s && runs_agent(s, child) ? refuse(REFUSED_DEBUG) : ret;
}

SEC("lsm/task_kill")
int BPF_PROG(on_protect_kill, struct task_struct *p, struct kernel_siginfo *info, int sig,
	     const struct cred *cred, int ret)
{
	if (ret || sig == 0 || sig == SIGINT || sig == SIGTERM || sig == SIGCHLD || sig == SIGCONT)
		return ret;
	struct sensor_settings *s = stranger();
	return s && runs_agent(s, p) ? refuse(REFUSED_SIGNAL) : 0;
}

SEC("lsm/inode_permission")
int BPF_PROG(on_protect_permission, struct inode *inode, int mask, int ret)
{
	return !ret && is_guarded(inode) && stranger() ? refuse(REFUSED_FILE) : ret;
}

SEC("lsm/inode_rename")
int BPF_PROG(on_protect_rename, struct inode *from, struct dentry *d, struct inode *to,
	     struct dentry *over)
{
	return (is_guarded(d->d_inode) || is_guarded(over->d_inode)) && stranger()
		       ? refuse(REFUSED_FILE)
		       : 0;
}

SEC("lsm/inode_setattr")
int BPF_PROG(on_protect_setattr, struct mnt_idmap *idmap, struct dentry *d)
{
	return is_guarded(d->d_inode) && stranger() ? refuse(REFUSED_FILE) : 0;
}

SEC("lsm/inode_setattr")
int BPF_PROG(on_protect_setattr_6_1, struct dentry *d)
{
	return is_guarded(d->d_inode) && stranger() ? refuse(REFUSED_FILE) : 0;
}

SEC("lsm/sb_umount")
int BPF_PROG(on_protect_umount, struct vfsmount *mnt, int flags, int ret)
{
	struct sensor_settings *s = ret ? 0 : stranger();
	return s && mnt->mnt_sb->s_dev == s->pin_dev ? refuse(REFUSED_UMOUNT) : ret;
}

SEC("lsm/bpf_map")
int BPF_PROG(on_protect_map, struct bpf_map *map, unsigned int mode, int ret)
{
	return !ret && is_own(OWN_MAP, map->id) && stranger() ? refuse(REFUSED_MAP) : ret;
}

SEC("lsm/bpf_prog")
int BPF_PROG(on_protect_program, struct bpf_prog *prog, int ret)
{
	return !ret && is_own(OWN_PROGRAM, prog->aux->id) && stranger() ? refuse(REFUSED_PROGRAM)
									: ret;
}

SEC("lsm/bpf")
int BPF_PROG(on_protect_link, int cmd, union bpf_attr *attr)
{
	__u32 id = 0;
	if (cmd != BPF_LINK_GET_FD_BY_ID || bpf_probe_read_kernel(&id, sizeof(id), attr))
		return 0;
	return is_own(OWN_LINK, id) && stranger() ? refuse(REFUSED_LINK) : 0;
}

SEC("tp_btf/sched_process_exit")
int BPF_PROG(on_protect_exit, struct task_struct *t)
{
	if (t->pid != t->tgid)
		return 0;
	struct sensor_settings *s = agreed();
	if (s && s->protected && t->tgid == s->agent_tgid)
		s->protected = 0;
	return 0;
}
