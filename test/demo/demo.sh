#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
#
# Shows hairpin in network namespaces: an Internet host, a router, and a LAN with a client and a
# web server. It does not change this machine's own network.
#
#   sudo make demo           runs all steps and removes the network
#   sudo make demo HOLD=1    keeps the network at the end, and prints how to enter each host
set -euo pipefail
PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin
umask 022               # hairpin refuses a configuration file that other users can write

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
hairpin=${HAIRPIN_BINARY:-$root/bin/hairpin}
net=hp-demo-$$          # prefix of the namespaces
external=203.0.113.2    # the router's public address
work=
daemon=

main() {
	[ "$(id -u)" = 0 ] || fail "needs root; run sudo make demo"
	[ -x "$hairpin" ] || fail "$hairpin does not exist; run \"make build\" first"
	"$root/test/deps.sh" demo
	trap cleanup EXIT
	trap 'exit 130' INT TERM
	work=$(mktemp -d)

	say "1. A router between the Internet and a LAN; the LAN has a client and a web server"
	build_network
	start_nginx
	picture

	say "2. The port forward of most routers: nftables rewrites the destination (DNAT)"
	forward_by_nft
	ask internet
	hang_from_lan
	in_host router nft delete table ip demo
	note "The nftables rules are removed again."

	say "3. This port forward with hairpin"
	start_hairpin

	say "4. The public address now works from everywhere"
	ask internet
	ask client
	ask server

	say "5. Client addresses that the web server saw"
	note "The access log shows the Internet client's own address. For LAN clients it shows the router's"
	note "address: the server then sends its answers through the router."
	run server tail -n 3 "$work/access.log"

	say "6. What hairpin shows"
	show_state

	[ -z "${HOLD:-}" ] || hold
	say "Done. Removing everything again."
}

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
note() { printf '   %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$*" >&2; exit 1; }

# Not "ip netns exec": each command would run in its own mount namespace, and would not see the daemon's pins.
in_host() {
	local host=$1
	shift
	nsenter --net="/run/netns/$net-$host" "$@"
}

# run runs a command on a host, and shows the command and its output like a terminal.
run() {
	local host=$1
	shift
	printf '\n%s# %s\n' "$host" "${*//"$work"\//}"
	in_host "$host" "$@" | sed 's/^/   /'
}

# until_true repeats a command until it succeeds, for at most ten seconds.
until_true() {
	local deadline=$((SECONDS + 10))
	until "$@" >/dev/null 2>&1; do
		[ $SECONDS -lt $deadline ] || fail "did not succeed within 10 seconds: $*"
		sleep 0.05
	done
}

build_network() {
	local host
	for host in internet router switch client server; do
		ip netns add "$net-$host"
		in_host $host ip link set lo up
	done
	cable router wan0 internet eth0
	cable router lan0 switch port0
	cable client eth0 switch port1
	cable server eth0 switch port2
	in_host switch ip link add br0 type bridge
	in_host switch ip link set br0 up
	for host in port0 port1 port2; do
		in_host switch ip link set $host master br0
	done

	in_host internet ip addr add 203.0.113.1/24 dev eth0
	in_host router ip addr add $external/24 dev wan0
	in_host router ip addr add 192.168.1.1/24 dev lan0
	in_host client ip addr add 192.168.1.50/24 dev eth0
	in_host server ip addr add 192.168.1.20/24 dev eth0
	in_host router ip route add default via 203.0.113.1
	in_host client ip route add default via 192.168.1.1
	in_host server ip route add default via 192.168.1.1
	in_host router sysctl -qw net.ipv4.ip_forward=1
}

# cable joins two hosts: HOST INTERFACE HOST INTERFACE
cable() {
	in_host "$1" ip link add "$2" type veth peer name "$4" netns "$net-$3"
	in_host "$1" ip link set "$2" up
	in_host "$3" ip link set "$4" up
}

picture() {
	cat <<-'END'

	     Internet host               router                        LAN 192.168.1.0/24
	   +--------------+       +------------------+            +-- client .50
	   | 203.0.113.1  |-- wan0| 203.0.113.2      |lan0 -- switch
	   +--------------+       |      192.168.1.1 |            +-- server .20, nginx on port 8080
	                          +------------------+

	   Wanted: http://203.0.113.2/ shows the server's page, from everywhere.
	END
}

start_nginx() {
	mkdir "$work/www"
	echo "Hello from the web server in the LAN" >"$work/www/index.html"
	head -c 20000000 /dev/zero >"$work/www/film"
	chmod -R a+rX "$work"
	cat >"$work/nginx.conf" <<-END
		daemon off;
		worker_processes 1;
		user root;
		pid $work/nginx.pid;
		error_log $work/error.log;
		events {}
		http {
			log_format brief '\$remote_addr asked for "\$request"';
			access_log $work/access.log brief;
			client_body_temp_path $work/body;
			proxy_temp_path $work/proxy;
			fastcgi_temp_path $work/fastcgi;
			uwsgi_temp_path $work/uwsgi;
			scgi_temp_path $work/scgi;
			server {
				listen 8080;
				root $work/www;
			}
		}
	END
	nsenter --net="/run/netns/$net-server" nginx -c "$work/nginx.conf" -e "$work/error.log" &
	until_true in_host server curl -sf http://127.0.0.1:8080/
}

# ask requests the page at the public address from a host. The request must succeed.
ask() {
	run "$1" curl --silent --show-error --max-time 5 http://$external/
}

forward_by_nft() {
	in_host router nft -f - <<-END
		table ip demo {
			chain prerouting {
				type nat hook prerouting priority dstnat
				ip daddr $external tcp dport 80 dnat to 192.168.1.20:8080
			}
		}
	END
	run router nft list table ip demo
	note ""
	note "From the Internet this works:"
}

hang_from_lan() {
	local curl
	note ""
	note "From the LAN it does not work: the server answers the client directly, from 192.168.1.20."
	note "The client has called 203.0.113.2, so it ignores the answer. The connection hangs:"
	printf '\nclient# curl --max-time 3 http://%s/ &\n' $external
	nsenter --net="/run/netns/$net-client" \
		curl --silent --show-error --max-time 3 http://$external/ >"$work/curl.log" 2>&1 &
	curl=$!
	until_true in_syn_sent
	run client ss -tn state syn-sent
	if wait $curl; then
		fail "the client could connect without hairpin"
	fi
	sed 's/^/   /' "$work/curl.log"
}

in_syn_sent() {
	in_host client ss -Htn state syn-sent dst $external | grep -q .
}

start_hairpin() {
	cat >"$work/hairpin.toml" <<-'END'
		version = 1

		[interfaces]
		wan = ["wan0"]
		lan = ["lan0"]

		[[forward]]
		name = "web"
		protocol = ["tcp"]
		port = "80"
		to = "192.168.1.20:8080"
	END
	run router cat "$work/hairpin.toml"
	printf '\nrouter# hairpin -c hairpin.toml run &\n'
	nsenter --net="/run/netns/$net-router" \
		"$hairpin" -c "$work/hairpin.toml" --bpffs "$work/pins" run >"$work/daemon.log" 2>&1 &
	daemon=$!
	until_true ready_or_gone
	sed 's/^/   /' "$work/daemon.log"
	kill -0 $daemon 2>/dev/null || fail "hairpin has ended"
}

ready_or_gone() {
	in_host router curl -sf http://127.0.0.1:9845/-/ready || ! kill -0 $daemon
}

# ask_hairpin runs a command of the CLI on the router.
ask_hairpin() {
	printf '\nrouter# hairpin %s\n' "$*"
	in_host router "$hairpin" -c "$work/hairpin.toml" --bpffs "$work/pins" "$@" | sed 's/^/   /'
}

show_state() {
	local host
	note "While the Internet host and the LAN client download a large file:"
	for host in internet client; do
		nsenter --net="/run/netns/$net-$host" curl --silent --limit-rate 1M --output /dev/null http://$external/film &
	done
	until_true both_watch
	ask_hairpin forward show -s
	ask_hairpin conn show
	printf '\nrouter# curl http://127.0.0.1:9845/metrics\n'
	in_host router curl -s http://127.0.0.1:9845/metrics |
		grep -E '^hairpin_(forward_(packets|connections)_total|connections\{|connections_limit|interface_attached|external_address)' | sed 's/^/   /'
}

both_watch() {
	[ "$(in_host router "$hairpin" -c "$work/hairpin.toml" --bpffs "$work/pins" conn show | grep -c established)" -ge 2 ]
}

hold() {
	local host
	say "The network stays up, because of HOLD=1. To enter a host, type in another terminal:"
	for host in internet router client server; do
		printf '   %-9s sudo nsenter --net=/run/netns/%s-%s bash\n' "$host" "$net" "$host"
	done
	note "There, try: curl http://$external/"
	note "On the router: $hairpin -c $work/hairpin.toml --bpffs $work/pins conn show"
	note "The web server's log: $work/access.log"
	printf '\n   Press Enter or Ctrl-C to clean up. '
	read -r || true
}

cleanup() {
	local host pid
	trap - EXIT INT TERM
	for host in internet router switch client server; do
		for pid in $(ip netns pids "$net-$host" 2>/dev/null); do
			[ "$pid" = "$daemon" ] || kill "$pid" 2>/dev/null || true
		done
	done
	if [ -n "$daemon" ]; then
		kill "$daemon" 2>/dev/null || true
		wait "$daemon" 2>/dev/null || true
		in_host router "$hairpin" --quiet --bpffs "$work/pins" detach --all || true
	fi
	{ wait; } 2>/dev/null
	for host in internet router switch client server; do
		ip netns delete "$net-$host" 2>/dev/null || true
	done
	[ -z "$work" ] || rm -rf --one-file-system "$work"
}

end_processes() {
	local pid
	for pid in $(ip netns pids "$net-$1" 2>/dev/null); do
		kill "$pid" 2>/dev/null || true
	done
	until_true no_processes "$1"
}

no_processes() { [ -z "$(ip netns pids "$net-$1" 2>/dev/null)" ]; }

main "$@"
