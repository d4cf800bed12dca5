# The project's commands. `make run` and `make test` need Go alone. Where Postgres is missing and root runs them, they print the
# apt-get commands and run them; NO_INSTALL=1 refuses and prints the command to run. NATS runs in the process.

GOLANGCI := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
GORELEASER := github.com/goreleaser/goreleaser/v2@v2.15.1
ACTIONLINT := github.com/rhysd/actionlint/cmd/actionlint@v1.7.12
GOVULN   := golang.org/x/vuln/cmd/govulncheck@v1.9.0
# For the Kubernetes manifests. kubectl-validate holds the API's own schemas, KEDA's module its custom resource's.
KUSTOMIZE := sigs.k8s.io/kustomize/kustomize/v5@v5.8.1
VALIDATE  := sigs.k8s.io/kubectl-validate@v0.0.4
KEDA      := github.com/kedacore/keda/v2@v2.21.0
# Before the first tag: 0.0.0-dev.<commit>.
VERSION  := $(shell git describe --tags --dirty 2>/dev/null || echo 0.0.0-dev.g$$(git describe --always --dirty 2>/dev/null || echo unknown))
REVISION := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
# The commit's time: the time of the build would change the binaries.
COMMITTED := $(shell TZ=UTC git log -1 --date=format-local:%Y-%m-%dT%H:%M:%SZ --format=%cd 2>/dev/null || echo unknown)
PORT     ?= 8080
RUN      ?= .
PACKAGES ?= ./...
FUZZTIME ?= 60s
DURATION ?= 60s
SEED     ?= 0
RATE     ?= 30
GAP      ?= 700ms
ONLY     ?=
KEEP_QUEUE ?= false

.DEFAULT_GOAL := help
.PHONY: help run up compose-test manifests test test-long check licences vuln fuzz bench profile screenshots chaos build release reproducible

help: ## List the commands.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

run: ## Run everything on this machine: Postgres, NATS, a TikTok simulator, both binaries, one sample purchase.
	@go build -o .local/bin/local ./internal/tools/local && exec .local/bin/local -port $(PORT)

up: ## The same in containers.
	VERSION=$(VERSION) REVISION=$(REVISION) COMMITTED=$(COMMITTED) docker compose up --build --wait
	@sed -n 's/^# \(A sample purchase\|What TikTok got\|What became of it\|More workers\|  *echo\|Figures\)/\1/p' docker-compose.yml

compose-test: ## Rehearse the containers: break, restart, scale, count (container engine, curl, jq; ARGS=-cluster for three NATS servers).
	@bash internal/tools/composetest.sh $(ARGS)

manifests: ## Render deploy/kubernetes and hold it against the schemas of Kubernetes 1.30 and of KEDA (downloads them the first time).
	@set -e; d=$$(mktemp -d); trap 'rm -rf "$$d"' EXIT; mkdir "$$d/crds"; \
	  for m in base migrate keda; do go run $(KUSTOMIZE) build deploy/kubernetes/$$m >"$$d/$$m.yaml"; done; \
	  cp "$$(go mod download -json $(KEDA) | sed -n 's/^.*"Dir": "\(.*\)",$$/\1/p')/config/crd/bases/keda.sh_scaledobjects.yaml" "$$d/crds/"; \
	  go run $(VALIDATE) --version 1.30 --local-crds "$$d/crds" "$$d/base.yaml" "$$d/migrate.yaml" "$$d/keda.yaml"

# More packages and tests in parallel than processors: the slow ones mostly wait. Without the option a
# race-enabled binary waits for a second at its end.
GOTEST = GORACE=atexit_sleep_ms=0 go test -race -p 4 -parallel 8

test: ## Every test, real Postgres and NATS included; unchanged packages come from Go's test cache.
	@go run ./internal/tools/testdeps
	$(GOTEST) -short -timeout 30m $(TESTFLAGS) $(PACKAGES)

test-long: ## The same in large doses, with cluster and chaos; RUN selects tests, CRASHES and CHAOS_DURATION set the doses.
	@go run ./internal/tools/testdeps
	$(GOTEST) -shuffle=on -timeout 120m -run '$(RUN)' $(TESTFLAGS) $(PACKAGES)

check: ## Format, vet and lint, workflows too. The import rules are a test, internal/archtest.
	@test -z "$$(gofmt -l cmd internal migrations)" || { gofmt -l cmd internal migrations; echo "run gofmt on these"; exit 1; }
	go mod tidy -diff
	go run $(GOLANGCI) run ./...
	go run $(ACTIONLINT)

licences: ## Refuse a module in the two binaries whose licence asks for more than its own text.
	sh internal/tools/licences.sh check

vuln: ## Known vulnerabilities in what we use (needs the vulnerability database).
	go run $(GOVULN) ./...

fuzz: ## Every fuzz test for FUZZTIME each (60s).
	@set -e; for dir in $$(grep -rl --include='*_test.go' '^func Fuzz' internal | xargs -n1 dirname | sort -u); do \
	  for f in $$(grep -ho '^func Fuzz[A-Za-z0-9_]*' $$dir/*_test.go | cut -c6-); do \
	    echo "$$dir $$f"; go test -run '^$$' -fuzz "^$$f$$" -fuzztime $(FUZZTIME) ./$$dir; done; done

bench: ## Measure everything, as ratios to baselines in the same run: a table, and .local/bench.json (40 minutes).
	@mkdir -p .local && go run ./internal/tools/bench -json .local/bench.json $(BENCH)

profile: ## Write profiles of both binaries under load into .local/profiles, for go tool pprof.
	@go run ./internal/tools/bench -for 10s -profiles .local/profiles

chaos: ## Break everything for DURATION (60s), count afterwards; SEED repeats a run, KEEP_QUEUE=true spares the queue.
	@go build -race -o .local/bin/chaos ./internal/tools/chaos && exec .local/bin/chaos -seed $(SEED) -duration $(DURATION) -keep-queue=$(KEEP_QUEUE) -rate $(RATE) -gap $(GAP) -only '$(ONLY)'

screenshots: ## The README's pictures, from a made-up ledger (needs Chromium; installed where apt-get may).
	go run ./internal/tools/screenshots

# Signatures and images need the workflow's identity and a container engine. The workflow sets RELEASE to nothing.
RELEASE ?= --snapshot --skip=publish,sign,docker
goreleaser = go run $(GORELEASER)

release: ## Archives, packages, SPDX documents and checksums into dist/; no image, no signature, nothing published.
	$(goreleaser) check
	$(goreleaser) release --clean $(RELEASE)

reproducible: ## Build the release of the current commit twice, from two clones, and compare every file.
	sh internal/tools/reproducible.sh $(GORELEASER)

build: ## Both binaries, static, into bin/: with the images' flags, the same bytes.
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '-s -w -buildid= -X purchase-relay/internal/service.version=$(VERSION) -X purchase-relay/internal/service.commit=$(REVISION) -X purchase-relay/internal/service.committed=$(COMMITTED)' -o bin/ ./cmd/...
