// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
/*
 * Every structure that crosses from the kernel to the agent. wire.go reads the same bytes.
 *
 * Byte order: the machine's. No implicit padding: each size is asserted.
 * Times: nanoseconds of CLOCK_BOOTTIME. Process numbers: initial PID namespace.
 * User and group numbers: effective, initial user namespace.
 * Minimum kernel: that of the hook which writes the structure.
 */
#pragma once

#define ANCESTORS 16

/* task_record.flags; ancestor.flags holds those of the image, and REPLACED_IN_PLACE */
#define OBSERVED 1u            /* the sensor saw this image being executed */
#define SEEDED 2u              /* the image ran before the sensor */
#define DELETED 4u             /* the file had no name when it was executed */
#define MEMORY_FILE 8u         /* tmpfs without a name: memfd or like it */
#define SECURE_EXEC 16u        /* set-uid, set-gid or file capabilities */
#define TRUNCATED 32u          /* there are more ancestors than fit */
#define LINEAGE_UNKNOWN 64u    /* executed by a task without a record */
#define FORKED 128u            /* this process forked after the image was executed */
#define REPLACED_IN_PLACE 256u /* the ancestor's process went on as its descendant by execve */

/* exec_id of a seeded image: this bit, milliseconds of the seeding (41 bits), tgid (22 bits) */
#define SEEDED_EXEC_ID (1ull << 63)

/* A file as it was when it was executed. dev is the kernel's: major << 20 | minor. */
struct executable {
	__u64 ino;
	__u64 size;      /* bytes */
	__s64 ctime_sec; /* CLOCK_REALTIME */
	__u64 magic;     /* super_block.s_magic */
	__u32 ctime_nsec;
	__u32 dev;
	__u32 generation;
	__u32 nlink;
};
_Static_assert(sizeof(struct executable) == 48, "executable");

/* An executed image that a task descends from, by fork or by execve. */
struct ancestor {
	__u64 exec_id;
	__u64 start; /* of process tgid, which ran or still runs the image */
	__u64 ino;
	__u32 dev;
	__u32 tgid;
	__u32 flags;
	__u32 zero;
};
_Static_assert(sizeof(struct ancestor) == 40, "ancestor");

/* A process and the image it runs. exec_id is zeroed first and written last. */
struct task_record {
	__u64 exec_id;
	__u64 start; /* of the thread group leader */
	__u64 forker_start;
	__u64 cgroup; /* v2 id when the image was executed */
	__u32 tgid;
	__u32 forker_tgid;
	__u32 uid; /* when the image was executed */
	__u32 gid;
	__u32 flags;
	__u32 ancestor_count;
	struct executable exe;
	struct ancestor ancestors[ANCESTORS]; /* nearest first */
};
_Static_assert(sizeof(struct task_record) == 744, "task_record");

/* Who called connect(). */
struct caller {
	struct task_record task;
	__u64 cgroup; /* v2 id at connect */
	__u64 time;
	__u32 uid; /* at connect */
	__u32 gid;
};
_Static_assert(sizeof(struct caller) == 768, "caller");

/* binding.state */
#define SHARED 1u       /* T2: another process tried to connect the same socket */
#define PEER_DIFFERS 2u /* T2: the connect that succeeded was not the recorded one */
#define CLOSED 4u       /* T2: the client's end is closed */
#define ALIVE 8u        /* T2: the recorded process is there */
#define IN_FLIGHT 16u   /* T2: the client's end travels in an SCM_RIGHTS message */
#define TRACED 32u      /* T2: a debugger is attached to the recorded process */

/* binding.handed: what somebody other than the owner did with the client's end (T1) */
#define HANDED_SEND 1u
#define HANDED_RECEIVE 2u
#define HANDED_PASS 4u

/* On the accepted socket. */
struct binding {
	struct caller who;
	__u64 handed_exec_id;
	__u64 asked;       /* T2: when the agent asked */
	__u64 exec_id_now; /* T2: image of the recorded process when the agent asked */
	__u32 tier;        /* 3 is T1, 2 is T2: selectors.Tier */
	__u32 state;
	__u32 handed;
	__u32 handed_tgid;
	__s32 references; /* T2: to the open file of the client's end */
	__s32 held;       /* T2: descriptors of the recorded process that are that file */
	__s32 tables;     /* T2: tasks that share its descriptor table */
	__s32 threads;    /* T2: threads of the recorded process */
};
_Static_assert(sizeof(struct binding) == 824, "binding");

/* An execve, for history. */
struct exec_event {
	__u64 exec_id;
	__u64 start;
	__u64 time;
	__u64 parent_exec_id; /* ancestors[0] */
	__u64 cgroup;
	__u64 ino;
	__u32 dev;
	__u32 tgid;
	__u32 uid;
	__u32 flags;
};
_Static_assert(sizeof(struct exec_event) == 64, "exec_event");

/* The only element of the map `state`: written by the programs once they run. */
struct sensor_state {
	__u64 next_exec_id; /* starts at the boot time in ns, so that it never repeats in a boot */
	__u64 seed_time;    /* milliseconds of boot time */
	__u64 seeded;       /* records that seeding made */
	__u64 events_lost;  /* the ring buffer was full */
	__u64 records_lost; /* no memory for a record, or storage was busy */
};
_Static_assert(sizeof(struct sensor_state) == 40, "sensor_state");

/* The only element of the map `settings`: written by the agent alone. */
struct sensor_settings {
	__u64 build;      /* of the object that made the pins; 0 until all of it works */
	__u32 agent_tgid; /* who may ask for bindings at T2 */
	__u32 tier;
};
_Static_assert(sizeof(struct sensor_settings) == 16, "sensor_settings");
