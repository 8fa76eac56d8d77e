#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the tests: all | unit | scenarios | faults | soak | conformance | redteam | clients | deploy | guest | measured. ASSAY_NO_SKIP turns a skip into a failure.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/local/go/bin:/usr/sbin:/sbin"
[ "$(id -u)" = 0 ] || { echo "the tests load programs into the kernel: run them as root (sudo make test)" >&2; exit 1; }
export CGO_ENABLED=0 ASSAY_NO_SKIP=1 ASSAY_BIN="$PWD/bin"
what=${1:-all}

echo "natively:  tier T2 (tracepoints, cgroup programs) on $(uname -r)"
echo "in guests: tier T1 (BPF LSM) with /dev/tpmrm0 on Debian's kernels 6.1 and 6.12"

unit() {
	echo "== unit tests"
	# -p 2: packages with real kernels, TPMs and stores are heavy.
	go test -p 2 $(go list ./... | grep -v '/tests/')
}
scenarios() {
	echo "== scenarios, natively"
	go test -count=1 ./tests/scenarios
}
faults() {
	echo "== faults of a cluster (ASSAY_FAULTS=all for all of them) and of an agent (ASSAY_KILLS=200, ASSAY_STREAMS=5000)"
	go test -count=1 ./tests/faults
}
soak() {
	echo "== churn with simulated agents (ASSAY_SOAK=30m for a long run)"
	go test -count=1 -timeout 2h ./tests/soak
}
conformance() {
	echo "== conformance to the SPIFFE standards"
	go test -count=1 ./tests/conformance
}
redteam() {
	echo "== red team, natively"
	go test -count=1 ./tests/redteam
}
clients() {
	echo "== unmodified clients under rotation"
	go test -count=1 -v ./tests/clients
}
deploy() {
	echo "== the systemd units, under a systemd of their own"
	go test -count=1 -v ./tests/deploy
}
guest() {
	echo "== scenarios and red team, in guests"
	go test -count=1 -timeout 55m -v ./tests/guest
}
measured() {
	echo "== measured boots: direct, unified kernel image, Secure Boot"
	go test -count=1 -timeout 30m -v ./tests/measured
}
case $what in
all) ./tests/lint.sh; unit; scenarios; faults; soak; conformance; redteam; clients; deploy; guest; measured ;;
unit | scenarios | faults | soak | conformance | redteam | clients | deploy | guest | measured) "$what" ;;
*) echo "usage: run.sh all|unit|scenarios|faults|soak|conformance|redteam|clients|deploy|guest|measured" >&2; exit 2 ;;
esac
echo "== passed: $what"
