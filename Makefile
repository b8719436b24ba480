# The commands a newcomer needs are the first four; `make help` lists all.

SHELL := /bin/bash -o pipefail

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
MODULE  := github.com/vendetta-dev/vendetta
LDFLAGS := -s -w -X $(MODULE)/coordination/api.Version=$(VERSION)
GOBUILD := CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

# Tools, pinned; the Go cache keeps what they build to.
BUF      := github.com/bufbuild/buf/cmd/buf@v1.75.0
LINT     := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
PROTOGEN := google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
CONNGEN  := connectrpc.com/connect/cmd/protoc-gen-connect-go@v1.21.1
VULN     := golang.org/x/vuln/cmd/govulncheck@v1.1.4

.PHONY: help quickstart quickstart-down test build cover lint vet fuzz bench soak generate release-build vuln clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-16s %s\n", $$1, $$2}'

quickstart: build ## build, start a server and a node on this machine, and drive a workspace over MCP
	@go run ./evals/quickstart -program bin/vendetta

quickstart-down: build ## remove what quickstart made, and nothing else
	@go run ./evals/quickstart -program bin/vendetta -down

test: ## install what the tests need where that is allowed, and run them all
	@evals/testbed/test.sh

build: bin/bundle/linux-$(shell go env GOARCH) lxc-helper ## bin/vendetta and the programs for Linux nodes beside it
	$(GOBUILD) -o bin/ ./cmd/vendetta

# The programs that are put on nodes; releases ship both architectures.
BUNDLES := bin/bundle/linux-amd64 bin/bundle/linux-arm64
.PHONY: $(BUNDLES)
$(BUNDLES): bin/bundle/linux-%:
	GOOS=linux GOARCH=$* $(GOBUILD) -o $@/ ./cmd/vendetta ./cmd/vendetta-guest

# The helper for LXC links this machine's liblxc, so it is built for no other kind.
.PHONY: lxc-helper
lxc-helper:
	@if [ "$$(go env GOOS)" != linux ]; then exit 0; \
	elif pkg-config --exists lxc 2>/dev/null; then \
	  echo "bin/bundle/linux-$$(go env GOARCH)/vendetta-lxc"; \
	  CGO_ENABLED=1 go build -trimpath -buildvcs=false -tags lxc -ldflags '-s -w' -o bin/bundle/linux-$$(go env GOARCH)/ ./cmd/vendetta-lxc; \
	else \
	  echo "vendetta-lxc is left out: no LXC workspaces without it (sudo apt-get install lxc-dev pkg-config gcc libc6-dev)"; \
	fi

release-build: bin/bundle/linux-amd64 bin/bundle/linux-arm64 ## the CLI for every system, and the programs for every node
	@for os in linux darwin windows; do for arch in amd64 arm64; do \
	  echo "$$os/$$arch"; GOOS=$$os GOARCH=$$arch $(GOBUILD) -o bin/release/$$os-$$arch/ ./cmd/vendetta || exit 1; done; done

cover: coverage/profile.txt ## fail under 90% of statements in any package
	@go run ./evals/cover -least 90 coverage/profile.txt

coverage/profile.txt: $(shell git ls-files '*.go' 2>/dev/null)
	@evals/testbed/test.sh

lint: vet ## golangci-lint, buf, and whether go.mod is tidy
	go run $(LINT) run ./...
	go run $(BUF) lint
	go run $(BUF) format --diff --exit-code
	go mod tidy -diff

vet:
	go vet ./...

generate: ## make the code of the .proto files anew
	@mkdir -p .cache/bin
	GOBIN=$(CURDIR)/.cache/bin go install $(PROTOGEN)
	GOBIN=$(CURDIR)/.cache/bin go install $(CONNGEN)
	PATH="$(CURDIR)/.cache/bin:$$PATH" go run $(BUF) generate

bench: build ## measure us beside docker, ssh and the raw floors, in one run
	@evals/testbed/test.sh bench

soak: build ## watch memory, processes and files over many commands
	@evals/testbed/test.sh soak

vuln: ## known vulnerabilities; needs the online database
	go run $(VULN) ./...

clean: ## remove what make made
	rm -rf bin coverage
