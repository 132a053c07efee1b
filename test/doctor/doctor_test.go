// SPDX-License-Identifier: Apache-2.0

// Package doctor provokes each finding of "hairpin doctor" on a router in a namespace of its own, cures it by the printed command,
// and checks that the finding goes. package diagnose has the table tests of the judgements.
package doctor

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hairpin/bpf"
	"hairpin/cmd/hairpin/diagnose"
	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/test/home"
	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// patient is a router with hairpin on which a test provokes findings.
type patient struct {
	*lab.Network
	t  *testing.T
	hp *lab.Hairpin
}

// doctor returns all findings. The exit code must be 1 if there is a problem, else 0.
func (p *patient) doctor(args ...string) []diagnose.Finding {
	p.t.Helper()
	r, err := p.hp.Try(append([]string{"-j", "doctor"}, args...)...)
	if err != nil {
		p.t.Fatal(err)
	}
	var document struct {
		Schema int
		Doctor struct {
			Problems int
			Findings []diagnose.Finding
		}
	}
	if err := json.Unmarshal([]byte(r.Stdout), &document); err != nil || document.Schema != 1 {
		p.t.Fatalf("doctor: schema %d, %v\n%s%s", document.Schema, err, r.Stdout, r.Stderr)
	}
	found := document.Doctor.Findings
	want := 0
	if diagnose.Has(found, diagnose.Problem) {
		want = 1
	}
	if r.Code != want || (document.Doctor.Problems > 0) != (want == 1) {
		p.t.Errorf("doctor: exit code %d, want %d; %d problems\n%s", r.Code, want, document.Doctor.Problems, r.Stdout)
	}
	return found
}

// find returns the finding with this code; nil: there is none.
func (p *patient) find(code string, args ...string) *diagnose.Finding {
	p.t.Helper()
	found := p.doctor(args...)
	i := slices.IndexFunc(found, func(f diagnose.Finding) bool { return f.Code == code })
	if i < 0 {
		return nil
	}
	return &found[i]
}

// run runs a command that a finding prints, as a user would type it.
func (p *patient) run(command string) {
	p.t.Helper()
	if words := strings.Fields(command); words[0] == "hairpin" {
		p.hp.Run(words[1:]...)
		return
	}
	p.Router.Run("sh", "-c", command)
}

const forwards = home.Forwards

// provocation is one finding: how it comes, and how it goes.
type provocation struct {
	code     string
	level    diagnose.Level
	ipv6     bool
	forwards string // "": those of home
	settings string // further sections of the file
	idle     bool   // hairpin is not attached before provoke
	args     []string
	provoke  func(*patient)
	says     string         // part of the text
	cure     func(*patient) // nil: the printed command
	shown    []string       // other commands that print the finding, too
}

func forward(name, protocol, port, to string, more ...string) string {
	return fmt.Sprintf("[[forward]]\nname = %q\nprotocol = [%q]\nport = %q\nto = %q\n%s\n", name, protocol, port, to, strings.Join(more, "\n"))
}

func none(*patient) {}

// farTargets are forwards to so many targets behind the server.
func farTargets(count int) string {
	var list strings.Builder
	for i := range count {
		list.WriteString(forward(fmt.Sprintf("far-%d", i), "tcp", fmt.Sprint(1000+i), fmt.Sprintf("10.9.%d.%d", i>>8, i&0xff)))
	}
	return list.String()
}

// rewrite replaces text in the configuration file.
func (p *patient) rewrite(old, new string) {
	p.t.Helper()
	text, err := os.ReadFile(p.hp.File)
	if err != nil || !strings.Contains(string(text), old) {
		p.t.Fatalf("no %q in the configuration file: %v", old, err)
	}
	p.hp.Write(strings.Replace(string(text), old, new, 1))
}

func leasePath(name string) string {
	return filepath.Join(os.TempDir(), fmt.Sprintf("hairpin-doctor-%d-%s.leases", os.Getpid(), name))
}

func leaseSettings(name string) string {
	return fmt.Sprintf("[leases]\nfiles = [%q]\n", leasePath(name))
}

// leases writes a lease file.
func (p *patient) leases(name, text string, mode os.FileMode) {
	p.t.Helper()
	path := leasePath(name)
	p.t.Cleanup(func() { os.Remove(path) })
	if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *patient) sh(format string, args ...any) {
	p.t.Helper()
	p.Router.Run("sh", "-c", fmt.Sprintf(format, args...))
}

// attempt is how long a client tries to connect: long enough for two SYNs.
const attempt = 1200 * time.Millisecond

// open makes the Internet host open connections that are not answered.
func (p *patient) open(count int) {
	p.t.Helper()
	for range count {
		if c, err := p.Internet.DialTCP(lab.External+":80", "", attempt); err == nil {
			c.Close()
		}
	}
}

// commands are commands besides doctor that print findings.
var commands = []string{"check", "diff", "apply", "status"}

var provocations = []provocation{
	{code: "not-running", level: diagnose.Problem, idle: true, provoke: none, says: "hairpin does not run, so no forward works"},
	{code: "no-daemon", level: diagnose.Warning, provoke: none, cure: func(p *patient) { p.hp.Start() }},
	{code: "configuration-invalid", level: diagnose.Problem, idle: true, says: "hairpin.toml:",
		provoke: func(p *patient) { p.rewrite(`to = "192.168.1.20:8080"`, `to = "here"`) },
		cure:    func(p *patient) { p.rewrite(`to = "here"`, `to = "192.168.1.20:8080"`) }},
	{code: "configuration-invalid", level: diagnose.Problem, says: "192.168.1.20",
		provoke: func(p *patient) { p.Router.Address("lan0", "192.168.1.20/32") }, cure: func(p *patient) { p.Router.Unaddress("lan0", "192.168.1.20/32") }},
	{code: "target-is-router", level: diagnose.Problem, says: "the target 192.168.1.20 is an address of this router",
		provoke: func(p *patient) { p.Router.Address("lan0", "192.168.1.20/32") }, cure: func(p *patient) { p.Router.Unaddress("lan0", "192.168.1.20/32") }},
	{code: "no-interfaces", level: diagnose.Problem, idle: true, says: "names no interfaces",
		provoke: func(p *patient) { p.hp.Write("version = 1\n") },
		cure:    func(p *patient) { p.hp.Write(home.Config("tc", forwards)) }},
	{code: "programs-outdated", level: diagnose.Warning, says: "net.ipv4.ip_local_port_range is 20000-60999 now",
		provoke: func(p *patient) { p.Router.Sysctl("net/ipv4/ip_local_port_range", "20000 60999") }},
	{code: "no-interface", level: diagnose.Problem, says: "no such interface",
		provoke: func(p *patient) { p.Router.Unplug("lan1") },
		cure: func(p *patient) {
			lab.Cable(p.Router, "lan1", p.Guest, "eth0")
			p.hp.Run("attach")
		}},
	{code: "not-attached", level: diagnose.Problem, provoke: func(p *patient) {
		p.Router.Unplug("lan1")
		lab.Cable(p.Router, "lan1", p.Guest, "eth0")
	}},
	{code: "interface-refused", level: diagnose.Problem, says: "lan1 is a port of br0",
		provoke: func(p *patient) { p.Router.Bridge("br0", "lan1") }, cure: func(p *patient) { p.Router.Unmaster("lan1"); p.hp.Run("attach") }},
	{code: "no-leak-guard", level: diagnose.Warning, provoke: func(p *patient) {
		p.sh("find %s -name 'guard-*' -delete", p.hp.Dir) // the pin holds the program on the interface
	}},
	{code: "link-down", level: diagnose.Problem, provoke: func(p *patient) { p.Router.Down("lan1") }},
	{code: "no-address", level: diagnose.Problem, provoke: func(p *patient) { p.Router.Unaddress("wan0", lab.External+"/24") },
		cure: func(p *patient) { p.Router.Address("wan0", lab.External+"/24") }},
	{code: "forwarding-off", level: diagnose.Problem, says: "IPv4 forwarding is off", shown: commands,
		provoke: func(p *patient) { p.Router.Sysctl("net/ipv4/ip_forward", "0") }},
	{code: "forwarding-off", level: diagnose.Problem, ipv6: true, forwards: home.Forwards6, says: "IPv6 forwarding is off",
		provoke: func(p *patient) { p.Router.Sysctl("net/ipv6/conf/all/forwarding", "0") }},
	{code: "forwarding-off-interface", level: diagnose.Problem, provoke: func(p *patient) { p.Router.Sysctl("net/ipv4/conf/lan0/forwarding", "0") }},
	{code: "no-xdp", level: diagnose.Warning, provoke: func(p *patient) { p.rewrite(`mode = "tc"`, `mode = "xdp"`); p.hp.Run("apply") },
		cure: func(p *patient) { p.rewrite(`mode = "xdp"`, `mode = "auto"`); p.hp.Run("apply") }},
	{code: "rp-filter-strict", level: diagnose.Warning, says: "the route to the Internet leads out by wan0",
		provoke: func(p *patient) {
			p.rewrite(`wan = ["wan0"]`, `wan = ["wan0", "lan1"]`)
			p.rewrite(`lan = ["lan0", "lan1"]`, `lan = ["lan0"]`)
			p.hp.Run("apply")
			p.Router.Sysctl("net/ipv4/conf/lan1/rp_filter", "1")
		}},
	{code: "accept-ra", level: diagnose.Warning, ipv6: true, forwards: home.Forwards6, provoke: func(p *patient) {
		p.Router.Run("ip", "-6", "route", "del", "default")
		p.Router.Sysctl("net/ipv6/conf/wan0/accept_ra", "1")
	}},
	{code: "bridge-netfilter", level: diagnose.Warning, provoke: func(p *patient) {
		p.Router.Unaddress("lan0", lab.RouterLAN+"/24")
		p.Router.Bridge("br0", "lan0")
		p.Router.Address("br0", lab.RouterLAN+"/24")
		p.rewrite(`"lan0"`, `"br0"`)
		p.hp.Run("apply")
		p.sh("modprobe br_netfilter 2>/dev/null; sysctl -w net.bridge.bridge-nf-call-iptables=1")
	}},
	{code: "double-nat", level: diagnose.Warning, provoke: func(p *patient) {
		p.Router.Unaddress("wan0", lab.External+"/24")
		p.Router.Address("wan0", "10.20.30.2/24")
	}, says: "10.20.30.2 is a private address", cure: func(p *patient) {
		p.Router.Unaddress("wan0", "10.20.30.2/24")
		p.Router.Address("wan0", lab.External+"/24")
	}},
	{code: "cgnat", level: diagnose.Warning, provoke: func(p *patient) {
		p.Router.Unaddress("wan0", lab.External+"/24")
		p.Router.Address("wan0", "100.64.3.2/24")
	}, says: "100.64.3.2 is a shared address", cure: func(p *patient) {
		p.Router.Unaddress("wan0", "100.64.3.2/24")
		p.Router.Address("wan0", lab.External+"/24")
	}},
	{code: "private-sources-dropped", level: diagnose.Warning, provoke: func(p *patient) {
		p.Internet.Address("eth0", "10.1.2.3/32")
		if c, err := p.Internet.DialTCP(lab.External+":80", "10.1.2.3:0", attempt); err == nil {
			c.Close()
		}
	}, cure: func(p *patient) {
		p.rewrite("[interfaces]", "[interfaces]\nprivate_sources = [\"wan0\"]")
		p.hp.Run("apply")
	}},
	{code: "address-away", level: diagnose.Warning, settings: "[timeouts]\naddress_grace = \"1h\"\n", says: "address 203.0.113.2 is away", provoke: func(p *patient) {
		p.Router.Unaddress("wan0", lab.External+"/24")
		p.hp.Run("apply")
	}, cure: func(p *patient) { p.hp.Start() }},
	{code: "table-size", level: diagnose.Warning, says: "the connection table has room for 131072 connections", provoke: func(p *patient) {
		p.rewrite("[datapath]", "[datapath]\nmax_connections = 1000")
		p.hp.Run("apply")
	}, cure: func(p *patient) { p.hp.Run("detach", "--all"); p.hp.Run("attach") }},
	{code: "no-address-of-family", level: diagnose.Problem, forwards: home.Forwards6, provoke: none, says: "no WAN interface has an IPv6 address",
		cure: func(p *patient) { p.hp.Run("forward", "del", "web6", "dns6") }},
	{code: "external-address-missing", level: diagnose.Problem, shown: commands,
		forwards: forward("web", "tcp", "80", "192.168.1.20:8080", `external = "203.0.113.9"`), provoke: none, says: "nobody answers for it in the network of wan0"},
	{code: "external-address-missing", level: diagnose.Warning, forwards: forward("web", "tcp", "80", "192.168.1.20:8080", `external = "192.0.2.9"`), provoke: none,
		says: "only if another router routes 192.0.2.9 to this one"},
	{code: "mss-not-clamped", level: diagnose.Warning, provoke: func(p *patient) { p.SetMTU(1400, 1500, 1500) },
		cure: func(p *patient) { p.rewrite("[datapath]", "[datapath]\nmss_clamp = [\"wan0\"]"); p.hp.Run("apply") }},
	{code: "ipsec-target", level: diagnose.Warning, shown: commands, provoke: func(p *patient) {
		p.sh("ip xfrm policy add dir out src 0.0.0.0/0 dst 192.168.1.0/24 tmpl src 0.0.0.1 dst 0.0.0.2 proto esp mode tunnel")
	}, cure: func(p *patient) { p.sh("ip xfrm policy flush") }},
	{code: "ipsec-clients", level: diagnose.Warning, provoke: func(p *patient) {
		p.sh("ip xfrm policy add dir out src 0.0.0.0/0 dst 198.51.100.0/24 tmpl src 0.0.0.1 dst 0.0.0.2 proto esp mode tunnel")
	}, cure: func(p *patient) { p.sh("ip xfrm policy flush") }},
	{code: "answers-taken", level: diagnose.Problem, idle: true, shown: commands,
		forwards: "[[forward]]\nname = \"dmz\"\nprotocol = [\"any\"]\nto = \"192.168.1.20\"\n",
		provoke: func(p *patient) {
			// The programs are loaded where no conntrack is seen; the pins are in a bpffs that is mounted before.
			p.sh("mkdir -p %s && mount -t bpf bpf %[1]s && chmod 700 %[1]s", p.hp.Dir)
			p.sh("unshare -m sh -c 'mount -t tmpfs none /sys/module && exec %s -c %s --bpffs %s attach'", lab.Binary(p.t), p.hp.File, p.hp.Dir)
		}},
	{code: "ipsec-too-many", level: diagnose.Warning, says: "there are 16385 IPsec policies, but hairpin asks at most 16384", provoke: func(p *patient) {
		var list strings.Builder
		for i := range config.MaxPolicies + 1 {
			fmt.Fprintf(&list, "xfrm policy add dir out src 10.%d.%d.%d/32 dst 10.0.0.1/32 tmpl src 0.0.0.1 dst 0.0.0.2 proto esp mode tunnel\n", i>>16, i>>8&0xff, i&0xff)
		}
		p.Router.RunInput(list.String(), "ip", "-batch", "-")
	}, cure: func(p *patient) { p.sh("ip xfrm policy flush") }},
	{code: "other-layout", level: diagnose.Problem, says: "schema", provoke: func(p *patient) {
		datapath, err := loader.Open(loader.Options{Dir: p.hp.Dir})
		if err == nil {
			defer datapath.Close()
			err = datapath.Objects().Schema.Put(uint32(0), uint32(bpf.HairpinSchemaSCHEMA+1))
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}, cure: func(p *patient) { p.hp.Run("detach", "--all"); p.hp.Run("attach") }},
	{code: "target-no-route", level: diagnose.Problem, shown: commands, forwards: forward("web", "tcp", "80", "10.9.9.9"),
		provoke: func(p *patient) { p.sh("ip route del default") }, says: "there is no route to the target 10.9.9.9",
		cure: func(p *patient) { p.Router.Route("lan0", "10.9.9.0/24", lab.Server, "") }},
	{code: "target-behind-wan", level: diagnose.Warning, forwards: forward("web", "tcp", "80", "10.9.9.9"), provoke: none, says: "leads out by the WAN wan0",
		cure: func(p *patient) { p.Router.Route("lan0", "10.9.9.0/24", lab.Server, "") }},
	{code: "target-interface", level: diagnose.Problem, forwards: forward("web", "tcp", "80", "172.17.0.2"), shown: commands,
		provoke: func(p *patient) {
			p.Router.Bridge("docker0")
			p.Router.Address("docker0", "172.17.0.1/16")
		}, says: "is behind docker0, which hairpin does not watch", cure: func(p *patient) {
			p.rewrite(`"lan1"`, `"lan1", "docker0"`)
			p.hp.Run("apply")
		}},
	{code: "second-dnat", level: diagnose.Warning, shown: commands, says: "chain ip nat pre",
		provoke: func(p *patient) {
			p.sh("nft 'table ip nat { chain pre { type nat hook prerouting priority dstnat; iifname wan0 tcp dport 80 dnat to 192.168.1.30:80; }; }'")
		}},
	{code: "second-dnat", level: diagnose.Warning, says: "chain ip nat DOCKER", provoke: func(p *patient) {
		p.sh("iptables-nft -t nat -N DOCKER && iptables-nft -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER && " +
			"iptables-nft -t nat -A DOCKER ! -i docker0 -p tcp -m tcp --dport 80 -j DNAT --to-destination 172.17.0.2:80")
	}},
	{code: "second-masquerade", level: diagnose.Warning, provoke: func(p *patient) {
		p.sh("nft 'table ip nat { chain post { type nat hook postrouting priority srcnat; oifname wan0 masquerade; ip daddr 192.168.1.20 tcp dport 8080 masquerade; }; }'")
	}},
	{code: "firewall-bypassed", level: diagnose.Warning, shown: commands, says: "chain inet fw forward would drop",
		provoke: func(p *patient) {
			p.sh("nft 'table inet fw { chain forward { type filter hook forward priority filter; policy drop; ct state established,related accept; iifname \"lan*\" accept; }; }'")
		},
		cure: func(p *patient) { p.sh("nft add rule inet fw forward ct status dnat accept") }},
	{code: "firewall-bypassed", level: diagnose.Warning, says: "chain ip filter FORWARD would drop", provoke: func(p *patient) {
		p.sh("iptables-nft -P FORWARD DROP; iptables-nft -A FORWARD -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT")
	}, cure: func(p *patient) {
		p.sh("iptables-nft -A FORWARD -i wan0 -p tcp -m multiport --dports 22,8080 -d 192.168.1.20 -j ACCEPT; iptables-nft -A FORWARD -p udp --dport 5353 -j ACCEPT")
	}},
	{code: "second-masquerade", level: diagnose.Warning, says: "rule 2 of the chain nat POSTROUTING of iptables-legacy", provoke: func(p *patient) {
		p.sh("iptables-legacy -t nat -A POSTROUTING -o wan0 -j MASQUERADE; iptables-legacy -t nat -A POSTROUTING -d 192.168.1.20 -p tcp --dport 8080 -j MASQUERADE")
	}},
	{code: "second-dnat", ipv6: true, level: diagnose.Warning, forwards: home.Forwards6, says: "chain nat PREROUTING of ip6tables-legacy", provoke: func(p *patient) {
		p.sh("ip6tables-legacy -t nat -A PREROUTING -p tcp --dport 80 -j DNAT --to fd00:1::30")
	}},
	{code: "firewall-bypassed", level: diagnose.Warning, says: "chain filter FORWARD of iptables-legacy would drop", provoke: func(p *patient) {
		p.sh("iptables-legacy -N wan; iptables-legacy -A FORWARD -i wan0 -g wan; iptables-legacy -A wan -m state --state ESTABLISHED -j ACCEPT; iptables-legacy -A wan -j REJECT")
	}, cure: func(p *patient) { p.sh("iptables-legacy -I wan -m conntrack --ctstate DNAT -j ACCEPT") }},
	{code: "lease-file", level: diagnose.Problem, settings: leaseSettings("untrusted"), says: "mode 0666",
		provoke: func(p *patient) { p.leases("untrusted", "", 0o666) }, cure: func(p *patient) { p.leases("untrusted", "", 0o644) }},
	{code: "lease-file-missing", level: diagnose.Warning, settings: leaseSettings("missing"), provoke: none, says: "does not exist",
		cure: func(p *patient) { p.leases("missing", "", 0o644) }},
	{code: "lease-lines", level: diagnose.Warning, settings: leaseSettings("lines"), says: `1 line of `,
		provoke: func(p *patient) { p.leases("lines", "TCP:3074:192.168.1.20:3074:17890", 0o644) },
		cure:    func(p *patient) { p.leases("lines", "TCP:3074:192.168.1.20:3074:1789012345:console\n", 0o644) }},
	{code: "lease-refused", level: diagnose.Warning, settings: leaseSettings("refused"), says: "lease-tcp-80 is not reflected: forward",
		provoke: func(p *patient) { p.leases("refused", "TCP:80:192.168.1.20:3074:0:console\n", 0o644) }, cure: func(p *patient) { p.leases("refused", "", 0o644) }},
	{code: "lease-daemon", level: diagnose.Warning, settings: leaseSettings("daemon"), provoke: none, cure: func(p *patient) { p.hp.Start() }},
	{code: "denies-router", level: diagnose.Warning, settings: "[deny]\nsources = [\"192.168.1.0/24\"]\n", provoke: none, says: "contains this router's address 192.168.1.1 (lan0)",
		cure: func(p *patient) { p.rewrite("192.168.1.0/24", "192.168.9.0/24"); p.hp.Run("apply") }},
	{code: "metrics-open", level: diagnose.Warning, settings: "[metrics]\nlisten = \":9845\"\n", provoke: none, says: "metrics.listen: :9845 is for everybody",
		cure: func(p *patient) { p.rewrite(`":9845"`, `"127.0.0.1:9845"`); p.hp.Run("apply") }},
	{code: "ingress-unshaped", level: diagnose.Warning, provoke: func(p *patient) {
		p.sh("tc qdisc add dev wan0 handle ffff: ingress && tc filter add dev wan0 parent ffff: protocol all u32 match u32 0 0 flowid 1:1")
	}, cure: func(p *patient) { p.sh("tc qdisc del dev wan0 ingress") }},
	{code: "egress-unshaped", level: diagnose.Warning, provoke: func(p *patient) {
		p.CompleteFrames()
		p.rewrite(`mode = "tc"`, `mode = "xdp-untagged"`)
		p.hp.Run("apply")
		p.sh("tc qdisc add dev lan0 root tbf rate 100mbit burst 64k latency 50ms")
	}, says: "the qdisc tbf does not see what XDP sends", cure: func(p *patient) {
		p.rewrite(`mode = "xdp-untagged"`, `mode = "tc"`)
		p.hp.Run("apply")
	}},
	{code: "filter-before", level: diagnose.Warning, says: "(u32) runs before hairpin", provoke: func(p *patient) {
		// As on a kernel without TCX.
		if err := p.Router.Do(func() error {
			datapath, err := loader.Open(loader.Options{Dir: p.hp.Dir, NoTCX: true})
			if err != nil {
				return err
			}
			defer datapath.Close()
			if err := datapath.Detach(p.Router.Index("lan1")); err != nil {
				return err
			}
			_, err = datapath.Attach("lan1", loader.Hooks{Mode: loader.ModeTC})
			return err
		}); err != nil {
			p.t.Fatal(err)
		}
		p.sh("tc filter add dev lan1 ingress prio 1 protocol all u32 match u32 0 0 flowid 1:1")
	}, cure: func(p *patient) { p.sh("tc filter del dev lan1 ingress prio 1") }},
	{code: "local-ports-overlap", level: diagnose.Warning, provoke: func(p *patient) { p.Router.Sysctl("net/ipv4/ip_local_port_range", "32768 65535") }},
	{code: "answers-elsewhere", level: diagnose.Problem, says: "the host is there", provoke: func(p *patient) {
		p.Server.ServeTCP(":8080")
		p.Server.Run("ip", "route", "replace", "default", "via", "192.168.1.99")
		p.open(3)
	}, cure: func(p *patient) {
		p.Server.Run("sh", "-c", p.advised("ip route replace default via ")) // typed on the server
		home.Waiting(p.t, p.Internet)
	}},
	{code: "no-answers", level: diagnose.Problem, forwards: forward("web", "tcp", "80", "10.9.9.9:8080"), says: "packets went to the target 10.9.9.9, and none came back",
		provoke: func(p *patient) {
			p.Router.Route("lan0", "10.9.9.0/24", lab.Server, "") // a host behind a gateway: the router cannot see whether it is there
			p.open(3)
		}, cure: func(p *patient) {
			p.Server.Address("eth0", "10.9.9.9/32")
			p.Server.ServeTCP(":8080")
			home.Waiting(p.t, p.Internet)
		}},
	{code: "target-silent", level: diagnose.Problem, provoke: func(p *patient) {
		p.Server.Down("eth0")
		p.open(3)
	}, cure: func(p *patient) {
		p.Server.Up("eth0")
		p.Server.Route("eth0", "0.0.0.0/0", lab.RouterLAN, "")
		p.Server.ServeTCP(":8080")
		p.Router.Run("ip", "neigh", "flush", "all")
		home.Waiting(p.t, p.Internet)
	}},
	{code: "probe-refused", level: diagnose.Problem, args: []string{"--probe"}, provoke: none, says: "192.168.1.20:8080",
		cure: func(p *patient) { p.Server.ServeTCP(":8080") }},
	{code: "probe-silent", level: diagnose.Problem, args: []string{"--probe"}, provoke: func(p *patient) {
		p.Server.ServeTCP(":8080")
		p.Server.Run("nft", "table ip f { chain in { type filter hook input priority 0; tcp dport 8080 drop; }; }")
	}, cure: func(p *patient) { p.Server.Run("nft", "flush", "ruleset") }},
	{code: "probe-unreachable", level: diagnose.Problem, args: []string{"--probe"}, forwards: forward("web", "tcp", "80", "192.168.1.20:8080"), provoke: func(p *patient) {
		p.Server.ServeTCP(":8080")
		p.sh("ip route add unreachable 192.168.1.20")
	}, cure: func(p *patient) { p.sh("ip route del unreachable 192.168.1.20") }},
	{code: "probe-unfinished", level: diagnose.Unknown, args: []string{"--probe"}, forwards: farTargets(600), says: "was not asked within", provoke: func(p *patient) {
		p.Router.Route("lan0", "10.9.0.0/16", lab.Server, "")
		p.Server.Run("nft", "table ip f { chain in { type filter hook prerouting priority raw; ip daddr 10.9.0.0/16 drop; }; }")
	}, cure: func(p *patient) { p.sh("ip route replace unreachable 10.9.0.0/16") }},
	{code: "table-nearly-full", level: diagnose.Warning, settings: "", provoke: func(p *patient) {
		p.hp.Run("detach", "--all")
		p.rewrite("[datapath]", "[datapath]\nmax_connections = 1")
		p.hp.Run("attach")
		p.Server.ServeTCP(":8080")
		home.Waiting(p.t, p.Internet)
		p.Server.ServeUDP(":5353")
		c, err := p.Internet.DialUDP(lab.External+":53", "")
		if err == nil {
			_, err = lab.Exchange(c, 3, 1)
		}
		if err != nil {
			p.t.Fatal(err)
		}
	}, cure: func(p *patient) { p.hp.Run("conn", "flush", "path", "wan") }},
}

// advised returns the command in the present advice of the finding "answers-elsewhere" that begins with these words.
func (p *patient) advised(begin string) string {
	p.t.Helper()
	f := p.find("answers-elsewhere")
	_, rest, found := strings.Cut(f.Cure, begin)
	if !found {
		p.t.Fatalf("the cure is %q", f.Cure)
	}
	command, _, _ := strings.Cut(rest, ";")
	return begin + command
}

func (v provocation) name() string { return fmt.Sprintf("%s %s", v.code, v.level) }

// TestFindings provokes each finding, and cures it.
func TestFindings(t *testing.T) {
	for _, v := range provocations {
		t.Run(v.name(), func(t *testing.T) {
			t.Parallel()
			p := v.patient(t)
			if found := p.find(v.code, v.args...); found != nil && v.provokes() {
				t.Fatalf("before: %s", found)
			}
			v.provoke(p)
			var found *diagnose.Finding
			lab.Eventually(t, lab.Patience, func() error {
				if found = p.find(v.code, v.args...); found == nil {
					return fmt.Errorf("no finding %s: %s", v.code, p.hp.For(t).Fail(p.code(), append([]string{"doctor"}, v.args...)...))
				}
				return nil
			})
			if found.Level != v.level || !strings.Contains(found.Body(), v.says) {
				t.Errorf("level %s: %s\nwant %s, with %q", found.Level, found, v.level, v.says)
			}
			p.wantShown(v, found)
			if v.cure == nil && !found.Command {
				t.Fatalf("the cure is no command: %s", found)
			}
			if v.cure == nil {
				p.run(found.Cure)
			} else {
				v.cure(p)
			}
			lab.Eventually(t, lab.Patience, func() error {
				if still := p.find(v.code, v.args...); still != nil {
					return fmt.Errorf("after the cure: %s", still)
				}
				return nil
			})
		})
	}
}

// provokes reports whether provoke makes the finding, and not the configuration alone.
func (v provocation) provokes() bool {
	return v.forwards == "" && v.settings == "" && !slices.Contains([]string{"not-running", "no-daemon", "probe-refused"}, v.code)
}

func (v provocation) patient(t *testing.T) *patient {
	n := lab.NewNetwork(t)
	if v.ipv6 {
		n = lab.NewNetwork6(t)
	}
	list := v.forwards
	if list == "" {
		list = forwards
	}
	p := &patient{Network: n, t: t, hp: lab.NewHairpin(n.Router, home.Config("tc", v.settings+list))}
	if !v.idle {
		p.hp.Run("attach")
	}
	return p
}

// code returns the exit code of doctor.
func (p *patient) code() int {
	r, err := p.hp.Try("doctor")
	if err != nil {
		p.t.Fatal(err)
	}
	return r.Code
}

// wantShown wants the finding from other commands, in the same words.
func (p *patient) wantShown(v provocation, found *diagnose.Finding) {
	p.t.Helper()
	for _, command := range v.shown {
		r, err := p.hp.Try(command)
		if err != nil || r.Code != 0 || !strings.Contains(r.Stdout+r.Stderr, "warning: "+found.String()+"\n") {
			p.t.Errorf("hairpin %s: exit code %d, %v\n%s%s\nlacks %q", command, r.Code, err, r.Stdout, r.Stderr, found)
		}
	}
}

// TestShadowedService: the finding names the program, and goes when the program ends.
func TestShadowedService(t *testing.T) {
	p := provocation{}.patient(t)
	taker := p.Router.Start("busybox", "httpd", "-f", "-p", "80", "-h", "/")
	var found *diagnose.Finding
	lab.Eventually(t, lab.Patience, func() error {
		if found = p.find("service-shadowed"); found == nil {
			return fmt.Errorf("no finding: %v", p.doctor())
		}
		return nil
	})
	if want := fmt.Sprintf("busybox (pid %d) listens at tcp port 80 of every address", taker.Pid()); found.Forward != "web" || !strings.Contains(found.Text, want) {
		t.Errorf("%s\nlacks %q", found, want)
	}
	p.wantShown(provocation{shown: commands}, found)
	p.hp.Run("forward", "del", "web")
	if found := p.find("service-shadowed"); found != nil {
		t.Errorf("without the forward: %s", found)
	}
	r, err := p.hp.Try("forward", "add", "web", "tcp", "80", "to", "192.168.1.20:8080")
	if err != nil || !strings.Contains(r.Stderr, found.String()) {
		t.Errorf("forward add: %v\n%s", err, r.Stderr)
	}
	taker.Signal(9)
	taker.Wait()
	if found := p.find("service-shadowed"); found != nil {
		t.Errorf("after the program ended: %s", found)
	}
}

// TestWithoutPrivilege: what this user may not look at is unknown, and no problem.
func TestWithoutPrivilege(t *testing.T) {
	p := provocation{}.patient(t)
	r, err := p.Router.Try("setpriv", "--bounding-set", "-all", "--inh-caps", "-all", lab.Binary(t), "-c", p.hp.File, "--bpffs", p.hp.Dir, "-j", "doctor")
	if err != nil || r.Code != 0 {
		t.Fatalf("exit code %d, %v\n%s%s", r.Code, err, r.Stdout, r.Stderr)
	}
	for _, code := range []string{"privileges-missing", "datapath-unseen", "nftables-unseen", "ipsec-unseen"} {
		if !strings.Contains(r.Stdout, `"level":"unknown","check":`) || !strings.Contains(r.Stdout, `"code":"`+code+`"`) {
			t.Errorf("no %s: %s", code, r.Stdout)
		}
	}
	// Another user may not even read the file. That is no problem of the router.
	r, err = p.Router.Try("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", lab.Binary(t), "-c", p.hp.File, "--bpffs", p.hp.Dir, "-j", "doctor")
	if err != nil || r.Code != 0 || !strings.Contains(r.Stdout, `"code":"configuration-unseen"`) || strings.Contains(r.Stdout, `"code":"ipsec-ok"`) {
		t.Errorf("another user: exit code %d, %v\n%s%s", r.Code, err, r.Stdout, r.Stderr)
	}
}

// elsewhere are the codes that no provocation makes, with the reason.
var elsewhere = map[string]string{
	"service-shadowed":       "TestShadowedService",
	"privileges-missing":     "TestWithoutPrivilege",
	"datapath-unseen":        "TestWithoutPrivilege",
	"configuration-unseen":   "TestWithoutPrivilege",
	"nftables-unseen":        "TestWithoutPrivilege",
	"ipsec-unseen":           "TestWithoutPrivilege",
	"iptables-legacy-unseen": "TestLegacyUnseen",
	"kernel-too-old":         "TestLoad of test/kernels, on Linux 5.10",
	"flowtable":              "TestFlowtable of test/kernels",
	"vlan-tags-unseen":       "TestDoctorSeesVLANOnTop of test/kernels",
	"lease-file-unseen":      "table test alone: root may read every file",
	"services-unseen":        "table test alone: without /proc, where the sockets are, no command finds its pins",
	"shaping-unseen":         "table test alone: the kernel lists the qdiscs of every interface to everybody",
}

// TestEveryCode: each code of the page about doctor is provoked, or is in elsewhere.
func TestEveryCode(t *testing.T) {
	page, err := os.ReadFile("../../cmd/hairpin/doc/doctor.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		if len(cells) < 6 {
			continue
		}
		for quoted := range strings.SplitSeq(cells[2], ",") {
			code := strings.Trim(quoted, " `")
			provoked := slices.ContainsFunc(provocations, func(v provocation) bool { return v.code == code })
			if code != "" && code != "code" && !strings.HasPrefix(code, "---") && provoked == (elsewhere[code] != "") {
				t.Errorf("%s: provoked %v, elsewhere %q", code, provoked, elsewhere[code])
			}
		}
	}
}

// TestHealthy: on a router on which everything is right, each line is ok, in the order of the checks. Nothing is changed.
func TestHealthy(t *testing.T) {
	p := provocation{}.patient(t)
	p.hp.Start()
	p.Server.ServeTCP(":8080")
	home.Waiting(t, p.Internet)
	rules := p.Router.Run("nft", "list", "ruleset")
	out := p.hp.Run("doctor", "--probe")
	order := diagnose.Names()
	at := -1
	for line := range strings.Lines(out) {
		words := strings.Fields(line)
		next := slices.Index(order, words[1])
		if words[0] != "ok" || next <= at {
			t.Errorf("%q after %q", line, order[max(at, 0)])
		}
		at = next
	}
	if at != len(order)-1 || strings.Count(out, "\n") > 25 {
		t.Errorf("not all checks, or not one screen:\n%s", out)
	}
	if now := p.Router.Run("nft", "list", "ruleset"); now != rules {
		t.Errorf("rules before:\n%s\nafter:\n%s", rules, now)
	}
}

// TestFiveThingsWrong: a new user puts a router right with nothing but what doctor prints.
func TestFiveThingsWrong(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Router.Sysctl("net/ipv4/ip_forward", "0")
	n.Server.Run("ip", "route", "replace", "default", "via", "192.168.1.99")
	n.Server.ServeTCP(":8080")
	service := n.Router.Start("busybox", "httpd", "-f", "-p", "80", "-h", "/")
	n.Router.Run("sh", "-c", "iptables-nft -t nat -A PREROUTING -i wan0 -p tcp --dport 80 -j DNAT --to-destination 192.168.1.30:80")
	n.Internet.Route("eth0", "203.0.113.0/24", "", lab.InternetSource)
	const external = "203.0.113.9"
	p := &patient{Network: n, t: t, hp: lab.NewHairpin(n.Router, home.Config("tc", forward("web", "tcp", "80", "192.168.1.20:8080", `external = "`+external+`"`)+
		forward("all", "tcp", "81", "192.168.1.20:8080")))}
	p.hp.Run("attach")

	printed := func(code string) *diagnose.Finding {
		t.Helper()
		var found *diagnose.Finding
		lab.Eventually(t, lab.Patience, func() error {
			if found = p.find(code); found == nil {
				return fmt.Errorf("no %s: %v", code, p.doctor())
			}
			return nil
		})
		return found
	}
	for _, code := range []string{"forwarding-off", "external-address-missing", "second-dnat"} {
		p.run(printed(code).Cure)
	}
	// The address is there now, and with it the service is seen.
	shadowed := printed("service-shadowed")
	name, pid, _ := strings.Cut(strings.TrimSuffix(strings.Fields(shadowed.Text)[0]+" "+strings.Fields(shadowed.Text)[2], ")"), " ")
	if !strings.Contains(shadowed.Cure, "stop the program") || name != "busybox" {
		t.Fatalf("%s", shadowed)
	}
	p.Router.Run("kill", pid)
	service.Wait()

	for range 3 {
		if c, err := n.Internet.DialTCP(external+":80", "", attempt); err == nil {
			c.Close()
			t.Fatal("the server answers by another gateway, and the connection is open")
		}
	}
	printed("answers-elsewhere")
	n.Server.Run("sh", "-c", p.advised("ip route replace default via "))

	home.WaitingAt(t, n.Internet, external)
	if r, err := p.hp.Try("doctor"); err != nil || r.Code != 0 || strings.Contains(r.Stdout, "problem") {
		t.Errorf("in the end: exit code %d, %v\n%s", r.Code, err, r.Stdout)
	}
}
