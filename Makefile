# Every target starts from nothing: it installs what it needs by itself, into
# the user's cache directory and ./bin.

GO ?= go
# For the binary, and for all else so that everything is compiled once. The race
# detector needs cgo.
export GOFLAGS := $(GOFLAGS) -trimpath
export CGO_ENABLED := 0
VERSION := $(shell git describe --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
GOLANGCI_LINT := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
ACTIONLINT := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12

# Extra flags for the tests, such as TESTFLAGS='-run TestFold -v'.
TESTFLAGS ?=
# What the tests run against Apache Kafka: 1 must run, 0 skip, unset if present.
SLUICE_TEST_KAFKA ?= 1
export SLUICE_TEST_KAFKA

# Where make e2e finds the whole corpus; the repository has a slice of it.
DATA ?=

.PHONY: run build test sdk guard faults fuzz compose-test manifests monitoring walkthrough e2e bench bench-report bench-search check fmt clean engine kafka prometheus help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "%-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: build engine ## the whole pipeline on 127.0.0.1:8080, data under ./sluice-data
	./bin/sluice serve

build: ## the binary, bin/sluice: static but for libc's loader, no cgo
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/sluice ./cmd/sluice

engine: ## install ClickHouse's library
	@scripts/install-tools.sh npm openssl
	@scripts/install-libchdb.sh

kafka: ## install Apache Kafka, for the tests
	@scripts/install-tools.sh java mvn
	@scripts/install-kafka.sh
	@KAFKA_VERSION=3.9.1 scripts/install-kafka.sh # has ZooKeeper, for replicated tables
	@cd tools && $(GO) run ./kafkaarchive

prometheus: ## build Prometheus, for make monitoring
	@scripts/install-prometheus.sh

# The benchmark and the programs of tools run without the race detector, which
# slows what they measure.
MEASURES := /internal/bench$$

# What test and tools test is in other modules, whose changes go test does not see:
# their results are never taken from its cache.
test: engine kafka sdk ## every test, with the race detector, on real engines
	@scripts/install-tools.sh gcc curl
	CGO_ENABLED=1 SLUICE_TEST_SDK=1 $(GO) test -race -timeout 20m $(TESTFLAGS) $$($(GO) list ./... | grep -vE '$(MEASURES)')
	$(GO) test -timeout 20m $(TESTFLAGS) $$($(GO) list ./... | grep -E '$(MEASURES)')
	cd test && CGO_ENABLED=1 SLUICE_TEST_SDK=1 $(GO) test -race -count=1 -timeout 20m $(TESTFLAGS) ./...
	cd tools && $(GO) test -count=1 -timeout 20m $(TESTFLAGS) ./...

sdk: ## build, lint and test the client libraries; make test has them work with a server
	@scripts/install-tools.sh gcc npm python3 python3-venv chromium
	cd sdk/go && CGO_ENABLED=1 $(GO) test -race ./...
	cd sdk/typescript && npm ci --no-audit --no-fund && SLUICE_TEST_BROWSER=1 npm test
	sdk/python/check.sh

manifests: ## check the systemd units and the Kubernetes manifests, with the program and their own types
	@scripts/install-tools.sh systemd-analyze
	cd deploy/validate && SLUICE_TEST_SYSTEMD=1 $(GO) test -count=1 ./...

guard: engine ## that creates have not become much slower than what limits them
	$(GO) test -count=1 -timeout 10m -run '^TestCreatesKeepUp$$' -v ./internal/bench

compose-test: engine ## docker compose up, tested on a Docker daemon of its own, with images that are built here
	scripts/docker.sh sh -c 'deploy/standins/build.sh && cd test && \
		SLUICE_TEST_DOCKER=1 $(GO) test -count=1 -timeout 25m -run "^TestCompose$$" -v $(TESTFLAGS) ./e2e'

# How much of the fault suite: SHORT=1 is what CI runs, RELEASE=1 takes hours.
SHORT ?=
RELEASE ?=
faults: engine kafka ## break everything and check that nothing is lost: SHORT=1, RELEASE=1
	cd test && CGO_ENABLED=$(if $(findstring -race,$(TESTFLAGS)),1,0) SLUICE_FAULTS=$(if $(RELEASE),release,$(if $(SHORT),short,full)) \
		$(GO) test -tags faults -count=1 -timeout $(if $(RELEASE),24h,2h) -parallel 4 -run '^TestFault' -v $(TESTFLAGS) ./e2e

# How long each fuzz target runs.
FUZZTIME ?= 30s
fuzz: engine ## every fuzz target, at once
	@scripts/fuzz.sh $(FUZZTIME)

e2e: engine kafka ## the end-to-end tests alone, on the whole corpus with DATA=DIR
	cd test && SLUICE_DATA=$(abspath $(DATA)) $(GO) test -count=1 -timeout 30m -v $(TESTFLAGS) ./e2e

monitoring: engine prometheus ## dashboard and alerts, run by a real Prometheus on a Sluice under load
	cd test && SLUICE_TEST_PROMETHEUS=1 $(GO) test -count=1 -timeout 10m -run '^Test(Dashboard|Alerts|Monitoring)' -v $(TESTFLAGS) ./e2e

walkthrough: build engine kafka ## docs/walkthrough: play its script and record it as a cast, an SVG and an MP4; 2 min
	@scripts/install-tools.sh bash curl ffmpeg fonts-dejavu-core jq kcat protoc python3 python3-venv
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/sluice-bench ./cmd/sluice-bench
	cd tools && $(GO) build -o ../bin/walkthrough-servers ./walkthrough
	tools/walkthrough/walkthrough.sh docs/walkthrough

bench: build engine ## 500,000 creates, 200,000 updates, 200,000 deletes: time until visible
	$(GO) build -ldflags '$(LDFLAGS)' -o bin/sluice-bench ./cmd/sluice-bench
	./bin/sluice-bench

bench-report: build engine kafka ## docs/benchmarks: all loads, on the embedded broker and Apache Kafka; 20 min
	cd tools && $(GO) run ./benchreport -version $(VERSION) && $(GO) run ./plots

# How much make bench-search searches: contents:vectors, several with commas between.
SIZES ?= 1000000:1000000
bench-search: engine ## docs/search.md: searches and lists at SIZES=contents:vectors, of the whole corpus with DATA=DIR; 5 min
	cd tools && $(GO) run ./searchbench -version $(VERSION) -sizes $(SIZES) $(if $(DATA),-data $(abspath $(DATA)))

# What gofmt reads: not what npm installs.
GOFILES := cmd internal test tools sdk/go sdk/spec deploy
# Go modules beside the product's.
MODULES := test tools sdk/go deploy/validate
check: ## formatting, vet, linters, tidy modules
	@test -z "$$(gofmt -l $(GOFILES))" || { gofmt -l $(GOFILES); exit 1; }
	$(GO) run $(ACTIONLINT) -shellcheck= .github/workflows/*.yml
	set -e; for module in . $(MODULES); do (set -ex; cd $$module; \
		$(GO) mod tidy -diff; $(GO) mod verify; $(GO) vet ./...; $(GO) run $(GOLANGCI_LINT) run ./...); done

fmt: ## format the code
	set -e; for module in . $(MODULES); do (cd $$module; $(GO) run $(GOLANGCI_LINT) fmt ./...); done

clean: ## remove what was built; data stays
	rm -rf bin
