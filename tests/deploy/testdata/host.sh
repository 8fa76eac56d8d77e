#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# host.sh REPO DIR NAME: a host whose files are this machine's, with Assay installed, under a service manager of its own:
# systemd in the mode in which it need not be process 1 (--user, as root), told to use a system's folders. Mounts are
# gone with the last process; run it by `unshare --net --mount --propagation private`. NAME names its cgroups.
set -eu
ip link set lo up
repo=$1 dir=$2 name=$3
root=$dir/root
mkdir "$dir/layer" "$root"
mount -t tmpfs layer "$dir/layer"
mkdir "$dir/layer/upper" "$dir/layer/work"
mount -t overlay host -o "lowerdir=/,upperdir=$dir/layer/upper,workdir=$dir/layer/work" "$root"
for d in proc sys dev; do mount --rbind "/$d" "$root/$d"; done
mount -t tmpfs run "$root/run"
mount -t bpf -o mode=0700 bpf "$root/sys/fs/bpf"
mkdir -p "$root/run/systemd/system" "$root/run/tpm" "$root/etc/systemd/user"
mount --bind "$dir/tpm" "$root/run/tpm"
for at in $(awk '$3 ~ /^cgroup2?$/ && $2 !~ /cpuset/ {print $2}' /proc/mounts); do
	mkdir -p "$at/$name"
	echo $$ >"$at/$name/cgroup.procs"
done

# There is no journal.
mkdir "$root/etc/systemd/user/service.d"
printf '[Service]\nStandardOutput=append:/run/tpm/log\nStandardError=append:/run/tpm/log\n' >"$root/etc/systemd/user/service.d/log.conf"

"$repo/deploy/install.sh" "$root"
for unit in "$root"/usr/lib/systemd/system/assay-*; do
	ln -s "/usr/lib/systemd/system/${unit##*/}" "$root/etc/systemd/user/"
done
# Not chroot: who is in one gets no user namespace (PrivateUsers=).
cd "$root"
mkdir was
pivot_root . was
umount -l was
systemd-sysusers /usr/lib/sysusers.d/assay.conf
systemd-tmpfiles --create /usr/lib/tmpfiles.d/assay.conf
umask 0 # as process 1: services of all users reach its sockets
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin XDG_RUNTIME_DIR=/run XDG_CONFIG_HOME=/var/lib XDG_CACHE_HOME=/var/cache HOME=/root \
	/lib/systemd/systemd --user --unit=basic.target --log-target=console
