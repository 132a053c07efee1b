# SPDX-License-Identifier: Apache-2.0
# make help lists the targets.

CLANG ?= clang-19
STRIP ?= llvm-strip-19
# make check compares the objects byte for byte, so the compiler must be exactly this version.
CLANG_VERSION := 19.1.7

# sudo does not keep the user's PATH, so go may not be in it.
GO ?= $(shell command -v go || echo /usr/local/go/bin/go)
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null)
PREFIX ?= /usr/local
DESTDIR ?=
FUZZ_EXECUTIONS ?= 100000
MUTATIONS ?= 50000000
SEED ?= 1
# How long stress runs.
STRESS ?= 2m
# bench-run compares with this object, tree or revision; fuzz compares with this object.
BASE ?=

# check asks this database of vulnerabilities, a URL; empty: that of govulncheck.
VULNDB ?=

# torture runs for two days instead of 20 minutes.
LONG ?=

# For test-kernels: 5.10, 6.1, 6.12, backports, newest, arm64; empty: all.
KERNELS ?=
# For test-kernels: load, conntrack, floods, death, upgrades, forgery, packets, T, T6, N, beside, trace, tracing, virtio, devices, separated by commas; empty: all.
RUNS ?=

GENERATED := $(foreach object,hairpin explain trace,$(addprefix bpf/$(object)_bpfel,.go .o)) $(addprefix test/bench/traffic/traffic_bpfel,.go .o)

# su keeps the user's PATH, which has no sbin directories. git refuses to read a user's clone as root without safe.directory.
export PATH := $(PATH):/usr/local/sbin:/usr/sbin:/sbin
export GIT_CONFIG_COUNT := 1
export GIT_CONFIG_KEY_0 := safe.directory
export GIT_CONFIG_VALUE_0 := $(CURDIR)

export BPF2GO_CC = $(CLANG)
export BPF2GO_STRIP = $(STRIP)
export BPF2GO_CFLAGS = -I/usr/include/$(shell uname -m)-linux-gnu

.PHONY: help build test test-kernels deps-kernels conformance devices floods torture demo bench bench-short bench-run check graph generate man deps deps-build fuzz coverage stress packages install install-files uninstall clean root

help:
	@echo "sudo make demo      shows a LAN client that fails without hairpin and succeeds with hairpin"
	@echo "sudo make test      every test; needs root for network namespaces and BPF"
	@echo "sudo make test-kernels   tests on Debian's kernels in qemu; writes test/KERNELS.md; KERNELS=\"6.1 newest\" runs only these"
	@echo "sudo make conformance   the checks of five RFCs; writes test/conformance/CONFORMANCE.md"
	@echo "sudo make devices   kinds of devices, by family, mode and path; writes test/devices/DEVICES.md"
	@echo "sudo make floods    clients during floods, with hairpin and with nftables; half an hour; writes test/floods/FLOODS.md"
	@echo "sudo make torture   floods, death, upgrades, writers, changes under load, with a figure for each promise; 20 minutes;"
	@echo "                    writes test/TORTURE.md; LONG=1: two days"
	@echo "sudo make bench     compares hairpin with nftables and the bare hooks; 15 minutes; writes test/bench/results"
	@echo "sudo make bench-short   a short form of bench; two minutes; writes bin/bench"
	@echo "sudo make bench-run     time of one run of each program; BASE=object, tree or revision: compares with it"
	@echo "make build          builds bin/hairpin"
	@echo "sudo make install   installs bin/hairpin, systemd units, man pages and a first configuration"
	@echo "sudo make uninstall stops the daemon, detaches, removes the installed files; /etc/hairpin stays"
	@echo "make packages       builds deb, rpm, apk, ipk and a tarball, for amd64 and arm64, into bin/packages"
	@echo "make check          formatting, vet, staticcheck, govulncheck, C warnings, generated files up to date"
	@echo "make graph          the packages and their imports"
	@echo "make generate       generates *_bpfel.* again, with clang $(CLANG_VERSION)"
	@echo "sudo make fuzz      $(MUTATIONS) mutated frames through both programs; SEED=N: other frames;"
	@echo "                    BASE=object: also through the programs of this object; the verdicts must be equal"
	@echo "sudo make coverage  which lines of C the tests of single packets run; writes test/program/COVERAGE.md"
	@echo "sudo make stress    connections opened, closed and ended on two CPUs at once, for $(STRESS)"
	@echo "make man            writes the man pages again, from the help texts and the comments of the configuration file"
	@echo "make deps           installs missing packages; the other targets call it. deps-kernels: for test-kernels"

build:
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.release=$(VERSION)" -o bin/hairpin ./cmd/hairpin

root:
	@test "$$(id -u)" = 0 || { echo "needs root; run sudo make $(MAKECMDGOALS)" >&2; exit 1; }

# The packages that take longest begin first, so that no CPU waits at the end. Three run at the same time, as tests often wait; those that
# nearly always wait call t.Parallel, and four of a package run at the same time. The results of floods and torture depend on free CPU
# time, so they run after the other tests, one after the other. torture runs the short form of TestFloods.
test: root deps
	$(GO) test -count=1 -p 3 -parallel 4 -timeout 60m $$($(GO) list ./test/network ./test/program ./test/control ./test/packages ./loader ./test/setups ./test/doctor ./... | grep -v -e /test/floods -e /test/torture)
	$(GO) test -count=1 -p 1 -timeout 60m -skip '^TestFloods$$' ./test/floods ./test/torture
	$(GO) test -count=1 -timeout 30m -run '^$$' -fuzz '^FuzzDatapath$$' -fuzztime $(FUZZ_EXECUTIONS)x ./test/program
	@cat test/devices/DEVICES.md bin/torture.md

test-kernels: root deps-kernels
	$(GO) run ./test/kernels/boot -table test/KERNELS.md $(if $(RUNS),-runs $(RUNS)) $(KERNELS)

conformance: root deps
	$(GO) test -count=1 -run '^TestConformance$$' ./test/conformance -args -rewrite; status=$$?; cat test/conformance/CONFORMANCE.md; exit $$status

devices: root deps
	$(GO) test -count=1 -run '^TestDevices$$' ./test/devices -args -rewrite; status=$$?; cat test/devices/DEVICES.md; exit $$status

floods: root deps
	$(GO) test -count=1 -timeout 2h -run '^TestFloods$$' ./test/floods -args -rewrite; status=$$?; cat test/floods/FLOODS.md; exit $$status

torture: root deps
	$(GO) test -count=1 -v -timeout $(if $(LONG),0,1h) -run '^TestTorture$$' ./test/torture -args -rewrite $(if $(LONG),-long)

fuzz: root deps
	$(GO) test -count=1 -v -timeout 0 -run '^$(if $(BASE),TestDifferential,TestMutations)$$' ./test/program -args -executions=$(MUTATIONS) -seed=$(SEED) \
		$(if $(BASE),-base=$(abspath $(BASE)))

coverage: root deps
	$(GO) test -count=1 -timeout 2h ./test/program -args -coverage=$(CURDIR)/test/program/COVERAGE.md; status=$$?; cat test/program/COVERAGE.md; exit $$status

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
		{ echo "needs clang $(CLANG_VERSION) of Debian's package clang-19" >&2; exit 1; }
	$(GO) generate ./bpf ./test/bench/traffic

man: deps-build
	$(GO) test -count=1 -run '^TestManPages$$' ./cmd/hairpin -args -rewrite

check: deps-build
	@test -z "$$(gofmt -l .)" || { gofmt -d .; exit 1; }
	$(GO) vet ./...
	GOARCH=arm64 CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/hairpin
	$(GO) tool staticcheck ./...
	$(GO) mod tidy -diff
	$(GO) test -count=1 -run '^TestManPages$$' ./cmd/hairpin
	@said=$$($(GO) tool govulncheck $(if $(VULNDB),-db $(VULNDB)) ./... 2>&1) || status=$$?; \
		case "$$status $$said" in \
		" "*) ;; \
		"1 govulncheck: fetching vulnerabilities"*) echo "govulncheck: its database cannot be reached; nothing was looked up" ;; \
		*) echo "$$said" >&2; exit 1 ;; \
		esac
	@cd bpf && for header in *.h; do \
		$(CLANG) -target bpf -O2 -Wall -Wextra -Werror -Wno-unused-function $(BPF2GO_CFLAGS) -fsyntax-only -include $$header -x c /dev/null || \
		{ echo "bpf/$$header does not compile alone" >&2; exit 1; }; \
	done
	@before=$$(mktemp -d) && cp --parents $(GENERATED) $$before && $(MAKE) --no-print-directory generate && \
		for file in $(GENERATED); do cmp $$before/$$file $$file || stale=1; done; \
		status=$$?; rm -rf $$before; \
		test $$status = 0 -a -z "$$stale" || { echo "some generated files differ from their sources; run make generate" >&2; exit 1; }

graph:
	@$(GO) list -f '{{.ImportPath}}{{range .Imports}} {{.}}{{end}}' ./... | \
		awk '{ printf "%s\n", $$1; for (i = 2; i <= NF; i++) if ($$i ~ /^hairpin\//) printf "    -> %s\n", $$i }'

deps-build:
	@CLANG=$(CLANG) STRIP=$(STRIP) test/deps.sh build

deps:
	@CLANG=$(CLANG) STRIP=$(STRIP) test/deps.sh test

deps-kernels:
	@CLANG=$(CLANG) STRIP=$(STRIP) test/deps.sh kernels

packages:
	GO=$(GO) cmd/hairpin/package/build.sh bin/packages

# The binary that install-files installs.
BINARY := bin/hairpin
INSTALLED_BINARY := $(DESTDIR)$(PREFIX)/bin/hairpin
INSTALLED_SHARE := $(DESTDIR)$(PREFIX)/share/hairpin
INSTALLED_MAN := $(DESTDIR)$(PREFIX)/share/man
INSTALLED_UNITS := $(DESTDIR)$(PREFIX)/lib/systemd/system
UNITS := hairpin.service hairpin-prepare.service

install: build install-files

install-files:
	install -D -m 0755 $(BINARY) $(INSTALLED_BINARY)
	for unit in $(UNITS); do \
		sed 's#/usr/local/bin/#$(PREFIX)/bin/#' cmd/hairpin/dist/$$unit | install -D -m 0644 /dev/stdin $(INSTALLED_UNITS)/$$unit; \
	done
	test -e $(DESTDIR)/etc/hairpin/hairpin.toml || \
		install -D -m 0644 cmd/hairpin/dist/hairpin.toml $(DESTDIR)/etc/hairpin/hairpin.toml
	install -d $(DESTDIR)/etc/hairpin/forwards.d
	install -D -m 0644 cmd/hairpin/dist/hairpin.8 $(INSTALLED_MAN)/man8/hairpin.8
	install -D -m 0644 cmd/hairpin/dist/hairpin.toml.5 $(INSTALLED_MAN)/man5/hairpin.toml.5
	install -D -m 0644 cmd/hairpin/dist/fail2ban/action.d/hairpin.conf $(INSTALLED_SHARE)/fail2ban/action.d/hairpin.conf
	install -D -m 0755 cmd/hairpin/dist/crowdsec/hairpin-bouncer $(INSTALLED_SHARE)/crowdsec/hairpin-bouncer
	install -D -m 0755 cmd/hairpin/dist/containers/hairpin-containers $(INSTALLED_SHARE)/containers/hairpin-containers
	sed 's#/usr/local/share/#$(PREFIX)/share/#' cmd/hairpin/dist/containers/hairpin-containers.service | \
		install -D -m 0644 /dev/stdin $(INSTALLED_SHARE)/containers/hairpin-containers.service

# In this order: stop the daemon, detach its programs, remove the files. If a step fails, uninstall can run again. With DESTDIR,
# only files in a package's tree are removed, and nothing of this machine is stopped.
uninstall: $(if $(DESTDIR),,root)
ifeq ($(DESTDIR),)
	@if test -d /run/systemd/system && test "$$(systemctl show --property=FragmentPath --value hairpin.service)" -ef $(INSTALLED_UNITS)/hairpin.service; then \
		echo systemctl disable --now hairpin.service; systemctl disable --now hairpin.service; \
	fi
	@if test -x $(INSTALLED_BINARY); then echo $(INSTALLED_BINARY) detach --all; $(INSTALLED_BINARY) detach --all; fi
endif
	rm -f $(INSTALLED_BINARY) $(addprefix $(INSTALLED_UNITS)/,$(UNITS))
	rm -f $(INSTALLED_MAN)/man8/hairpin.8 $(INSTALLED_MAN)/man5/hairpin.toml.5
	rm -rf $(INSTALLED_SHARE)
ifeq ($(DESTDIR),)
	rm -rf /var/lib/hairpin
	@if test -d /run/systemd/system; then systemctl daemon-reload; fi
endif
	@if test -e $(DESTDIR)/etc/hairpin; then echo "$(DESTDIR)/etc/hairpin stays, with your configuration; remove it if you do not need it."; fi

clean:
	rm -rf bin
