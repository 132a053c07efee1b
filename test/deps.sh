#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs the Debian packages that building, testing or the demo need, if this machine lacks some. On other systems
# the script names what is missing. Usage: deps.sh demo|test|kernels
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# Each word is something to look for, a command or a file, and the package that has it.
demo=(ip:iproute2 nft:nftables nginx:nginx curl:curl nsenter:util-linux sysctl:procps)
test=("${demo[@]}"
	clang-19:clang-19 llvm-strip-19:llvm-19 /usr/include/bpf/bpf_helpers.h:libbpf-dev
	ethtool:ethtool iptables:iptables tcpdump:tcpdump
	ping:iputils-ping tracepath:iputils-tracepath traceroute:traceroute hping3:hping3 nmap:nmap
	iperf3:iperf3 wrk:wrk ssh:openssh-client sshd:openssh-server
	dig:bind9-dnsutils dnsmasq:dnsmasq-base unbound:unbound named:bind9 named-checkzone:bind9-utils)
kernels=(qemu-system-x86_64:qemu-system-x86 /usr/share/doc/busybox-static:busybox-static cpio:cpio modprobe:kmod
	wg:wireguard-tools pppd:ppp pppoe:pppoe)

main() {
	local missing
	case ${1:-} in
	demo) missing=$(lacking "${demo[@]}") ;;
	test) missing=$(lacking "${test[@]}") ;;
	kernels) missing=$(lacking "${test[@]}" "${kernels[@]}") ;;
	*) fail "say what for: demo, test or kernels" ;;
	esac
	[ -n "$missing" ] || return 0
	command -v apt-get >/dev/null || fail "install what these Debian packages have: $missing"
	[ "$(id -u)" = 0 ] || fail "needs root to install: $missing"
	echo "Installing what this machine lacks: $missing"
	install_quietly $missing
}

fail() { echo "deps: $*" >&2; exit 1; }

# lacking prints the packages of what is not there.
lacking() {
	local item what
	for item in "$@"; do
		what=${item%%:*}
		if [[ $what == /* ]]; then [ -e "$what" ]; else command -v "$what" >/dev/null; fi || printf '%s ' "${item##*:}"
	done
}

# install_quietly keeps Debian from starting the servers among the packages, which are for the tests alone.
install_quietly() {
	local policy=/usr/sbin/policy-rc.d
	if [ ! -e $policy ]; then
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
	fi
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
}

main "$@"
