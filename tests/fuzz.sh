#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs every fuzz target for FUZZTIME each; fuzz.sh "tpm/ima FuzzIMA" … runs only those.
# KEEP=24 adds so many of the inputs that were found to the packages' testdata, small and large ones.
set -eu
cd "$(dirname "$0")/.."

keep() { # package, target
	found=$(go env GOCACHE)/fuzz/$(go list -m)/$1/$2
	[ -d "$found" ] || return 0
	mkdir -p "$1/testdata/fuzz/$2"
	find "$found" -type f -size -8k -printf '%s %p\n' | sort -n | awk -v keep="$KEEP" '
		{ line[NR] = $2 }
		END { for (i = 0; i < keep && i < NR; i++) print line[1 + int(i * (NR < keep ? 1 : NR / keep))] }' |
		xargs -r cp -t "$1/testdata/fuzz/$2"
}

[ $# -gt 0 ] || {
	all=$(git ls-files '*_test.go' | xargs grep -Ho '^func Fuzz[A-Za-z0-9_]*' | sed 's|/[^/]*:func | |')
	IFS='
'
	# shellcheck disable=SC2086
	set -- $all
	unset IFS
}
for target in "$@"; do
	package=${target% *} name=${target#* }
	echo "== $package $name"
	# Minimising large seeds would take all the time.
	go test -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-30s}" -fuzzminimizetime 10x "./$package" </dev/null
	[ -z "${KEEP:-}" ] || keep "$package" "$name"
done
