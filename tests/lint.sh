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
staticcheck=$(go tool -n staticcheck)
(cd tests/clients/gospiffe && go vet . && "$staticcheck" .)
# The one program with cgo, which the lines above saw without.
CGO_ENABLED=1 go vet ./cmd/assay-pkcs11
CGO_ENABLED=1 go tool staticcheck ./cmd/assay-pkcs11
echo "lint: clean"
