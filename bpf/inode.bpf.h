// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * T1, lsm/… only (5.10, inode storage): how often a file that was executed has been opened for
 * writing since. A digest holds for every process whose execve found the same token and wgen.
 *
 *   bprm_committed_creds  gives the executable's inode a token and notes both for the execve;
 *                         nobody can have the file open for writing then (ETXTBSY)
 *   file_open             for writing: before the first write through it
 *   inode_setattr         of the size (truncate, nfsd); one variant per signature of the hook
 *
 * An inode that the kernel forgets comes back without a token, and gets a new one.
 * Not seen: memfd and the real file below an overlay (see exec flags and the file system's
 * magic), writes to the block device, changes on the far side of a network file system.
 */
#pragma once

#define FMODE_WRITE 2
#define ATTR_SIZE (1 << 3)

static __always_inline struct inode_state *state_of(struct inode *i)
{
	struct inode_state *s = bpf_inode_storage_get(&inodes, i, 0, CREATE);
	if (s && !s->token) {
		struct sensor_state *all = sensor();
		if (!all)
			return 0;
		__u64 mine = __sync_fetch_and_add(&all->next_token, 1);
		__sync_val_compare_and_swap(&s->token, 0, mine);
	}
	return s;
}

static __always_inline void written(struct inode *i)
{
	struct inode_state *s = bpf_inode_storage_get(&inodes, i, 0, 0);
	if (s)
		__sync_fetch_and_add(&s->wgen, 1);
}

SEC("lsm/bprm_committed_creds")
int BPF_PROG(on_image, struct linux_binprm *bprm)
{
	struct exec_facts *f = bpf_task_storage_get(&starting, bpf_get_current_task_btf(), 0, 0);
	struct inode_state *s = f ? state_of(bprm->file->f_inode) : 0;
	if (f && s) {
		f->wgen = s->wgen;
		f->token = s->token;
	}
	return 0;
}

SEC("lsm/file_open")
int BPF_PROG(on_file_open, struct file *file)
{
	if (file->f_mode & FMODE_WRITE)
		written(file->f_inode);
	return 0;
}

static __always_inline void resized(struct dentry *d, struct iattr *a)
{
	struct inode *i = d->d_inode;
	if (i && a->ia_valid & ATTR_SIZE)
		written(i);
}

SEC("lsm/inode_setattr")
int BPF_PROG(on_setattr, struct mnt_idmap *idmap, struct dentry *d, struct iattr *a)
{
	resized(d, a);
	return 0;
}

SEC("lsm/inode_setattr")
int BPF_PROG(on_setattr_6_1, struct dentry *d, struct iattr *a)
{
	resized(d, a);
	return 0;
}
