// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/loader"
	"hairpin/maps"
)

// change edits an interface as the kernel would.
func (m *machineFake) change(name string, edit func(*loader.Link)) {
	i := slices.IndexFunc(m.list, func(l loader.Link) bool { return l.Name == name })
	edit(&m.list[i])
}

func prefixes(list ...string) (found []netip.Prefix) {
	for _, text := range list {
		found = append(found, netip.MustParsePrefix(text))
	}
	return found
}

func wantAddresses(t *testing.T, got maps.Interface, addresses, passive []netip.Prefix) {
	t.Helper()
	diff := cmp.Diff([][]netip.Prefix{addresses, passive}, [][]netip.Prefix{got.Addresses, got.Passive},
		cmpopts.EquateComparable(netip.Prefix{}), cmpopts.EquateEmpty())
	if diff != "" {
		t.Errorf("addresses of %s (-want +got):\n%s", got.Name, diff)
	}
}

// CASES 2.9: an address is replaced, goes, is one of several, comes back. The tables hear of each,
// and the programs stay where they are.
func TestDaemonFollowsAddresses(t *testing.T) {
	d := newDaemon(t)
	for _, step := range []struct {
		name               string
		addresses, passive []netip.Prefix
		shown              string
	}{
		{"replaced", prefixes("203.0.113.9/24"), nil, "203.0.113.9"},
		{"several", prefixes("203.0.113.9/24", "203.0.113.10/32", "2001:db8::1/64", "fd00::1/64", "fe80::1/64"), nil, "203.0.113.9 203.0.113.10 2001:db8::1 fd00::1"},
		{"new prefix", prefixes("203.0.113.9/24", "2001:db8:5::1/64", "fe80::1/64"), prefixes("2001:db8::1/64"), "203.0.113.9 2001:db8:5::1 2001:db8::1"},
		{"IPv4 gone", prefixes("2001:db8:5::1/64", "fe80::1/64"), nil, "2001:db8:5::1"},
		{"none left", prefixes("fe80::1/64"), nil, ""},
		{"back", prefixes("203.0.113.9/24"), nil, "203.0.113.9"},
	} {
		t.Run(step.name, func(t *testing.T) {
			d.machine.change("wan0", func(l *loader.Link) { l.Addresses, l.Passive = step.addresses, step.passive })
			d.follow(context.Background(), links())
			wantDone(t, d.machine, "interfaces wan0,lan0")
			wantAddresses(t, d.machine.interfaces[0], step.addresses, step.passive)
			var shown []string
			for _, addr := range d.state.interfaces()[0].Addresses {
				shown = append(shown, addr.String())
			}
			if got := strings.Join(shown, " "); got != step.shown {
				t.Errorf("shows %q, want %q", got, step.shown)
			}
		})
	}
}

// An interface is what its name says: under another name it is not ours, and what takes its name is.
func TestDaemonFollowsNames(t *testing.T) {
	d := newDaemon(t)
	ctx := context.Background()
	d.machine.change("wan0", func(l *loader.Link) { l.Name = "old0" })
	d.follow(ctx, links())
	wantDone(t, d.machine, "interfaces lan0", "detach wan0")
	if got := pending(d.state.look()); !slices.Equal(got, []string{"wan0"}) {
		t.Errorf("pending %v, want wan0", got)
	}

	d.machine.plug("wan0", 9)
	d.follow(ctx, links())
	wantDone(t, d.machine, "attach wan0 auto", "interfaces wan0,lan0")

	// Two that swap their names keep their programs and change roles: the guard goes with that of the WAN,
	// before the tables know it, and off the other after.
	d.machine.change("wan0", func(l *loader.Link) { l.Name = "tmp0" })
	d.machine.change("lan0", func(l *loader.Link) { l.Name = "wan0" })
	d.machine.change("tmp0", func(l *loader.Link) { l.Name = "lan0" })
	d.follow(ctx, links())
	wantDone(t, d.machine, "attach wan0 auto", "interfaces wan0,lan0", "attach lan0 auto")
	if wan, lan := d.machine.attached[3], d.machine.attached[9]; !wan.Guard || lan.Guard {
		t.Errorf("wan0 has %+v, lan0 has %+v", wan, lan)
	}
	if wan, lan := d.machine.interfaces[0], d.machine.interfaces[1]; wan.Index != 3 || wan.Role != maps.RoleWAN || lan.Index != 9 || lan.Role != maps.RoleLAN {
		t.Errorf("wan0 is %+v, lan0 is %+v", wan, lan)
	}

	// Back under its old name it is served again.
	d.machine.unplug("wan0")
	d.machine.change("old0", func(l *loader.Link) { l.Name = "wan0" })
	d.follow(ctx, links())
	wantDone(t, d.machine, "attach wan0 auto", "interfaces wan0,lan0", "detach 3")
}

// Where VLAN tags get out of XDP's sight while it runs, it gives way; a NIC is told to leave them in frames.
func TestDaemonKeepsXDPFromMissingTags(t *testing.T) {
	for name, tags := range map[string]loader.TagSight{
		"a NIC strips tags":          {Strips: []string{"rx-vlan-hw-parse"}},
		"tags come beside the frame": {Hides: "no XDP: for a reason"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDaemon(t)
			ctx := context.Background()
			d.machine.running.Mode = maps.ModeXDP
			d.follow(ctx, links())
			wantDone(t, d.machine, "interfaces wan0,lan0")
			wan := d.machine.attached[2]
			wan.XDP = loader.XDPNative
			d.machine.attached[2] = wan
			d.follow(ctx, links())
			wantDone(t, d.machine, "interfaces wan0,lan0")

			d.machine.change("wan0", func(l *loader.Link) { l.Tags = tags })
			d.follow(ctx, links())
			wantDone(t, d.machine, "attach wan0 xdp", "interfaces wan0,lan0")
			if tags.Hides == "" {
				return
			}
			wan.XDP = ""
			d.machine.attached[2] = wan
			d.follow(ctx, links())
			wantDone(t, d.machine, "interfaces wan0,lan0")
			if rows := newPortRows(d.state.look()); rows[0].Reason != tags.Hides {
				t.Errorf("wan0 is shown as %+v, want the reason", rows[0])
			}
		})
	}
}

// What arrives on a port of a bridge is the bridge's: the port is left alone, and the daemon says
// once what to do.
func TestDaemonLeavesPortsOfABridge(t *testing.T) {
	d := newDaemon(t)
	ctx := context.Background()
	d.machine.plug("br0", 7)
	d.machine.change("lan0", func(l *loader.Link) { l.PortOf = "br0" })
	d.follow(ctx, links())
	wantDone(t, d.machine, "interfaces wan0", "detach lan0")
	d.follow(ctx, links())
	wantDone(t, d.machine, "interfaces wan0")
	const problem = "lan0 is a port of br0, which receives its packets"
	if n := strings.Count(d.output.String(), problem); n != 1 {
		t.Errorf("told %d times, want once:\n%s", n, &d.output)
	}
	if rows := newPortRows(d.state.look()); rows[1].State != "detached" {
		t.Errorf("lan0 is shown as %+v", rows[1])
	}

	// As the message says.
	d.file.LAN = []string{"br0"}
	d.reload(ctx)
	wantDone(t, d.machine, "attach br0 auto", "apply", "interfaces wan0,br0")

	// A file that names the port is refused, and changes nothing.
	d.file.LAN = []string{"lan0"}
	d.reload(ctx)
	wantDone(t, d.machine)
	if !strings.Contains(d.output.String(), "reload") || len(d.taken) != 2 || d.taken[1] {
		t.Errorf("reloads taken: %v", d.taken)
	}

	// Out of the bridge it is an interface like others.
	d.machine.change("lan0", func(l *loader.Link) { l.PortOf = "" })
	d.reload(ctx)
	wantDone(t, d.machine, "attach lan0 auto", "apply", "interfaces wan0,lan0", "detach br0")
}

func TestAttachRefusesAPortOfABridge(t *testing.T) {
	m := newMachine("wan0", "lan0", "br0")
	m.change("lan0", func(l *loader.Link) { l.PortOf = "br0" })
	result, err := m.router().apply(testConfig())
	if err == nil || result.done || !strings.Contains(err.Error(), "lan0 is a port of br0") {
		t.Errorf("apply: %v, done %v", err, result.done)
	}
	wantDone(t, m)
}

// Forwards that no interface has an address for, of their family.
func TestDeaf(t *testing.T) {
	parse := func(line string) maps.Forward {
		f, err := maps.ParseForward(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	cfg := maps.Config{WAN: []string{"wan0", "wan1"}, Forwards: []maps.Forward{
		parse("a tcp 80 to 10.0.0.1"), parse("b tcp wan0:80 to 10.0.0.1"), parse("c tcp wan1:80 to 10.0.0.1"), parse("d tcp 203.0.113.9:80 to 10.0.0.1"),
		parse("a6 tcp 80 to fd00::1"), parse("b6 tcp wan0:80 to fd00::1"), parse("c6 tcp wan1:80 to fd00::1"), parse("d6 tcp [2001:db8::9]:80 to fd00::1"),
	}}
	for _, test := range []struct {
		name       string
		wan0, wan1 []netip.Prefix
		want       string
	}{
		{"both have both", prefixes("203.0.113.1/24", "2001:db8::1/64"), prefixes("198.51.100.1/24", "fd01::1/64"), ""},
		{"IPv6 on one", prefixes("203.0.113.1/24", "2001:db8::1/64"), prefixes("198.51.100.1/24", "fe80::1/64"), "c6 wan1 IPv6"},
		{"no IPv6", prefixes("203.0.113.1/24"), prefixes("198.51.100.1/24"), "a6 no WAN interface IPv6, b6 wan0 IPv6, c6 wan1 IPv6"},
		{"IPv6 alone", prefixes("2001:db8::1/64"), prefixes("2001:db8:1::1/64"), "a no WAN interface IPv4, b wan0 IPv4, c wan1 IPv4"},
		{"no address at all", nil, prefixes("fe80::1/64"), ""}, // told for each interface
	} {
		ports := []port{
			{name: "wan0", role: maps.RoleWAN, link: &loader.Link{Addresses: test.wan0}},
			{name: "wan1", role: maps.RoleWAN, link: &loader.Link{Addresses: test.wan1}},
			{name: "lan0", role: maps.RoleLAN, link: &loader.Link{Addresses: prefixes("10.0.0.254/8", "fd00::254/64")}},
		}
		var got []string
		for _, warning := range deaf(cfg, ports) {
			words := strings.NewReplacer(`forward "`, "", `":`, "", " has no ", " ", " has an ", " ", " address, so nothing reaches the forward", "").Replace(warning)
			got = append(got, words)
		}
		if got := strings.Join(got, ", "); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// IPv6 need not be forwarded by who has no forward of it. While no link is up the router may still be booting.
func TestNotForwarding(t *testing.T) {
	up := &loader.Link{Up: true}
	ports := []port{
		{name: "wan0", role: maps.RoleWAN, link: up, attachment: &loader.Attachment{}},
		{name: "lan0", role: maps.RoleLAN, link: up, attachment: &loader.Attachment{}},
		{name: "lan1", role: maps.RoleLAN, link: up},
		{name: "lan0.10", role: maps.RoleLAN, link: up, attachment: &loader.Attachment{}},
		{name: "l'n$0", role: maps.RoleLAN, link: up, attachment: &loader.Attachment{}},
	}
	off := func(string, string) bool { return false }
	booting := []port{
		{name: "wan0", role: maps.RoleWAN, link: &loader.Link{}, attachment: &loader.Attachment{}},
		{name: "lan0", role: maps.RoleLAN},
		{name: "lo", role: maps.RoleLocal, link: up, attachment: &loader.Attachment{}},
	}
	if got := notForwarding(false, booting, off); got != nil {
		t.Errorf("no link is up: %q", got)
	}
	four, six := testConfig(), testConfig()
	six.Forwards[0].Target = netip.MustParseAddr("fd00::20")
	for _, test := range []struct {
		name string
		cfg  maps.Config
		off  string
		want []string
	}{
		{"all on", six, "", nil},
		{"IPv4 off", four, "net.ipv4/all", []string{"IPv4 forwarding is off: sysctl -w net.ipv4.ip_forward=1"}},
		{"IPv4 off on one", four, "net.ipv4/lan0", []string{"lan0: IPv4 forwarding is off here: sysctl -w net.ipv4.conf.lan0.forwarding=1"}},
		{"off on a VLAN", four, "net.ipv4/lan0.10", []string{"lan0.10: IPv4 forwarding is off here: sysctl -w net/ipv4/conf/lan0.10/forwarding=1"}},
		{"off on an odd name", four, "net.ipv4/l'n$0", []string{`l'n$0: IPv4 forwarding is off here: sysctl -w 'net.ipv4.conf.l'\''n$0.forwarding=1'`}},
		{"off on one that is not attached", four, "net.ipv4/lan1", nil},
		{"IPv6 off without a forward of it", four, "net.ipv6/all", nil},
		{"IPv6 off", six, "net.ipv6/all", []string{"IPv6 forwarding is off: sysctl -w net.ipv6.conf.all.forwarding=1"}},
		{"IPv6 off on one", six, "net.ipv6/wan0", []string{"wan0: IPv6 forwarding is off here: sysctl -w net.ipv6.conf.wan0.forwarding=1"}},
	} {
		got := notForwarding(serves6(test.cfg), ports, func(sysctl, ifname string) bool { return sysctl+"/"+ifname != test.off })
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}
