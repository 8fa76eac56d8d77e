// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * T1, lsm/… only (5.10, inode storage): how often a file that was executed or mapped as code has
 * been opened for writing since. A digest holds for every process that found the same token and
 * wgen when nobody had the file open for writing. image.bpf.h and code.bpf.h give out tokens.
 *
 *   file_open      for writing: before the first write through it
 *   inode_setattr  of the size (truncate, nfsd); one variant per signature of the hook
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

/* The generation that the content has while nobody has the file open for writing; else token 0.
 * open(2) counts a writer before file_open counts the generation, so here it is the other way
 * round; the atomic operation orders the two. */
static __always_inline struct inode_state unwritten(struct inode *i)
{
	struct inode_state *s = state_of(i), now = {};
	if (!s)
		return now;
	now.wgen = __sync_fetch_and_add(&s->wgen, 0);
	if (BPF_CORE_READ(i, i_writecount.counter) <= 0)
		now.token = s->token;
	return now;
}

static __always_inline void written(struct inode *i)
{
	struct inode_state *s = bpf_inode_storage_get(&inodes, i, 0, 0);
	if (s)
		__sync_fetch_and_add(&s->wgen, 1);
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
