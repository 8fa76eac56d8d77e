// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * The maps. Storage lives and dies with its task or socket: no key is a number that can be
 * used again. The agent looks tasks up by pidfd and sockets by their descriptor.
 *
 *	tasks      every thread group leader → its image and lineage
 *	far        those of them with a long lineage → the rest of it
 *	listeners  T1: the agent's listening sockets
 *	bindings   T1: accepted socket → who connected
 *	owners     T1: client socket → who may use it
 *	claims     T2: client socket → who called connect()
 *	inodes     T1: files that were executed or mapped as code; needs CONFIG_BPF_LSM
 *	guarded    T1: folders and files of the agent, while protection is on
 *	own        T1: the sensor's maps, programs and links by their ids, for protection
 *	doors      T1: paths of the cgroups that may connect, for the gate
 *	admitted   T1: ids of those of them that exist
 *	code       T1: what a process has mapped as code
 *	starting   T1: what is known of an execve while it is at work, on its task
 *	execs      what is known of a process's execve beside its record, if there is anything
 *	state      one element: counters of the programs
 *	settings   one element: what the agent tells the programs
 *	scratch    one element: a record while seeding makes it
 *	answer     T2: one element, in the agent's memory: who connected the socket it asked for
 *	held       one element: the question who holds a socket, and its answer
 *	looked     one element: the answer to a question about one process
 *	events     event records; history only, may be lost
 *
 * Minimum kernel: 5.11 (task storage, socket storage in LSM programs).
 */
#pragma once

#define STORAGE(map, kind, record)                                                                 \
	struct {                                                                                   \
		__uint(type, kind);                                                                \
		__uint(map_flags, BPF_F_NO_PREALLOC);                                              \
		__type(key, int);                                                                  \
		__type(value, record);                                                             \
	} map SEC(".maps")

struct owner {
	__u64 exec_id;
	__u64 start;
	__u32 tgid;
	__u32 zero;
};

struct looked {
	__u64 tgid; /* asked for */
	struct now now;
};

struct claim {
	struct caller who;
	__u64 pid;     /* address of the claimant's struct pid */
	__u32 claimed; /* 0 free, 1 being written, 2 written */
	__u32 shared;  /* somebody else tried, too */
};

STORAGE(tasks, BPF_MAP_TYPE_TASK_STORAGE, struct task_record);
STORAGE(far, BPF_MAP_TYPE_TASK_STORAGE, struct far_ancestors);
STORAGE(listeners, BPF_MAP_TYPE_SK_STORAGE, __u32);
STORAGE(bindings, BPF_MAP_TYPE_SK_STORAGE, struct binding);
STORAGE(owners, BPF_MAP_TYPE_SK_STORAGE, struct owner);
STORAGE(claims, BPF_MAP_TYPE_SK_STORAGE, struct claim);
STORAGE(inodes, BPF_MAP_TYPE_INODE_STORAGE, struct inode_state);
STORAGE(guarded, BPF_MAP_TYPE_INODE_STORAGE, __u32);
STORAGE(code, BPF_MAP_TYPE_TASK_STORAGE, struct code_record);
STORAGE(starting, BPF_MAP_TYPE_TASK_STORAGE, struct exec_facts);
STORAGE(execs, BPF_MAP_TYPE_TASK_STORAGE, struct exec_info);

#define SET(map, size, element)                                                                    \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_HASH);                                                   \
		__uint(max_entries, size);                                                         \
		__type(key, element);                                                              \
		__type(value, __u32);                                                              \
	} map SEC(".maps")

typedef char cgroup_path[CGROUP_PATH];

SET(own, 256, __u64);
SET(doors, 64, cgroup_path);
SET(admitted, 64, __u64);

#define SINGLE(map, record)                                                                        \
	struct {                                                                                   \
		__uint(type, BPF_MAP_TYPE_ARRAY);                                                  \
		__uint(max_entries, 1);                                                            \
		__type(key, __u32);                                                                \
		__type(value, record);                                                             \
	} map SEC(".maps")

SINGLE(state, struct sensor_state);
SINGLE(settings, struct sensor_settings);
SINGLE(scratch, struct caller);
SINGLE(looked, struct looked);
SINGLE(held, struct holders);

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct answer);
} answer SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

static __always_inline struct sensor_state *sensor(void)
{
	__u32 zero = 0;
	return bpf_map_lookup_elem(&state, &zero);
}
