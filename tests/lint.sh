#!/bin/sh
# go vet (also for arm64), staticcheck, gofmt and clang-format; prints what is wrong and fails.
set -eu
cd "$(dirname "$0")/.."
unformatted=$(gofmt -l $(git ls-files '*.go' | grep -v '\.pb\.go$'))
[ -z "$unformatted" ] || { echo "not formatted, run make fmt: $unformatted" >&2; exit 1; }
"${1:-clang-format-19}" --dry-run -Werror bpf/*.c bpf/*.h
go vet ./...
CGO_ENABLED=0 GOARCH=arm64 go vet ./...
go tool staticcheck ./...
echo "lint: clean"
