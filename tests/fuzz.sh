#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target for FUZZTIME each.
set -eu
cd "$(dirname "$0")/.."
git ls-files '*_test.go' | xargs grep -l '^func Fuzz' | while read -r f; do
	for t in $(sed -n 's/^func \(Fuzz[A-Za-z0-9_]*\)(.*/\1/p' "$f"); do
		echo "== $(dirname "$f") $t"
		go test -run '^$' -fuzz "^$t\$" -fuzztime "${FUZZTIME:-30s}" "./$(dirname "$f")" </dev/null
	done
done
