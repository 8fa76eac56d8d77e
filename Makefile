# SPDX-License-Identifier: Apache-2.0
# Every target is one sentence in `make help`.
SHELL := /bin/sh
.DEFAULT_GOAL := help

# The pinned compiler of the BPF objects; they are committed, so only `make generate` needs it.
CLANG := clang-19
CLANG_FORMAT := clang-format-19
GO := CGO_ENABLED=0 go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)

.PHONY: help setup setup-tests build install build-pkcs11 demo dev test test-unit test-scenarios test-guest test-measured test-clients interop fuzz bench lint fmt generate check-generated clean

help: ## Lists every target.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  %-16s %s\n", $$1, $$2}' Makefile

setup: ## Installs the Debian packages that building and `make demo` need (and Go, if there is none).
	@./tests/setup.sh demo

setup-tests: ## Installs what `make test` needs on top: QEMU and two Debian kernels for the guests, clang for the linters.
	@./tests/setup.sh tests

build: setup ## Builds assay, assay-agent and assay-server into bin/.
	@PATH="$$PATH:/usr/local/go/bin" $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ ./cmd/assay ./cmd/assay-agent ./cmd/assay-server

build-pkcs11: setup ## Builds assay-pkcs11, which loads an HSM's module for assay-server, into bin/. Needs gcc and libc6-dev.
	@command -v gcc >/dev/null || { echo "assay-pkcs11 loads C libraries, so it is built with gcc: apt-get install gcc libc6-dev" >&2; exit 1; }
	@PATH="$$PATH:/usr/local/go/bin" CGO_ENABLED=1 go build -trimpath -ldflags '-s -w' -o bin/ ./cmd/assay-pkcs11

install: build ## Puts programs, systemd units, users and example configurations below DESTDIR (default: this machine).
	@./deploy/install.sh "$(DESTDIR)"

demo: build ## Tells the story: a node proves itself, workloads get identities, impostors fail. Needs root.
	@$(GO) build -trimpath -o bin/ ./tests/demo ./tests/demo/payments ./tests/demo/ledger
	@bin/demo

dev: build ## Runs a server and an agent in the foreground for your own experiments. Needs root.
	@bin/assay dev

test: setup-tests build build-pkcs11 ## Runs everything: lint, unit tests, scenarios on this kernel (tier T2), others' clients, then the same in guests (tier T1), then measured boots. Needs root.
	@./tests/run.sh all

test-unit: setup-tests ## Runs the unit tests only.
	@./tests/run.sh unit

test-scenarios: setup-tests build ## Runs the scenarios on this kernel only.
	@./tests/run.sh scenarios

test-guest: setup-tests build ## Runs the scenarios in QEMU guests only, one boot per kernel.
	@./tests/run.sh guest

test-measured: setup-tests build ## Boots machines whose firmware measures what it starts, and changes one byte. Needs root.
	@./tests/run.sh measured

test-clients: setup-tests build ## Runs unmodified clients, from go-spiffe to nginx, while SVIDs rotate and the agent is killed. Needs root; SPIFFE_HELPER=, GHOSTUNNEL=, NODE_SPIFFE=path add those.
	@SPIFFE_HELPER="$(SPIFFE_HELPER)" GHOSTUNNEL="$(GHOSTUNNEL)" NODE_SPIFFE="$(NODE_SPIFFE)" ./tests/run.sh clients

interop: build ## Runs beside others' programs: make interop SPIRE_AGENT=path SPIRE_SERVER=path PEBBLE=path. Needs root.
	@SPIRE_AGENT="$(SPIRE_AGENT)" SPIRE_SERVER="$(SPIRE_SERVER)" PEBBLE="$(PEBBLE)" $(GO) test -count=1 -v ./tests/interop

fuzz: ## Runs every fuzz target for FUZZTIME (default 30s) each.
	@./tests/fuzz.sh

bench: build ## Runs the benchmarks that docs/benchmarks.md quotes. Needs root.
	@./tests/bench.sh

lint: ## Vets, runs staticcheck, and checks formatting.
	@./tests/lint.sh $(CLANG_FORMAT)

fmt: ## Formats Go and C.
	@gofmt -w $$(git ls-files '*.go' | grep -v '\.pb\.go$$'); $(CLANG_FORMAT) -i bpf/*.c bpf/*.h

generate: ## Regenerates the BPF objects and the protobuf code (needs clang-19 and protoc: make setup-tests).
	@./proto/generate.sh
	@go generate ./bpf

check-generated: generate ## Fails if what is committed differs from what the sources generate.
	@git diff --exit-code --stat -- proto bpf || { echo "generated code is stale: run make generate and commit it" >&2; exit 1; }

clean: ## Removes what the targets above built; Debian packages stay.
	@rm -rf bin .cache
