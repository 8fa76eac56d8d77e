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
#define NEAR 6 /* of them are in the task's record, which every fork copies; most have no more */

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
#define SCRIPT 512u            /* the kernel chose an interpreter for the file that was executed */

/* integrity.flags: what another process did to this one, or was allowed to do at once */
#define PTRACE_ATTACHED 1u
#define MEMORY_WRITTEN 2u
#define MEMORY_READ 4u       /* T1 only: at T2 ps(1) looks the same */
#define MEMORY_OPENED 8u     /* T1: /proc/PID/mem, for reading or writing */
#define DESCRIPTOR_TAKEN 16u /* T1: pidfd_getfd(2) */
#define ACCESSED 32u         /* T1: another access with the rights of a debugger */

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

/* Sticky: kept over execve, inherited at fork. by_* is who did the last of it. */
struct integrity {
	__u64 by_exec_id; /* 0: a process without a record */
	__u32 by_tgid;
	__u32 flags;
	__u32 count;
	__u32 zero;
};
_Static_assert(sizeof(struct integrity) == 24, "integrity");

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
	struct ancestor ancestors[NEAR]; /* nearest first; the others are far_ancestors */
	struct integrity integrity;
	__u32 bound; /* it connected to the agent: its changes wake the agent */
	__u32 noted; /* there is an exec_info beside it */
};
_Static_assert(sizeof(struct task_record) == 376, "task_record");

/* Of a process with more than NEAR ancestors. They hold as long as exec_id is the record's. */
struct far_ancestors {
	__u64 exec_id;
	struct ancestor list[ANCESTORS - NEAR];
};
_Static_assert(sizeof(struct far_ancestors) == 408, "far_ancestors");

/* Numbers of the namespaces (nsfs inodes) that a process is in. */
struct namespaces {
	__u32 user;
	__u32 pid;
	__u32 mnt;
	__u32 net;
	__u32 cgroup;
	__u32 ipc;
	__u32 uts;
	__u32 zero;
};
_Static_assert(sizeof(struct namespaces) == 32, "namespaces");

#define GROUPS 32

/* All numbers are those of the initial user namespace. */
struct credentials {
	__u64 permitted; /* 1 << CAP_… */
	__u64 effective;
	__u32 uid; /* effective */
	__u32 gid;
	__u32 real_uid;
	__u32 real_gid;
	__u32 saved_uid;
	__u32 saved_gid;
	__u32 fs_uid;
	__u32 fs_gid;
	__u32 login_uid;  /* ~0: none */
	__u32 session_id; /* ~0: none */
	__u32 no_new_privs;
	__u32 seccomp; /* 0 off, 1 strict, 2 filter */
	struct namespaces ns;
	__u32 group_count; /* of supplementary groups, also those that do not fit; ~0: unknown */
	__u32 groups[GROUPS];
	__u32 zero;
};
_Static_assert(sizeof(struct credentials) == 232, "credentials");

/* Who called connect(). */
struct caller {
	struct task_record task;
	struct far_ancestors far; /* set if task.ancestor_count says so */
	__u64 cgroup;             /* v2 id at connect */
	__u64 time;
	struct credentials creds; /* at connect */
};
_Static_assert(sizeof(struct caller) == 1032, "caller");

/* A process at the moment of a question. */
struct now {
	__u64 start; /* 0: there is no such process */
	__u64 cgroup;
	struct credentials creds;
};
_Static_assert(sizeof(struct now) == 248, "now");

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

/* T1: on the accepted socket. T2: the answer to the agent's question. */
struct binding {
	struct caller who;
	__u64 handed_exec_id;
	__u64 asked;       /* when the agent asked; T2: written last */
	__u64 exec_id_now; /* T2: image of the recorded process when the agent asked */
	__u32 tier;        /* 3 is T1, 2 is T2: selectors.Tier */
	__u32 state;
	__u32 handed;
	__u32 handed_tgid;
	__s32 references; /* T2: to the open file of the client's end */
	__s32 held;       /* T2: descriptors of the recorded process that are that file */
	__s32 tables;     /* T2: tasks that share its descriptor table */
	__s32 threads;    /* T2: threads of the recorded process */
	struct now now;   /* of the process whose connect() succeeded, when the agent asked */
	__u64 file;       /* T2: address of the client's open file, which only says "the same" */
	struct integrity done; /* T2: to the recorded process, until the agent asked */
};
_Static_assert(sizeof(struct binding) == 1368, "binding");

/* T2: lies in the agent's memory, too. It asks by getsockname(2) with the address of `name`
 * there, where the kernel then writes the socket's name. */
struct answer {
	__u8 name[128];
	struct binding binding;
};
_Static_assert(sizeof(struct answer) == 1496, "answer");

/* The question which processes hold an open file, and the answer (T2). */
struct holders {
	__u64 file;  /* asked for */
	__u64 start; /* of its owner */
	__u32 tgid;
	__u32 own;    /* descriptors of the owner that are the file */
	__u32 others; /* those of others, and the last of these */
	__u32 other_tgid;
	__u32 rings; /* io_uring instances and their users in the owner */
	__u32 zero;
};
_Static_assert(sizeof(struct holders) == 40, "holders");

/* A file on its inode: see inode.bpf.h. */
struct inode_state {
	__u64 token;
	__u64 wgen;
};
_Static_assert(sizeof(struct inode_state) == 16, "inode_state");

/* What is known of an execve beside task_record; a zero is unknown. */
struct exec_facts {
	struct executable script;        /* the file given to execve; T1 */
	struct inode_state script_state; /* T1, lsm/… only; token 0 if it was open for writing */
	__s32 ima_algorithm;             /* enum hash_algo plus one */
	__u16 verity_algorithm;          /* struct fsverity_digest, 6.8; a longer digest is cut */
	__u16 verity_size;
	__u8 verity[32];
	__u8 ima[32];
};
_Static_assert(sizeof(struct exec_facts) == 136, "exec_facts");

#define MAPPED_FILES 60 /* with what the kernel adds, a record takes 2 KiB of its memory */

/* A file that is mapped as code, as it was when it was mapped first. */
struct mapped_file {
	__u64 ino; /* written last; 0: not used, or being written */
	__u64 token;
	__u64 wgen;
	__u32 dev;
	__u32 writers; /* somebody had it open for writing */
};
_Static_assert(sizeof(struct mapped_file) == 32, "mapped_file");

/* code_record.flags */
#define CODE_OVERFLOW 1u     /* more files than fit */
#define CODE_WITHOUT_FILE 2u /* anonymous or writable memory is or was executable */

struct code_record {
	__u32 count; /* of files, also those that do not fit */
	__u32 flags;
	struct mapped_file files[MAPPED_FILES];
};
_Static_assert(sizeof(struct code_record) == 1928, "code_record");

#define PATH_SIZE 256

/* On a process whose image has a script or a digest. exec_id is zeroed first and written last. */
struct exec_info {
	__u64 exec_id;
	struct exec_facts facts;
	char path[PATH_SIZE]; /* given to execve, cut to fit; its length is not kept */
};
_Static_assert(sizeof(struct exec_info) == 400, "exec_info");

/* event.kind */
#define EVENT_EXEC 1u
#define EVENT_TAMPER 2u
#define EVENT_MOVED 3u
#define EVENT_REFUSED 4u

/* event.what of EVENT_REFUSED: what somebody was not allowed to do to the agent */
#define REFUSED_DEBUG 1u
#define REFUSED_SIGNAL 2u
#define REFUSED_FILE 3u
#define REFUSED_UMOUNT 4u
#define REFUSED_MAP 5u
#define REFUSED_PROGRAM 6u
#define REFUSED_LINK 7u
#define REFUSED_CONNECT 8u

/* An execve, for history; a change of a process that is bound; or what a process tried. */
struct event {
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
	__u32 kind;
	union {
		__u32 tamper; /* integrity.flags */
		__u32 what;   /* of EVENT_REFUSED */
	};
};
_Static_assert(sizeof(struct event) == 72, "event");

/* The only element of the map `state`: written by the programs once they run. */
struct sensor_state {
	__u64 next_exec_id; /* starts at the boot time in ns, so that it never repeats in a boot */
	__u64 seed_time;    /* milliseconds of boot time */
	__u64 seeded;       /* records that seeding made */
	__u64 events_lost;  /* the ring buffer was full */
	__u64 records_lost; /* no memory for a record, or storage was busy */
	__u64 next_token;   /* for inodes; starts at 1 */
	struct namespaces host; /* the initial ones, found by seeding */
	__u64 refused;          /* EVENT_REFUSED, also those that were lost */
};
_Static_assert(sizeof(struct sensor_state) == 88, "sensor_state");

/* Keys of the map `own`: kind << 32 | id */
#define OWN_MAP 1ull
#define OWN_PROGRAM 2ull
#define OWN_LINK 3ull

#define CGROUP_PATH 256 /* with its NUL, padded by 0 */

/* The last component of the path of one of the agent's sockets. */
struct socket_name {
	__u32 length;   /* of the text; 0: not used */
	char text[108]; /* begins with '/', padded by 0 */
};
_Static_assert(sizeof(struct socket_name) == 112, "socket_name");

#define SOCKET_NAMES 8

/* The only element of the map `settings`: written by the agent alone. */
struct sensor_settings {
	__u64 build;        /* of the object that made the pins; 0 until all of it works */
	__u64 tamper_since; /* images from this exec_id on were watched all their life */
	__u64 protected;    /* exec_id of the agent, 0: protection is off */
	__u32 pin_dev;      /* of the BPF file system that holds the pins, while protection is on */
	__u32 agent_tgid;   /* who may ask for bindings */
	__u32 tier;
	__u32 tamper_seen;                      /* integrity.flags that the hooks here never miss */
	__u64 answer;                           /* T2: address of it in the agent's memory */
	struct socket_name names[SOCKET_NAMES]; /* T2 */
};
_Static_assert(sizeof(struct sensor_settings) == 944, "sensor_settings");
