// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The kernel's structures, as far as the sensor reads them. Offsets are relocated at load
 * time from the running kernel's BTF (CO-RE), so only names and types matter here.
 * A name after ___ is a variant of another kernel version.
 */
#pragma once

typedef int pid_t;

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;
typedef struct {
	__s64 counter;
} atomic_long_t;

struct ns_common {
	unsigned int inum;
};
struct user_namespace {
	struct ns_common ns;
};
struct pid_namespace {
	struct ns_common ns;
};
struct mnt_namespace {
	struct ns_common ns;
};
struct net {
	struct ns_common ns;
};
struct cgroup_namespace {
	struct ns_common ns;
};
struct ipc_namespace {
	struct ns_common ns;
};
struct uts_namespace {
	struct ns_common ns;
};
struct nsproxy {
	struct uts_namespace *uts_ns;
	struct ipc_namespace *ipc_ns;
	struct mnt_namespace *mnt_ns;
	struct net *net_ns;
	struct cgroup_namespace *cgroup_ns;
};
struct hlist_node {
	struct hlist_node *next, **pprev;
};
struct hlist_head {
	struct hlist_node *first;
};
struct upid {
	int nr;
	struct pid_namespace *ns;
};
struct pid {
	unsigned int level;
	struct hlist_head tasks[4]; /* [1] holds the thread group's leader */
	struct upid numbers[1];
};
typedef struct {
	__u32 val;
} kuid_t;
typedef struct {
	__u32 val;
} kgid_t;
typedef struct {
	__u64 val; /* 6.3; before, two halves in the same places on little-endian machines */
} kernel_cap_t;
struct group_info {
	int ngroups;
	kgid_t gid[0];
};
struct cred {
	kuid_t uid, suid, euid, fsuid;
	kgid_t gid, sgid, egid, fsgid;
	kernel_cap_t cap_permitted, cap_effective;
	struct user_namespace *user_ns;
	struct group_info *group_info;
};
struct seccomp {
	int mode;
};
struct pt_regs___x86 {
	unsigned long orig_ax, si;
};
struct pt_regs___arm64 {
	__u64 regs[31];
	__s32 syscallno;
};

struct timespec64 {
	__s64 tv_sec;
	long tv_nsec;
};
struct super_block {
	__u32 s_dev;
	unsigned long s_magic;
};
struct inode {
	unsigned short i_mode;
	unsigned long i_ino;
	__u32 i_generation;
	unsigned int i_nlink;
	__s64 i_size;
	struct super_block *i_sb;
	atomic_t i_writecount;
	__s64 i_ctime_sec; /* 6.11 */
	__u32 i_ctime_nsec;
};
struct inode___6_6 {
	struct timespec64 __i_ctime;
};
struct inode___6_1 {
	struct timespec64 i_ctime;
};
typedef struct {
	atomic_long_t refcnt; /* references minus one */
} file_ref_t;
struct qstr {
	const unsigned char *name;
};
struct dentry {
	struct inode *d_inode;
	struct qstr d_name;
};
struct path {
	struct dentry *dentry;
};
struct file {
	struct path f_path;
	struct inode *f_inode;
	unsigned int f_mode;
	file_ref_t f_ref; /* 6.13 */
};

struct iattr {
	unsigned int ia_valid;
};
struct mnt_idmap;
struct vfsmount {
	struct super_block *mnt_sb;
};
struct kernel_siginfo;
struct anon_vma;
struct vm_area_struct {
	struct file *vm_file;
	struct anon_vma *anon_vma;
};

struct fdtable {
	unsigned int max_fds;
	struct file **fd;
};
struct files_struct {
	atomic_t count;
	struct fdtable *fdt;
};
struct signal_struct {
	int nr_threads;
	struct pid *pids[4]; /* [1] is the thread group's */
};
struct kernfs_node {
	__u64 id;
};
struct cgroup_root {
	int hierarchy_id; /* 0 is cgroup v2 */
};
struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
};
struct css_set {
	struct cgroup *dfl_cgrp;
};
struct thread_info {
	unsigned long flags;
	__u32 status; /* x86 */
};
struct io_uring_task;
struct task_struct;
struct mm_struct {
	struct file *exe_file;
	struct task_struct *owner; /* CONFIG_MEMCG */
};
struct task_struct {
	struct thread_info thread_info;
	pid_t pid, tgid;
	__u64 start_boottime;
	unsigned int flags, ptrace, sessionid;
	unsigned long atomic_flags;
	kuid_t loginuid;
	struct seccomp seccomp;
	struct task_struct *group_leader, *real_parent, *parent;
	struct mm_struct *mm;
	const struct cred *cred, *real_cred;
	struct nsproxy *nsproxy;
	struct pid *thread_pid;
	struct hlist_node pid_links[4];
	struct css_set *cgroups;
	struct signal_struct *signal;
	struct files_struct *files;
	struct io_uring_task *io_uring; /* CONFIG_IO_URING */
};
struct linux_binprm {
	unsigned int secureexec : 1;
	struct file *file;
	const char *filename, *interp;
};

struct sockaddr {
	unsigned short sa_family;
};
struct bpf_sock_addr_kern {
	struct sockaddr *uaddr;
	__u32 uaddrlen; /* 6.7 */
};
struct socket {
	struct sock *sk;
	struct file *file;
};
struct sock {
	struct socket *sk_socket;
	struct pid *sk_peer_pid;
};
struct unix_vertex;
struct unix_sock {
	struct sock sk;
	struct sock *peer;
	struct unix_vertex *vertex; /* 6.10 */
};
struct msghdr;

struct bpf_map {
	__u32 id;
};
struct bpf_prog_aux {
	__u32 id;
};
struct bpf_prog {
	struct bpf_prog_aux *aux;
};

struct bpf_iter_meta {
	struct seq_file *seq;
};
struct bpf_iter__task_file {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
	__u32 fd;
	struct file *file;
};
struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#pragma clang attribute pop

extern struct task_struct *bpf_task_from_pid(__s32 pid) __ksym __weak; /* 6.2 */
extern int bpf_get_fsverity_digest(struct file *file,
				   struct bpf_dynptr *digest) __ksym __weak; /* 6.8 */
extern void bpf_task_release(struct task_struct *p) __ksym __weak;
extern void *bpf_cast_to_kern_ctx(void *ctx) __ksym __weak; /* 6.2 */
