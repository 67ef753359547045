# Everything that a contributor or a CI runs. `make` alone lists the targets.
# The linters and buf are pinned in nested modules below tools/, so that the
# library's own go.mod never learns of them.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --warn-undefined-variables --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.SUFFIXES:
# The go command uses all processors by itself, and `ci` relies on its order.
.NOTPARALLEL:
.DEFAULT_GOAL := help

GO ?= go
GOFLAGS ?=
FUZZTIME ?= 10s
BENCH ?= .
BENCHTIME ?= 1s
CHAOSFLAGS ?=
HANDOFFS ?= 1000
SOAK ?= 0
OSES := linux darwin freebsd openbsd windows
# linux/386 stands for every 32-bit system: int and the fields of Timeval are
# narrower there.
PLATFORMS ?= $(foreach os,$(OSES),$(os)/amd64 $(os)/arm64) linux/386
REQUIRES := golang.org/x/sys google.golang.org/protobuf
PROTO_IMAGE := proto/crossfade-handoff-v1.binpb

# A go.work above the checkout would change versions, and -modfile refuses it.
export GOWORK := off
# A checkout that belongs to another user, as in many a CI, has no readable git
# state, and go build would fail for want of a version to stamp.
export GOFLAGS := $(strip $(GOFLAGS) -buildvcs=false)

# Nested modules with code of their own; those below tools/ only pin versions.
NESTED := $(patsubst ./%/go.mod,%,$(sort $(shell find . -mindepth 2 -name go.mod \
	-not -path './.git/*' -not -path './tools/*' -not -path '*/testdata/*')))
MODULES := $(NESTED) .

modtool = $(GO) tool -modfile=$(CURDIR)/tools/$(1)/go.mod
BUF := $(call modtool,buf) buf
GOLANGCI := $(call modtool,golangci-lint) golangci-lint
STATICCHECK := $(call modtool,staticcheck) staticcheck

# $(call in-modules,command) runs command in each module and stops at the first
# failure.
in-modules = @for dir in $(MODULES); do \
	echo "[$$dir] "$(call quote,$(1)); (cd "$$dir"; $(1)); done
quote = '$(subst ','\'',$(1))'

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: demo
demo: ## Replace a running server under load and show what its clients notice
	@./examples/bluegreen/demo.sh

.PHONY: test
test: ## Run all tests with the race detector, in random order
	$(call in-modules,$(GO) test -race -shuffle=on ./...)

.PHONY: chaos
chaos: ## Kill, stop and confuse each side at each message, and look who owns (CHAOSFLAGS=-short: a part)
	$(GO) run -race ./internal/chaos $(CHAOSFLAGS)

.PHONY: soak
soak: ## Hand one service over HANDOFFS times (1000) under load, with faults at random
	$(GO) run -race ./internal/chaos -soak $(HANDOFFS) $(CHAOSFLAGS)

# What fuzzing finds lands in testdata/fuzz and belongs in a commit.
.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME (10s, or a count such as 1000x)
	@for dir in $(MODULES); do (cd "$$dir"; \
		$(GO) test -list='^Fuzz' ./... | \
		awk '/^Fuzz/ { t[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, t[i]; n = 0 }' | \
		while read -r package target; do \
			echo "[$$dir] $$package $$target"; \
			$(GO) test -run='^$$' -fuzz="^$$target\$$" -fuzztime='$(FUZZTIME)' "$$package" </dev/null; \
		done); done

.PHONY: bench
bench: ## Run the benchmarks that match BENCH (all), each for BENCHTIME (1s)
	$(call in-modules,$(GO) test -run='^$$' -bench='$(BENCH)' -benchtime='$(BENCHTIME)' -benchmem ./...)

.PHONY: bench-door
bench-door: ## Hand over while the control socket is attacked, and show what that takes
	$(GO) test -run='^$$' -bench='^BenchmarkDoor$$' -benchtime=20x .

.PHONY: bench-http
bench-http: ## Replace an HTTP server under load, with Shutdown and with httphandoff (SOAK=300: only that, so often)
	$(GO) run ./examples/bluegreen/compare -soak '$(SOAK)'

.PHONY: fmt
fmt: ## Format the Go code and the protocol definition
	$(GOLANGCI) fmt
	$(BUF) format --write

# The page is written when it is complete: a tool that does not build leaves the old one.
.PHONY: generate
generate: ## Regenerate the protobuf code, and the man page of the tool
	$(BUF) generate
	page=$$($(GO) run ./cmd/crossfade man); printf '%s\n' "$$page" >docs/crossfade.1

# The image is the promise that lint-proto holds every change against. Until the
# first release tag it may be rewritten at will. From then on it can only grow:
# what a released version speaks never leaves it, not even by this target.
.PHONY: proto-image
proto-image: ## Record the wire format that later changes may not break
	if [ -n "$$(git tag --list 'v*')" ]; then \
		$(BUF) breaking --against '$(PROTO_IMAGE)'; \
	fi
	$(BUF) build --exclude-source-info -o '$(PROTO_IMAGE)'

# Like the image: once a version is released no transcript changes any more.
.PHONY: transcripts
transcripts: ## Record the conversations that every later version must understand
	$(GO) test ./handoff -run='^TestTranscripts$$' -update

.PHONY: lint
lint: lint-format lint-modules lint-go lint-systems lint-proto lint-selftest ## Run every static check

.PHONY: lint-format
lint-format:
	$(GOLANGCI) fmt --diff
	$(BUF) format --diff --exit-code

# The modules below tools/ are not tidied: that would fetch what the tests of
# each tool need, which nobody here ever builds.
.PHONY: lint-modules
lint-modules:
	$(call in-modules,$(GO) mod tidy -diff)
	@diff <(printf '%s\n' $(REQUIRES)) \
		<($(GO) mod graph | awk '$$1 !~ /@/ && $$2 !~ /^(go|toolchain)@/ { sub(/@.*/, "", $$2); print $$2 }' | sort) || \
		{ echo 'go.mod: these requirements and no others are meant: $(REQUIRES)' >&2; exit 1; }

.PHONY: lint-go
lint-go:
	$(call in-modules,$(GO) vet ./...)
	$(call in-modules,$(GO) fix -diff ./...)
	$(call in-modules,$(STATICCHECK) ./...)
	$(call in-modules,$(GOLANGCI) run --config='$(CURDIR)/.golangci.yml' ./...)

# The files of the other systems. What only some of them need counts as unused on
# the rest, and so does the nolint directive of a finding that another one has.
# With GOOS set, go tool would build the linter itself for that system; the path
# that -n prints is right once lint-go has run it.
.PHONY: lint-systems
lint-systems: lint-go
	@staticcheck=$$($(call modtool,staticcheck) -n staticcheck); \
	golangci=$$($(call modtool,golangci-lint) -n golangci-lint); \
	for os in $(filter-out $(shell $(GO) env GOHOSTOS),$(OSES)); do \
		echo "[$$os] staticcheck, golangci-lint"; export GOOS=$$os CGO_ENABLED=0; \
		"$$staticcheck" -checks=inherit,-U1000 ./...; \
		"$$golangci" run --disable=unused,nolintlint ./...; \
	done

.PHONY: lint-proto
lint-proto:
	$(BUF) lint
	$(BUF) breaking --against '$(PROTO_IMAGE)'
	@tmp=$$(mktemp -d); trap 'rm -rf "$$tmp"' EXIT; \
	cp -R proto "$$tmp"; find "$$tmp" -name '*.pb.go' -delete; \
	$(BUF) generate -o "$$tmp"; \
	diff -ru proto "$$tmp/proto" || { echo 'generated code is out of date: make generate' >&2; exit 1; }

.PHONY: lint-selftest
lint-selftest: ## Prove that the import rules of .golangci.yml bite
	@tools/lint-selftest.sh $(GOLANGCI)

# build links the commands, list compiles the tests without linking them, which
# would cost minutes and find nothing more. Only the root module promises to work
# everywhere.
.PHONY: cross
cross: ## Build the code and the tests, and vet them, for every platform in PLATFORMS
	@for platform in $(PLATFORMS); do \
		export CGO_ENABLED=0 GOOS=$${platform%/*} GOARCH=$${platform#*/}; \
		echo "[$$platform] go build, the tests too, and go vet"; \
		$(GO) build ./...; $(GO) list -export -test ./... >/dev/null; $(GO) vet ./...; \
	done

# The model of docs/protocol.md: every claim holds, every mutation is caught. It
# needs spin (Debian package of that name) and a C compiler.
.PHONY: model
model: ## Check the model of the protocol with spin
	$(GO) run ./docs/model

# The tests come last: their summary is what a CI shows. Fuzzing is counted
# instead of timed, because a deadline that strikes on a busy machine makes the
# engine report a failure that is none.
.PHONY: ci
ci: FUZZTIME := 1000x
ci: BENCHTIME := 1x
ci: CHAOSFLAGS := -short
ci: lint cross model fuzz bench demo chaos test ## Run all of this, as CI does
