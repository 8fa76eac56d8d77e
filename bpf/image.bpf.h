// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * T1: what is known of an execve while it is at work, collected on its task and kept by on_exec
 * if it is of use. A try that fails leaves facts that the next one overwrites.
 *
 *   lsm/bprm_creds_for_exec, fentry/security_…  the file given to execve, before an interpreter
 *                               takes its place: the script. Nobody can have it open for writing
 *                               at this moment (fs/exec.c: do_open_execat), but in Linux 6.11
 *                               and early 6.12
 *   lsm.s/bprm_committed_creds  opt-in: the kernel's own digests of the executable, by IMA
 *                               (5.18, CONFIG_IMA; reads the file unless IMA knows it) and by
 *                               fs-verity (6.8, CONFIG_FS_VERITY; for files that are sealed)
 */
#pragma once

static __always_inline struct exec_facts *begin_exec(struct linux_binprm *bprm)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct exec_facts *f = bpf_task_storage_get(&starting, t, 0, CREATE);
	if (!f)
		return 0;
	__builtin_memset(f, 0, sizeof(*f));
	read_executable(&f->script, bprm->file->f_inode);
	return f;
}

SEC("lsm/bprm_creds_for_exec")
int BPF_PROG(on_begin_exec, struct linux_binprm *bprm)
{
	struct exec_facts *f = begin_exec(bprm);
	if (f)
		f->script_state = unwritten(bprm->file->f_inode);
	return 0;
}

SEC("fentry/security_bprm_creds_for_exec")
int BPF_PROG(see_begin_exec, struct linux_binprm *bprm)
{
	begin_exec(bprm);
	return 0;
}

SEC("lsm.s/bprm_committed_creds")
int BPF_PROG(on_ima, struct linux_binprm *bprm)
{
	struct exec_facts *f = bpf_task_storage_get(&starting, bpf_get_current_task_btf(), 0, 0);
	if (!f)
		return 0;
	long algorithm = bpf_ima_file_hash(bprm->file, f->ima, sizeof(f->ima));
	f->ima_algorithm = algorithm < 0 ? 0 : algorithm + 1;
	return 0;
}

SEC("lsm.s/bprm_committed_creds")
int BPF_PROG(on_verity, struct linux_binprm *bprm)
{
	struct exec_facts *f = bpf_task_storage_get(&starting, bpf_get_current_task_btf(), 0, 0);
	if (!f)
		return 0;
	struct bpf_dynptr digest; /* struct fsverity_digest */
	if (bpf_dynptr_from_mem(&f->verity_algorithm, sizeof(f->verity) + 4, 0, &digest))
		return 0;
	if (bpf_get_fsverity_digest(bprm->file, &digest) < 0)
		f->verity_algorithm = f->verity_size = 0;
	return 0;
}
