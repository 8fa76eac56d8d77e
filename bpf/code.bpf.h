// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * T1, lsm/… only: which files a process has mapped as code, and whether it has code without a
 * file. State sits on the leader of the process that owns the memory (mm->owner).
 *
 *   bprm_committed_creds  a new image starts with an empty set, before its first mapping
 *   mmap_file, file_mprotect  with PROT_EXEC; a file once per process
 *   sched_process_fork    a child with memory of its own gets a copy
 *
 * Not seen: an executable stack (ELF PT_GNU_STACK), the kernel's own vdso.
 */
#pragma once

#define PROT_WRITE 2
#define PROT_EXEC 4

static __always_inline struct code_record *code_of(struct task_struct *t)
{
	struct mm_struct *mm = t->mm;
	if (!mm)
		return 0;
	struct task_struct *owner = mm->owner;
	if (!owner)
		return 0;
	return bpf_task_storage_get(&code, owner->group_leader, 0, 0);
}

static __always_inline void map_file(struct code_record *c, struct inode *i)
{
	__u64 ino = BPF_CORE_READ(i, i_ino);
	__u32 dev = BPF_CORE_READ(i, i_sb, s_dev);
	struct inode_state s = unwritten(i);
	__u64 token = s.token, wgen = s.wgen;
	__u32 writers = BPF_CORE_READ(i, i_writecount.counter) > 0;
	for (int n = 0; n < MAPPED_FILES; n++) {
		struct mapped_file *m = &c->files[n];
		if (m->ino == ino && m->dev == dev && m->token == token && m->wgen == wgen &&
		    m->writers == writers)
			return;
		if (!m->ino)
			break;
	}
	__u32 n = __sync_fetch_and_add(&c->count, 1);
	if (n >= MAPPED_FILES) {
		c->flags |= CODE_OVERFLOW;
		return;
	}
	struct mapped_file *m = &c->files[n];
	m->dev = dev;
	m->token = token;
	m->wgen = wgen;
	m->writers = writers;
	barrier();
	m->ino = ino;
}

SEC("lsm/bprm_committed_creds")
int BPF_PROG(on_new_code, struct linux_binprm *bprm)
{
	struct task_struct *t = bpf_get_current_task_btf();
	bpf_task_storage_delete(&code, t);
	bpf_task_storage_get(&code, t, 0, CREATE); /* without it: unknown */
	return 0;
}

SEC("lsm/mmap_file")
int BPF_PROG(on_mmap, struct file *file, unsigned long reqprot, unsigned long prot)
{
	if (!(prot & PROT_EXEC))
		return 0;
	struct code_record *c = code_of(bpf_get_current_task_btf());
	if (!c)
		return 0;
	/* Kernels up to 6.1 take the argument to be never null, so the test is on a copy. */
	__u64 copy = 0;
	bpf_probe_read_kernel(&copy, sizeof(copy), ctx);
	if (!copy || prot & PROT_WRITE)
		c->flags |= CODE_WITHOUT_FILE;
	if (copy)
		map_file(c, file->f_inode);
	return 0;
}

SEC("lsm/file_mprotect")
int BPF_PROG(on_mprotect, struct vm_area_struct *vma, unsigned long reqprot, unsigned long prot)
{
	if (!(prot & PROT_EXEC))
		return 0;
	struct code_record *c = code_of(bpf_get_current_task_btf());
	if (!c)
		return 0;
	struct file *file = vma->vm_file;
	/* anon_vma: some of the pages are no more those of the file */
	if (!file || prot & PROT_WRITE || vma->anon_vma)
		c->flags |= CODE_WITHOUT_FILE;
	if (file)
		map_file(c, file->f_inode);
	return 0;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(on_fork_code, struct task_struct *parent, struct task_struct *child)
{
	if (child->pid != child->tgid || child->mm == parent->mm)
		return 0; /* a thread, or a child that borrows the memory */
	struct code_record *p = code_of(parent);
	if (p)
		bpf_task_storage_get(&code, child, p, CREATE);
	return 0;
}
