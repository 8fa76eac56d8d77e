// SPDX-License-Identifier: GPL-2.0 OR BSD-2-Clause
// clang-format off
//go:build ignore
// clang-format on
/* The sensor: one translation unit of small parts. Each header tells hook, state and kernel. */
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>
#include <bpf/bpf_core_read.h>

#include "wire.h"
#include "kernel.h"
#include "maps.h"
#include "credentials.h"
#include "task.h"
#include "syscall.h"
#include "fork.bpf.h"
#include "exec.bpf.h"
#include "inode.bpf.h"
#include "image.bpf.h"
#include "code.bpf.h"
#include "integrity.bpf.h"
#include "seed.bpf.h"
#include "connect.bpf.h"
#include "holders.bpf.h"
#include "lsm.bpf.h"
#include "refuse.h"
#include "gate.bpf.h"
#include "protect.bpf.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";
