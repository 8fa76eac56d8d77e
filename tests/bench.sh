#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs the benchmarks that docs/benchmarks.md quotes, one after another.
set -eu
cd "$(dirname "$0")/.."
PATH="$PATH:/usr/local/go/bin"
CGO_ENABLED=0 go build -o bin/ ./tests/bench
for b in ${*:-fetch calls entries kernel propagate agents}; do bin/bench "$b"; done
