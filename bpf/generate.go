// SPDX-License-Identifier: Apache-2.0

package bpf

// Needs clang-19 and Debian's libbpf-dev and linux-libc-dev; the result is committed.
//
//go:generate go tool bpf2go -cc clang-19 -target bpfel -no-global-types sensor sensor.bpf.c -- -O2 -mcpu=v3 -Wall -Werror -I/usr/include/x86_64-linux-gnu
