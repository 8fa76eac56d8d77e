#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Generates the Go code beside each .proto. Needs protoc (Debian: protobuf-compiler); the
# plugins are Go tools pinned in go.mod. Called by `make generate`.
set -eu
cd "$(dirname "$0")/.."
sdk=$(go list -m -f '{{.Dir}}' github.com/spiffe/spire-api-sdk)/proto
bin=$(mktemp -d)
trap 'rm -rf "$bin"' EXIT
go build -o "$bin" google.golang.org/protobuf/cmd/protoc-gen-go google.golang.org/grpc/cmd/protoc-gen-go-grpc
ln -s "$PWD/proto" "$bin/assay"
protoc --plugin="$bin/protoc-gen-go" --plugin="$bin/protoc-gen-go-grpc" \
	-I "$bin" -I "$sdk" \
	--go_out=. --go_opt=module=github.com/assay-id/assay \
	--go-grpc_out=. --go-grpc_opt=module=github.com/assay-id/assay \
	assay/evidence/evidence.proto assay/node/node.proto assay/agentadmin/agentadmin.proto assay/nodeadmin/nodeadmin.proto assay/revocation/revocation.proto assay/entry/entry.proto
