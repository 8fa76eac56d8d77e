#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Installs what is missing of the Debian packages, and Go. Does nothing when all is there.
#   setup.sh demo    what building and `make demo` need
#   setup.sh tests   that, and what the tests, the guests and the generators need
set -eu
demo="ca-certificates git make swtpm swtpm-tools"
tests="$demo qemu-system-x86 ovmf busybox-static cpio xz-utils e2fsprogs iproute2 clang-19 llvm-19 clang-format-19 libbpf-dev gcc libc6-dev softhsm2 opensc openssl protobuf-compiler"
services="nginx-light haproxy" # tests/clients starts its own
tests="$tests $services"
command -v npm >/dev/null || tests="$tests nodejs npm" # a Node from elsewhere brings its npm
case ${1:-} in
demo) want=$demo ;;
tests) want=$tests ;;
*) echo "usage: setup.sh demo|tests" >&2; exit 2 ;;
esac

as_root() {
	if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null; then sudo "$@"; else
		echo "Debian packages are missing ($missing) and this needs root: run it as root or install sudo" >&2; exit 1
	fi
}
updated=
apt_get() {
	[ -n "$updated" ] || as_root apt-get update -qq
	updated=1
	as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

missing=
for p in $want; do
	dpkg-query -W -f '${Status}' "$p" 2>/dev/null | grep -q 'ok installed' || missing="$missing $p"
done
if [ -n "$missing" ]; then
	command -v apt-get >/dev/null || { echo "this is not Debian; install the equivalents of:$missing" >&2; exit 1; }
	echo "installing$missing"
	# shellcheck disable=SC2086
	apt_get $missing
	for p in $services; do
		case "$missing " in *" $p "*) as_root systemctl disable --quiet --now "${p%-light}" 2>/dev/null || true ;; esac
	done
fi

# Go 1.21 or newer fetches by itself the version that go.mod asks for.
PATH="$PATH:/usr/local/go/bin"
minor() { go env GOVERSION 2>/dev/null | sed -n 's/^go1\.\([0-9]*\).*/\1/p'; }
if [ "$(minor || echo 0)" -lt 21 ] 2>/dev/null || ! command -v go >/dev/null; then
	missing=golang-go
	. /etc/os-release
	echo "installing Go from $VERSION_CODENAME-backports"
	mirror=$(sed -n 's/^deb[^ ]* \(\[[^]]*\] \)\?\([^ ]*\/debian\/\?\) .*/\2/p; s/^URIs: *\([^ ]*\/debian\/\?\)$/\1/p' /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null | head -1)
	echo "deb ${mirror:-http://deb.debian.org/debian} $VERSION_CODENAME-backports main" | as_root tee /etc/apt/sources.list.d/backports.list >/dev/null
	updated=
	apt_get -t "$VERSION_CODENAME-backports" golang-go ||
		{ echo "no Go in $VERSION_CODENAME-backports: install Go 1.26 or newer from go.dev/dl into /usr/local/go" >&2; exit 1; }
fi
