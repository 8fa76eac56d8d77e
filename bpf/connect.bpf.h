// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Tier T2: the caller of the agent's socket, without trampolines. Minimum kernel: the hooks
 * are there since 6.7, but task storage is refused to them in 6.12; seen to work in 6.18.
 *
 * Hooks, both at the root cgroup:
 *   cgroup/connect_unix      runs in the client before its connect() is carried out
 *   cgroup/getsockname_unix  runs in the agent when it calls getsockname() on an accepted socket
 *
 * Only connects by a name of the agent's sockets are recorded (settings.names: the last
 * component of the path), since storage on a socket costs what a third of a connect does.
 * Another name for the same socket has no record, and its caller is refused.
 *
 * State of a client socket:  free → claimed by one process (+ shared, when another tried)
 *   A socket that is connected already is left alone: its next connect() fails.
 *   One process claims; any other only sets `shared`, so a record is never torn or replaced.
 *   `pid` is compared with the peer pid that the successful connect() left on the accepted socket.
 * Question of the agent: claim → answer, and who holds the client's end at this moment. The
 * answer lies in memory that the agent has mapped, so that a question is one system call; the
 * agent's other getsockname() calls name another address and ask nothing.
 */
#pragma once

#define SOCK_DGRAM 2
#define ESTABLISHED 1
#define SUN_PATH 108
#define FREE 0
#define WRITING 1
#define WRITTEN 2

static __always_inline int may_write(struct claim *k, const struct task_record *r)
{
	switch (__sync_val_compare_and_swap(&k->claimed, FREE, WRITING)) {
	case FREE:
		return 1;
	case WRITTEN:
		if (r && k->who.task.exec_id == r->exec_id && k->who.task.tgid == r->tgid &&
		    k->who.task.start == r->start)
			return 1; /* the same process tries again */
	}
	k->shared = 1;
	return 0;
}

/* The path that connect() was given, as the kernel understands it: up to a NUL or the length
 * that was passed. Abstract names have none. */
struct path_given {
	char front; /* '/', so that every component has one before it */
	char text[SUN_PATH + 1];
	__u32 length; /* without the NUL, with the front */
};

static __always_inline int read_path(struct path_given *p, struct bpf_sock_addr *ctx)
{
	struct bpf_sock_addr_kern *k = bpf_cast_to_kern_ctx(ctx);
	__u32 size = k->uaddrlen - sizeof(k->uaddr->sa_family); /* the NUL may be counted or not */
	barrier_var(size);
	if (size > SUN_PATH)
		return 0;
	long length = bpf_probe_read_kernel_str(p->text, size + 1,
						(void *)k->uaddr + sizeof(k->uaddr->sa_family));
	p->front = '/';
	p->length = length;
	return length > 1;
}

/* A path that ends in '/' and the name has the name as its last component. Most paths have no
 * '/' where it would be. */
static __always_inline int ends_in(struct path_given *p, const struct socket_name *name)
{
	__u32 length = name->length, before = p->length - length;
	barrier_var(before); /* the verifier knows of no subtraction from the stack's address */
	if (length > sizeof(name->text) || before > sizeof(p->text) || (&p->front)[before] != '/')
		return 0;
	__u32 end[sizeof(name->text) / 4] = {};
	if (bpf_probe_read_kernel(end, length, &p->front + before))
		return 0;
#pragma clang loop unroll(disable)
	for (int i = 0; i < sizeof(name->text) / 4; i++)
		if (((const __u32 *)name->text)[i] != end[i])
			return 0;
	return 1;
}

static __always_inline int is_watched(struct bpf_sock_addr *ctx)
{
	__u32 zero = 0;
	struct sensor_settings *s = bpf_map_lookup_elem(&settings, &zero);
	struct path_given path;
	if (!s || !read_path(&path, ctx))
		return 0;
#pragma clang loop unroll(disable)
	for (int n = 0; n < SOCKET_NAMES && s->names[n].length; n++)
		if (ends_in(&path, &s->names[n]))
			return 1;
	return 0;
}

/* Apart from the program that every connect() of the host runs, for the sake of its cost. */
static __noinline int claim(struct bpf_sock *sk)
{
	struct claim *k = sk ? bpf_sk_storage_get(&claims, sk, 0, CREATE) : 0;
	if (!k)
		return 1;
	struct task_struct *t = bpf_get_current_task_btf();
	struct task_record *r = bpf_task_storage_get(&tasks, t->group_leader, 0, 0);
	if (!may_write(k, r))
		return 1;
	if (r && t->ptrace && !(r->integrity.flags & PTRACE_ATTACHED))
		tamper(r, PTRACE_ATTACHED, BPF_CORE_READ(t, parent, tgid), 0);
	read_caller(&k->who, t, r);
	k->pid = (__u64)t->signal->pids[1];
	barrier();
	*(volatile __u32 *)&k->claimed = WRITTEN;
	return 1;
}

SEC("cgroup/connect_unix")
int on_connect(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	if (!sk || sk->type == SOCK_DGRAM || sk->state == ESTABLISHED || !is_watched(ctx))
		return 1;
	return claim(sk);
}

struct walk {
	__u64 descriptors; /* struct file *[max] */
	__u64 file;
	__u32 max;
	__u32 held;
};

static long count_held(__u32 block, struct walk *w)
{
	__u64 files[32];
	__u32 first = block * 32;
	if (bpf_probe_read_kernel(files, sizeof(files), (void *)(w->descriptors + first * 8ull)))
		return 1;
	for (int i = 0; i < 32; i++)
		if (files[i] == w->file)
			w->held++;
	return 0;
}

/* How the recorded process is now, and how many of its descriptors are the file. */
static __always_inline void look_at_owner(struct binding *b, struct file *f)
{
	struct task_struct *t = bpf_task_from_pid(b->who.task.tgid);
	if (!t)
		return;
	struct task_record *r = bpf_task_storage_get(&tasks, t, 0, 0);
	if (r && r->start == b->who.task.start) {
		struct files_struct *fs = t->files; /* reads as 0, and 0 below that, in an exit */
		struct fdtable *table = fs->fdt;
		struct walk w = {
			.descriptors = (__u64)table->fd,
			.file = (__u64)f,
			.max = table->max_fds,
		};
		b->state |= ALIVE;
		b->exec_id_now = r->exec_id;
		if (t->ptrace) {
			b->state |= TRACED;
			if (!(r->integrity.flags & PTRACE_ATTACHED))
				tamper(r, PTRACE_ATTACHED, BPF_CORE_READ(t, parent, tgid), 0);
		}
		b->done = r->integrity;
		r->bound = 1;
		b->tables = fs->count.counter;
		b->threads = t->signal->nr_threads;
		if (f) /* looks at 262,144 descriptors; any beyond count as not held */
			bpf_loop(w.max < 8192 * 32 ? (w.max + 31) / 32 : 8192, count_held, &w, 0);
		b->held = w.held;
		if (!(b->state & PEER_DIFFERS))
			READ_NOW(PLAIN, &b->now, t);
	}
	bpf_task_release(t);
}

static __always_inline void copy_caller(struct caller *to, const struct caller *from)
{
	__builtin_memcpy(&to->task, &from->task, sizeof(to->task));
	if (from->task.ancestor_count > NEAR)
		__builtin_memcpy(&to->far, &from->far, sizeof(to->far));
	to->cgroup = from->cgroup;
	to->time = from->time;
	__builtin_memcpy(&to->creds, &from->creds, sizeof(to->creds));
}

SEC("cgroup/getsockname_unix")
int on_getsockname(struct bpf_sock_addr *ctx)
{
	__u32 zero = 0;
	struct sensor_settings *s = bpf_map_lookup_elem(&settings, &zero);
	if (!s || (__u32)(bpf_get_current_pid_tgid() >> 32) != s->agent_tgid ||
	    second_argument(bpf_get_current_task_btf()) != s->answer)
		return 1;
	struct bpf_sock *sk = ctx->sk;
	struct answer *a = bpf_map_lookup_elem(&answer, &zero);
	if (!sk || !a)
		return 1;
	struct unix_sock *u = bpf_skc_to_unix_sock(sk);
	if (!u)
		return 1;
	struct sock *peer = u->peer;
	if (!peer)
		return 1;
	struct claim *k = bpf_sk_storage_get(&claims, peer, 0, 0);
	if (!k || k->claimed != WRITTEN)
		return 1;
	struct binding *b = &a->binding;
	copy_caller(&b->who, &k->who);
	b->tier = 2;
	b->state = k->shared ? SHARED : 0;
	if ((__u64)u->sk.sk_peer_pid != k->pid)
		b->state |= PEER_DIFFERS;
	b->exec_id_now = 0;
	b->references = b->held = b->tables = b->threads = 0;
	struct socket *socket = peer->sk_socket;
	struct file *f = socket->file;
	if (!socket || !f)
		b->state |= CLOSED;
	else
		b->references = f->f_ref.refcnt.counter + 1;
	b->file = socket ? (__u64)f : 0;
	if (BPF_CORE_READ((struct unix_sock *)peer, vertex))
		b->state |= IN_FLIGHT;
	b->now.start = 0;
	__builtin_memset(&b->done, 0, sizeof(b->done));
	look_at_owner(b, f);
	barrier();
	*(volatile __u64 *)&b->asked = bpf_ktime_get_boot_ns();
	return 1;
}
