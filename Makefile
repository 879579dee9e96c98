# `make help` lists what there is to make.

GO ?= go
STATICCHECK ?= $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2

# Set by scripts/test-setup; empty, and the tests say that they are skipped.
PYTHON = $(or $(OSIRIS_TEST_PYTHON),$(wildcard $(CURDIR)/.venv/bin/python))
NODE = $(or $(OSIRIS_TEST_NODE),$(wildcard $(CURDIR)/.node))
# The race detector takes a C compiler.
RACE = $(shell command -v "$$($(GO) env CC)" >/dev/null && [ "$$($(GO) env CGO_ENABLED)" = 1 ] && echo -race)
# DuckDB's driver is a module of its own, since it takes that and a C++ library.
DUCKDB = $(if $(RACE),$(shell test -f "$$($$($(GO) env CC) -print-file-name=libstdc++.a)" && echo worker/drivers/duckdb))

FUZZTIME ?= 60s
COUNT ?= 5
TESTFLAGS ?= -timeout 9m
# A program with the race detector waits for a second before it ends: so would
# every worker of the tests, and its supervisor again.
export GORACE ?= atexit_sleep_ms=0

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: test
test: ## install what is missing, check the code, run all tests with the race detector
	@scripts/test-setup
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory gotest

.PHONY: gotest
gotest: ## only run the tests
	OSIRIS_TEST_PYTHON="$(PYTHON)" OSIRIS_TEST_NODE="$(NODE)" GO="$(GO)" scripts/gotest $(RACE) -vet=off -parallel 8 -shuffle=on $(TESTFLAGS) ./...
	$(if $(DUCKDB),cd $(DUCKDB) && OSIRIS_TEST_PYTHON="$(PYTHON)" $(GO) test -shuffle=on $(TESTFLAGS) ./...)
	cd otel && $(GO) test $(RACE) -shuffle=on $(TESTFLAGS) ./...
	@[ -n "$(DUCKDB)" ] || echo "test: there is no C compiler with libstdc++.a: the tests of worker/drivers/duckdb were skipped"
	@[ -n "$(RACE)" ] || echo "test: there is no C compiler: the race detector was off"
	@[ -n "$(PYTHON)" ] || echo "test: there is no .venv with pandas and e2b: the tests with them were skipped"
	@[ -n "$(NODE)" ] || echo "test: there is no .node with e2b: the tests with it were skipped"

.PHONY: lint
lint: ## check format, go vet on three systems, staticcheck, go.mod
	@echo "gofmt"; files=$$(gofmt -l .) && [ -z "$$files" ] || { echo "not formatted:"; echo "$$files"; exit 1; }
	$(GO) vet ./...
	GOOS=darwin $(GO) vet ./...
	GOOS=windows $(GO) vet ./...
	$(STATICCHECK) ./...
	$(GO) mod tidy -diff
	cd otel && $(GO) vet ./... && $(STATICCHECK) ./... && $(GO) mod tidy -diff
	@# No go mod tidy there: it fetches DuckDB for all platforms, half a gigabyte.
	$(if $(DUCKDB),cd $(DUCKDB) && $(GO) vet ./... && $(STATICCHECK) ./...)

.PHONY: stress
stress: ## run the tests with full counts, then COUNT times with usual ones, then every fuzz target for FUZZTIME; E2B_ENVD_BIN adds E2B's daemon
	@scripts/test-setup
	OSIRIS_STRESS=1 $(GO) test -count=1 -v -timeout 1h -run '^TestCutsDuringFlood$$' .
	@OSIRIS_STRESS=1 $(MAKE) --no-print-directory gotest TESTFLAGS="-count=1 -timeout 3h"
	@$(MAKE) --no-print-directory gotest TESTFLAGS="-count=$(COUNT) -timeout 3h"
	scripts/fuzz $(FUZZTIME)

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME
	scripts/fuzz $(FUZZTIME)

.PHONY: bench
bench: ## run the benchmarks
	OSIRIS_TEST_PYTHON="$(PYTHON)" $(GO) test -run '^$$' -bench . -benchmem ./...
	$(if $(DUCKDB),cd $(DUCKDB) && OSIRIS_TEST_PYTHON="$(PYTHON)" $(GO) test -run '^$$' -bench . -benchmem .)

.PHONY: worker-duckdb
worker-duckdb: ## build osiris-worker-duckdb, the worker program with DuckDB, for this platform
	scripts/worker-duckdb osiris-worker-duckdb -trimpath

.PHONY: golden
golden: ## write the golden files of the tests anew
	@scripts/test-setup
	scripts/golden

.PHONY: cover
cover: ## print the coverage of every package by all tests
	$(GO) test -coverpkg=./... -coverprofile=cover.prof ./...
	$(GO) tool cover -func=cover.prof | tail -n 1
	@echo "by line: go tool cover -html=cover.prof"

.PHONY: clean
clean: ## remove what the targets above made
	rm -rf .venv .node cover.prof run_logs
