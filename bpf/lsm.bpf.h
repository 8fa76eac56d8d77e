// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Tier T1: the caller of the agent's socket, by the kernel's security hooks. Minimum kernel
 * 5.16 (bpf_skc_to_unix_sock).
 *
 * Hooks, one body behind two doors: lsm/… where "bpf" is in the kernel's list of running LSMs,
 * else fentry/security_…, which sees the same but can not refuse:
 *   unix_stream_connect  runs in the client while its connect() is carried out; newsk is the
 *                        very socket that accept() will return
 *   socket_sendmsg, socket_recvmsg  whoever uses a client's end
 *   socket_getsockname   the agent asks how the process is now that connected (optional)
 *   file_receive         whoever receives a descriptor (SCM_RIGHTS, pidfd_getfd)
 *   fentry/unix_stream_splice_read  whoever moves bytes from a client's end into a pipe, which
 *                        no security hook sees (optional; marks only)
 *
 * State: the client's end has one owner for its life: process and image at connect. Use by
 * another marks the binding and is refused with EPERM (lsm); receipt by another marks it.
 */
#pragma once

#define EPERM 1
#define S_IFMT 0170000
#define S_IFSOCK 0140000

static __always_inline void bind_caller(struct sock *sock, struct sock *other, struct sock *newsk)
{
	if (!bpf_sk_storage_get(&listeners, other, 0, 0))
		return;
	struct task_struct *t = bpf_get_current_task_btf();
	struct task_record *r = bpf_task_storage_get(&tasks, t->group_leader, 0, 0);
	struct owner *o = bpf_sk_storage_get(&owners, sock, 0, CREATE);
	struct binding *b = bpf_sk_storage_get(&bindings, newsk, 0, CREATE);
	if (!r || !o || !b)
		return; /* no binding that counts: exec_id stays 0, the agent refuses */
	o->tgid = r->tgid;
	o->start = r->start;
	o->exec_id = r->exec_id;
	r->bound = 1;
	read_caller(&b->who, t, r);
	b->tier = 3;
}

/* Marks and reports the use of a client's end by somebody other than its owner. */
static __always_inline int foreign(struct sock *sk, __u32 how)
{
	struct owner *o = bpf_sk_storage_get(&owners, sk, 0, 0);
	if (!o)
		return 0;
	struct task_struct *t = bpf_get_current_task_btf();
	struct task_record *r = bpf_task_storage_get(&tasks, t->group_leader, 0, 0);
	if (r && r->exec_id == o->exec_id && r->tgid == o->tgid && r->start == o->start)
		return 0;
	struct unix_sock *u = bpf_skc_to_unix_sock(sk);
	if (!u)
		return 1;
	struct sock *peer = u->peer;
	if (!peer)
		return 1;
	struct binding *b = bpf_sk_storage_get(&bindings, peer, 0, 0);
	if (!b)
		return 1;
	b->handed_exec_id = r ? r->exec_id : 0;
	b->handed_tgid = t->tgid;
	__sync_fetch_and_or(&b->handed, how);
	return 1;
}

static __always_inline int foreign_use(struct socket *sock, __u32 how)
{
	struct sock *sk = sock->sk;
	return sk && foreign(sk, how);
}

static __always_inline void received(struct file *file)
{
	if ((file->f_inode->i_mode & S_IFMT) != S_IFSOCK)
		return;
	struct socket *sock = bpf_sock_from_file(file);
	if (sock)
		foreign_use(sock, HANDED_PASS);
}

/* The agent asks how the caller is now. */
static __always_inline void asked(struct socket *sock)
{
	__u32 zero = 0;
	struct sensor_settings *s = bpf_map_lookup_elem(&settings, &zero);
	if (!s || (__u32)(bpf_get_current_pid_tgid() >> 32) != s->agent_tgid)
		return;
	struct sock *sk = sock->sk;
	if (!sk)
		return;
	struct binding *b = bpf_sk_storage_get(&bindings, sk, 0, 0);
	if (!b)
		return;
	read_peer_now(&b->now, sk);
	b->asked = bpf_ktime_get_boot_ns();
}

SEC("lsm/unix_stream_connect")
int BPF_PROG(on_unix_connect, struct sock *sock, struct sock *other, struct sock *newsk)
{
	bind_caller(sock, other, newsk);
	return 0;
}

SEC("lsm/socket_sendmsg")
int BPF_PROG(on_sendmsg, struct socket *sock, struct msghdr *msg, int size)
{
	return foreign_use(sock, HANDED_SEND) ? -EPERM : 0;
}

SEC("lsm/socket_recvmsg")
int BPF_PROG(on_recvmsg, struct socket *sock, struct msghdr *msg, int size, int flags)
{
	return foreign_use(sock, HANDED_RECEIVE) ? -EPERM : 0;
}

SEC("lsm/file_receive")
int BPF_PROG(on_file_receive, struct file *file)
{
	received(file);
	return 0;
}

SEC("lsm/socket_getsockname")
int BPF_PROG(on_ask, struct socket *sock)
{
	asked(sock);
	return 0;
}

SEC("fentry/security_socket_getsockname")
int BPF_PROG(see_ask, struct socket *sock)
{
	asked(sock);
	return 0;
}

SEC("fentry/security_unix_stream_connect")
int BPF_PROG(see_unix_connect, struct sock *sock, struct sock *other, struct sock *newsk)
{
	bind_caller(sock, other, newsk);
	return 0;
}

SEC("fentry/security_socket_sendmsg")
int BPF_PROG(see_sendmsg, struct socket *sock)
{
	foreign_use(sock, HANDED_SEND);
	return 0;
}

SEC("fentry/security_socket_recvmsg")
int BPF_PROG(see_recvmsg, struct socket *sock)
{
	foreign_use(sock, HANDED_RECEIVE);
	return 0;
}

SEC("fentry/security_file_receive")
int BPF_PROG(see_file_receive, struct file *file)
{
	received(file);
	return 0;
}

SEC("fentry/unix_stream_splice_read")
int BPF_PROG(on_splice, struct socket *sock)
{
	foreign_use(sock, HANDED_RECEIVE);
	return 0;
}
