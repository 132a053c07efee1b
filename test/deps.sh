#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Installs the missing Debian packages for the build, the demo, the tests or the tests on other kernels. On other systems it prints
# the names of the missing packages. Usage: deps.sh build|demo|test|kernels
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin

# Each word is FILE:PACKAGE or COMMAND:PACKAGE. If the file or command is missing, the package is installed.
build=("${CLANG:-clang-19}:clang-19" "${STRIP:-llvm-strip-19}:llvm-19" /usr/include/bpf/bpf_helpers.h:libbpf-dev)
demo=(ip:iproute2 nft:nftables nginx:nginx curl:curl nsenter:util-linux sysctl:procps)
test=("${build[@]}" "${demo[@]}"
	ethtool:ethtool iptables:iptables tcpdump:tcpdump
	fail2ban-server:fail2ban ping:iputils-ping tracepath:iputils-tracepath traceroute:traceroute hping3:hping3 nmap:nmap
	systemd-analyze:systemd iperf3:iperf3 wrk:wrk ssh:openssh-client sshd:openssh-server
	keepalived:keepalived dig:bind9-dnsutils dnsmasq:dnsmasq-base ifup:ifupdown dhclient:isc-dhcp-client unbound:unbound named:bind9 named-checkzone:bind9-utils
	/usr/share/keyrings/debian-archive-keyring.gpg:debian-archive-keyring mmdebstrap:mmdebstrap systemd-nspawn:systemd-container rpm:rpm lintian:lintian
	busybox:busybox-static vsftpd:vsftpd tshark:tshark miniupnpd:miniupnpd-nftables upnpc:miniupnpc natpmpc:natpmpc prometheus:prometheus promtool:prometheus openssl:openssl htpasswd:apache2-utils chromium-headless-shell:chromium-headless-shell)
kernels=("${test[@]}" qemu-system-x86_64:qemu-system-x86 qemu-system-aarch64:qemu-system-arm cpio:cpio xz:xz-utils modprobe:kmod
	wg:wireguard-tools pppd:ppp pppoe:pppoe)

main() {
	local missing
	case ${1:-} in
	build) missing=$(lacking "${build[@]}") ;;
	demo) missing=$(lacking "${demo[@]}") ;;
	test) missing=$(lacking "${test[@]}") ;;
	kernels) missing=$(lacking "${kernels[@]}") ;;
	*) fail "unknown purpose; use build, demo, test or kernels" ;;
	esac
	[ -n "$missing" ] || return 0
	command -v apt-get >/dev/null || fail "install the programs of these Debian packages: $missing"
	[ "$(id -u)" = 0 ] || fail "needs root to install $missing"
	echo "Installing missing packages: $missing"
	install_quietly $missing
}

fail() { echo "deps: $*" >&2; exit 1; }

# lacking prints the packages of missing files and commands. A busybox with shared libraries counts as missing: the guest has no libraries.
lacking() {
	local item what
	for item in "$@"; do
		what=${item%%:*}
		case $what in
		/*) [ -e "$what" ] ;;
		busybox) command -v busybox >/dev/null && ! ldd "$(command -v busybox)" >/dev/null 2>&1 ;;
		*) command -v "$what" >/dev/null ;;
		esac || printf '%s ' "${item##*:}"
	done
}

# install_quietly installs packages without starting their servers: the tests start the servers. Debian starts a server at
# installation; policy-rc.d prevents this. Debian also starts it at every boot, so its unit is disabled.
install_quietly() {
	local policy=/usr/sbin/policy-rc.d package unit
	if [ ! -e $policy ]; then
		trap 'rm -f /usr/sbin/policy-rc.d' EXIT
		printf '#!/bin/sh\nexit 101\n' >$policy
		chmod 755 $policy
	fi
	apt-get -qq update
	DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@" >/dev/null
	for package in "$@"; do
		case $package in
		nginx | unbound | keepalived | fail2ban | vsftpd | prometheus) unit=$package ;;
		bind9) unit=named ;;
		openssh-server) unit=ssh ;;
		ifupdown) unit=networking ;;
		miniupnpd-nftables) unit=miniupnpd ;;
		*) continue ;;
		esac
		systemctl --quiet disable "$unit" 2>/dev/null || true
	done
}

main "$@"
