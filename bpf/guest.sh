#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
#
# Runs test binaries on another kernel, in a QEMU guest without KVM: tier T1 where the host
# forbids it. Prints the guest's console; its last test line says PASS or FAIL.
#
#   CGO_ENABLED=0 go test -c -o /tmp/t/bpf.test ./bpf
#   CGO_ENABLED=0 go test -c -o /tmp/t/caller.test ./agent/caller
#   (cd /tmp && apt-get download linux-image-6.1.0-56-cloud-amd64 && dpkg-deb -x linux-image-6.1*.deb k61)
#   ASSAY_ROUNDS=10 bpf/guest.sh /tmp/k61 lsm=lockdown,capability,bpf /tmp/t/bpf.test /tmp/t/caller.test
#
# Needs busybox-static, cpio and qemu-system-x86. TIMEOUT is in seconds (300).
set -euo pipefail
kernel=$(ls "${1:?an unpacked linux-image package}"/boot/vmlinuz-*)
append=${2:?a kernel command line}
shift 2

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
root=$work/root
mkdir -p "$root"/{bin,proc,sys,dev,tmp,tests}
cp /bin/busybox "$root/bin/"
cp "$@" "$root/tests/"
cat >"$root/init" <<INIT
#!/bin/busybox sh
export PATH=/bin ASSAY_NO_SKIP=1 ASSAY_ROUNDS=${ASSAY_ROUNDS:-10}
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t securityfs sec /sys/kernel/security
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
echo "kernel \$(uname -r), running LSMs \$(cat /sys/kernel/security/lsm)"
cd /tests
result=PASS
for t in *; do ./\$t -test.v || result=FAIL; done
echo "GUEST \$result"
poweroff -f
INIT
chmod 755 "$root/init"
(cd "$root" && find . -mindepth 1 | cpio -o -H newc --quiet | gzip -1) >"$work/initrd"

# QEMU 7.2 without KVM faults in cmpxchg16b on Linux 6.12, hence -cx16.
timeout -k 5 "${TIMEOUT:-300}" qemu-system-x86_64 -machine q35,accel=tcg -cpu max,-cx16 -smp 2 -m 1024 \
	-nodefaults -display none -no-reboot -nic none -kernel "$kernel" -initrd "$work/initrd" \
	-append "console=ttyS0 quiet panic=-1 $append" -serial stdio </dev/null | tee "$work/console"
grep -q "^GUEST PASS" "$work/console"
