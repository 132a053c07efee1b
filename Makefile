# SPDX-License-Identifier: Apache-2.0
# make help lists what there is.

CLANG ?= clang-19
STRIP ?= llvm-strip-19
# The object in bpf/ is compared byte for byte, so its compiler is pinned to Debian's clang-19.
CLANG_VERSION := 19.1.7

# sudo does not keep the user's PATH.
GO ?= $(shell command -v go || echo /usr/local/go/bin/go)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
PREFIX ?= /usr/local
DESTDIR ?=
FUZZ_EXECUTIONS ?= 100000
MUTATIONS ?= 50000000
SEED ?= 1
# How long stress runs.
STRESS ?= 2m
# What bench-run compares with: an object, a tree or a revision. What fuzz compares with: an object.
BASE ?=

# 5.10, 6.1, 6.12, backports, newest; none named is all.
KERNELS ?=
# load, conntrack, packets, T, N, devices, with commas; none named is all.
RUNS ?=

GENERATED := $(addprefix bpf/hairpin_bpfel,.go .o) $(addprefix test/bench/traffic/traffic_bpfel,.go .o)

# su keeps the user's PATH, too, and git refuses root the history of a clone that is a user's.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
export GIT_CONFIG_COUNT := 1
export GIT_CONFIG_KEY_0 := safe.directory
export GIT_CONFIG_VALUE_0 := $(CURDIR)

export BPF2GO_CC = $(CLANG)
export BPF2GO_STRIP = $(STRIP)
export BPF2GO_CFLAGS = -I/usr/include/$(shell uname -m)-linux-gnu

.PHONY: help build test test-kernels deps-kernels conformance devices floods demo bench bench-short bench-run check graph generate deps deps-build fuzz stress install uninstall clean root

help:
	@echo "sudo make demo      see a LAN client fail without hairpin and succeed with it"
	@echo "sudo make test      every test; needs root for network namespaces and BPF"
	@echo "sudo make test-kernels   tests on Debian's kernels in qemu; writes test/KERNELS.md; KERNELS=\"6.1 newest\" for some"
	@echo "sudo make conformance   the checks of five RFCs; writes test/conformance/CONFORMANCE.md"
	@echo "sudo make devices   kinds of devices, by family, mode and path; writes test/devices/DEVICES.md"
	@echo "sudo make floods    what clients get while the router is flooded, beside nftables; half an hour; writes test/floods/FLOODS.md"
	@echo "sudo make bench     hairpin against nftables and the bare hooks, ten minutes; writes test/bench/results"
	@echo "sudo make bench-short   the same in a minute, written to bin/bench"
	@echo "sudo make bench-run     what one run of the programs costs; BASE=object, tree or revision to compare with"
	@echo "make build          bin/hairpin"
	@echo "sudo make install   bin/hairpin, a systemd unit, a configuration to start from"
	@echo "sudo make uninstall stops the daemon, detaches, removes what install made; /etc/hairpin stays"
	@echo "make check          formatting, vet, staticcheck, C warnings, generated files up to date"
	@echo "make graph          the packages and what they import"
	@echo "make generate       *_bpfel.* anew, with clang $(CLANG_VERSION)"
	@echo "sudo make fuzz      $(MUTATIONS) mutated frames through both programs; SEED=N for others;"
	@echo "                    BASE=object: through that object's programs as well, which have to answer alike"
	@echo "sudo make stress    connections opened, closed and ended on two CPUs at once, for $(STRESS)"
	@echo "make deps           what the above need and this machine lacks; each calls this itself. deps-kernels: for test-kernels"

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.release=$(VERSION)" -o bin/hairpin ./cmd/hairpin

root:
	@test "$$(id -u)" = 0 || { echo "needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }

# What clients get under a flood depends on the processor time of both, so that the floods run alone.
test: root deps
	$(GO) test -count=1 -timeout 60m $$($(GO) list ./... | grep -v /test/floods)
	$(GO) test -count=1 -timeout 60m ./test/floods
	$(GO) test -count=1 -timeout 30m -run '^$$' -fuzz '^FuzzDatapath$$' -fuzztime $(FUZZ_EXECUTIONS)x ./test/program
	@cat test/devices/DEVICES.md bin/floods.md

test-kernels: root deps-kernels
	$(GO) run ./test/kernels/boot -table test/KERNELS.md $(if $(RUNS),-runs $(RUNS)) $(KERNELS)

conformance: root deps
	$(GO) test -count=1 -run '^TestConformance$$' ./test/conformance -args -rewrite; status=$$?; cat test/conformance/CONFORMANCE.md; exit $$status

devices: root deps
	$(GO) test -count=1 -run '^TestDevices$$' ./test/devices -args -rewrite; status=$$?; cat test/devices/DEVICES.md; exit $$status

floods: root deps
	$(GO) test -count=1 -timeout 2h -run '^TestFloods$$' ./test/floods -args -rewrite; status=$$?; cat test/floods/FLOODS.md; exit $$status

fuzz: root deps
	$(GO) test -count=1 -v -timeout 0 -run '^$(if $(BASE),TestDifferential,TestMutations)$$' ./test/program -args -executions=$(MUTATIONS) -seed=$(SEED) \
		$(if $(BASE),-base=$(abspath $(BASE)))

stress: root deps
	$(GO) test -count=1 -v -timeout 0 -run '^TestRaces$$' ./test/program -args -stress=$(STRESS)

demo: root build
	test/demo/demo.sh

bench: root deps
	$(GO) run ./test/bench --out test/bench/results

bench-short: root deps
	$(GO) run ./test/bench --short --out bin/bench

bench-run: root deps
	$(GO) run ./test/bench/run $(if $(BASE),--base $(BASE))

generate: deps-build
	@$(CLANG) --version | grep -qF "version $(CLANG_VERSION)" || \
		{ echo "needs clang $(CLANG_VERSION), Debian's clang-19" >&2; exit 1; }
	$(GO) generate ./bpf ./test/bench/traffic

check: deps-build
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff
	@cd bpf && for header in *.h; do \
		$(CLANG) -target bpf -O2 -Wall -Wextra -Werror -Wno-unused-function $(BPF2GO_CFLAGS) -fsyntax-only -include $$header -x c /dev/null || \
		{ echo "bpf/$$header does not compile alone" >&2; exit 1; }; \
	done
	@before=$$(mktemp -d) && cp --parents $(GENERATED) $$before && $(MAKE) --no-print-directory generate && \
		for file in $(GENERATED); do cmp $$before/$$file $$file || stale=1; done; \
		status=$$?; rm -rf $$before; \
		test $$status = 0 -a -z "$$stale" || { echo "some files were not generated from their sources: make generate" >&2; exit 1; }

graph:
	@$(GO) list -f '{{.ImportPath}}{{range .Imports}} {{.}}{{end}}' ./... | \
		awk '{ printf "%s\n", $$1; for (i = 2; i <= NF; i++) if ($$i ~ /^hairpin\//) printf "    -> %s\n", $$i }'

deps-build:
	@CLANG=$(CLANG) STRIP=$(STRIP) test/deps.sh build

deps:
	@CLANG=$(CLANG) STRIP=$(STRIP) test/deps.sh test

deps-kernels:
	@CLANG=$(CLANG) STRIP=$(STRIP) test/deps.sh kernels

INSTALLED_BINARY := $(DESTDIR)$(PREFIX)/bin/hairpin
INSTALLED_UNIT := $(DESTDIR)$(PREFIX)/lib/systemd/system/hairpin.service

install: build
	install -D -m 0755 bin/hairpin $(INSTALLED_BINARY)
	sed 's#/usr/local/bin/#$(PREFIX)/bin/#' cmd/hairpin/dist/hairpin.service | \
		install -D -m 0644 /dev/stdin $(INSTALLED_UNIT)
	test -e $(DESTDIR)/etc/hairpin/hairpin.toml || \
		install -D -m 0644 cmd/hairpin/dist/hairpin.toml $(DESTDIR)/etc/hairpin/hairpin.toml
	install -d $(DESTDIR)/etc/hairpin/forwards.d

# First the daemon, then what it left in the kernel, then the files: a step that fails leaves what it takes to
# try again. DESTDIR is a package's tree, and nothing of this machine.
uninstall: $(if $(DESTDIR),,root)
ifeq ($(DESTDIR),)
	@if test -d /run/systemd/system && test "$$(systemctl show --property=FragmentPath --value hairpin.service)" -ef $(INSTALLED_UNIT); then \
		echo systemctl disable --now hairpin.service; systemctl disable --now hairpin.service; \
	fi
	@if test -x $(INSTALLED_BINARY); then echo $(INSTALLED_BINARY) detach --all; $(INSTALLED_BINARY) detach --all; fi
endif
	rm -f $(INSTALLED_BINARY) $(INSTALLED_UNIT)
ifeq ($(DESTDIR),)
	@if test -d /run/systemd/system; then systemctl daemon-reload; fi
endif
	@if test -e $(DESTDIR)/etc/hairpin; then echo "$(DESTDIR)/etc/hairpin stays, with your configuration: remove it yourself if you do not need it."; fi

clean:
	rm -rf bin
