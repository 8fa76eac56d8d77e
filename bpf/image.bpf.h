// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * T1: what is known of an execve while it is at work, collected on its task and filed under
 * its exec_id by on_exec. A try that fails leaves facts that the next one overwrites.
 *
 *   lsm/bprm_creds_for_exec, fentry/security_…  the file given to execve, before an interpreter
 *                               takes its place: the script
 */
#pragma once

static __always_inline void begin_exec(struct linux_binprm *bprm)
{
	struct task_struct *t = bpf_get_current_task_btf();
	struct exec_facts *f = bpf_task_storage_get(&starting, t, 0, CREATE);
	if (!f) {
		bpf_task_storage_delete(&starting, t);
		return;
	}
	__builtin_memset(f, 0, sizeof(*f));
	read_executable(&f->script, BPF_CORE_READ(bprm, file, f_inode));
}

SEC("lsm/bprm_creds_for_exec")
int BPF_PROG(on_begin_exec, struct linux_binprm *bprm)
{
	begin_exec(bprm);
	return 0;
}

SEC("fentry/security_bprm_creds_for_exec")
int BPF_PROG(see_begin_exec, struct linux_binprm *bprm)
{
	begin_exec(bprm);
	return 0;
}
