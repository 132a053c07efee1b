// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

func privileges(f *Facts) []Finding {
	if len(f.Datapath.Missing) == 0 {
		return ok("CAP_BPF, CAP_PERFMON and CAP_NET_ADMIN")
	}
	return []Finding{Finding{Level: Unknown, Code: "privileges-missing",
		Text: "this user lacks " + strings.Join(f.Datapath.Missing, ", ") + ", so not everything can be looked at"}.run("sudo hairpin doctor")}
}

func kernel(f *Facts) []Finding {
	if err := f.Datapath.TooOld; err != nil {
		return []Finding{Finding{Level: Problem, Code: "kernel-too-old", Text: err.Error()}.advise("install Linux 6.1 or newer")}
	}
	text := "Linux " + f.Datapath.Kernel
	if slices.ContainsFunc(f.Ports, func(p Port) bool { return p.Attachment != nil && p.Attachment.TC == loader.TCClsact }) {
		text += "; without TCX (Linux 6.6), so that tc filters of others may run before hairpin"
	}
	return ok(text)
}

// running says whether a datapath runs, and whether the daemon follows changes.
func running(f *Facts) (list []Finding) {
	d := f.Datapath
	switch {
	case d.Unseen:
		return []Finding{{Level: Unknown, Code: "datapath-unseen", Text: "the running datapath was not looked at: " + d.Stopped.Error()}}
	case d.Foreign:
		return []Finding{Finding{Level: Problem, Code: "other-layout", Text: d.Stopped.Error()}.
			advise("systemctl stop hairpin; hairpin detach --all; systemctl start hairpin. This ends all connections")}
	case d.Stopped != nil:
		return []Finding{Finding{Level: Problem, Code: "not-running", Text: "hairpin does not run, so no forward works: " + d.Stopped.Error()}.run("hairpin attach")}
	}
	if !d.Daemon {
		list = append(list, Finding{Level: Warning, Code: "no-daemon",
			Text: "the daemon is not running, so changes of addresses, interfaces and routes are not followed"}.run("systemctl start hairpin"))
	}
	if d.Outdated != "" && !d.Daemon {
		list = append(list, Finding{Level: Warning, Code: "programs-outdated", Text: d.Outdated}.run("hairpin upgrade"))
	}
	if !d.Daemon {
		for _, addr := range d.Away {
			list = append(list, Finding{Level: Warning, Code: "address-away",
				Text: fmt.Sprintf("address %s is away; without the daemon its connections end with the next \"hairpin attach\"", addr)}.run("systemctl start hairpin"))
		}
	}
	return orOK(list, "attached; the daemon runs")
}

func configuration(f *Facts) []Finding {
	d := f.Datapath
	from := "the running configuration"
	if d.File != "" {
		from = d.File
	}
	if d.FileUnseen != nil {
		return []Finding{{Level: Unknown, Code: "configuration-unseen", Text: fmt.Sprintf("the configuration was not looked at: %s", d.FileUnseen)}}
	}
	var list []Finding
	for _, text := range d.Invalid {
		list = append(list, Finding{Level: Problem, Code: "configuration-invalid", Text: text}.advise("correct the configuration; hairpin check shows what is left"))
	}
	if len(list) == 0 && len(f.Config.WAN)+len(f.Config.LAN) == 0 {
		list = append(list, Finding{Level: Problem, Code: "no-interfaces", Text: from + " names no interfaces"}.advise("set wan and lan in the configuration file"))
	}
	return orOK(list, from+" is valid")
}

// interfaces looks at the interfaces of the configuration.
func interfaces(f *Facts) (list []Finding) {
	stopped := f.Datapath != nil && f.Datapath.Stopped != nil
	var good []string
	for i := range f.Ports {
		p := &f.Ports[i]
		found := Finding{Level: Problem, Interface: p.Name}
		switch {
		case p.Link == nil && f.Datapath == nil: // "hairpin status" shows it as pending
			continue
		case p.Link == nil:
			found.Code, found.Text = "no-interface", "no such interface"
			found = found.advise("correct wan and lan in the configuration file, or make the interface")
		case p.Err != nil:
			found.Code, found.Interface, found.Text = "interface-refused", "", p.Err.Error()
		case p.Attachment == nil && !stopped:
			found.Code, found.Text = "not-attached", "not attached"
			found = found.run("hairpin attach")
		case p.LacksGuard && !stopped:
			found.Level, found.Code, found.Text = Warning, "no-leak-guard", "the leak guard is not attached"
			found = found.run("hairpin attach")
		case p.MissesTags:
			found.Code, found.Text = "vlan-tags-unseen", "XDP does not see VLAN tags and may take tagged frames for untagged frames"
			found = found.run("hairpin attach")
		case !p.Link.Up:
			found.Code, found.Text = "link-down", "the link is down"
			found = found.run("ip link set %s up", shellWord(p.Name))
		case len(p.Addresses) == 0 && p.Role == config.RoleWAN:
			found.Code, found.Text = "no-address", "no address, so nothing reaches its forwards"
		default:
			good = append(good, p.Name)
			continue
		}
		list = append(list, found)
	}
	if len(f.Ports) == 0 {
		return nil // the check "configuration" says so
	}
	return orOK(list, "up: "+strings.Join(good, ", "))
}

// xdp says by which programs each interface works, and why XDP does not run.
func xdp(f *Facts) []Finding {
	var modes []string
	var list []Finding
	for i := range f.Ports {
		p := &f.Ports[i]
		if p.Attachment == nil || p.Role == config.RoleLocal {
			continue
		}
		mode := p.Attachment.TC
		if p.Attachment.XDP != "" {
			mode = "XDP (" + p.Attachment.XDP + ") and " + mode
		}
		why := p.Attachment.Reason
		if why != "" && (f.Config.Mode == config.ModeXDP || f.Config.Mode == config.ModeXDPUntagged) {
			list = append(list, Finding{Level: Warning, Code: "no-xdp", Interface: p.Name,
				Text: fmt.Sprintf("datapath.mode asks for XDP, but the interface works by %s: %s", mode, why)}.
				advise(`set datapath.mode = "auto", or use a NIC with native XDP`))
			continue
		}
		text := p.Name + " by " + mode
		if why != "" {
			text += " (" + why + ")"
		}
		modes = append(modes, text)
	}
	if len(modes)+len(list) == 0 {
		return nil
	}
	if len(modes) > 0 {
		list = append(list, ok(strings.Join(modes, ", "))...)
	}
	return list
}

// vlanTags names the NICs whose offload for VLAN tags hairpin has switched off.
func vlanTags(f *Facts) []Finding {
	var kept []string
	for i := range f.Ports {
		if p := &f.Ports[i]; p.Attachment != nil && p.Attachment.TagsKept {
			kept = append(kept, p.Name)
		}
	}
	if len(kept) == 0 {
		return nil
	}
	return ok(fmt.Sprintf("the offload rxvlan is off on %s, so that XDP sees VLAN tags; \"hairpin detach\" restores it", strings.Join(kept, ", ")))
}

// strict is the value of rp_filter by which the kernel takes a packet only from the interface to which it would send the answer.
const strict = 1

// rpFilter looks for WANs whose clients are refused because the route to them leads out by another WAN.
func rpFilter(f *Facts) []Finding {
	uplinks := f.of(config.RoleWAN)
	switch {
	case len(uplinks) == 0 || f.Route == nil:
		return nil
	case len(uplinks) == 1:
		return ok("one uplink, so that rp_filter refuses no client")
	}
	var list []Finding
	for _, p := range uplinks {
		// Any address of the Internet: the default route counts.
		route := f.Route(netip.AddrFrom4([4]byte{1, 1, 1, 1}))
		if p.Link.RPFilter != strict || route.Interface == p.Name || route.Interface == "" {
			continue
		}
		list = append(list, Finding{Level: Warning, Code: "rp-filter-strict", Interface: p.Name,
			Text: fmt.Sprintf("rp_filter is strict, and the route to the Internet leads out by %s: clients that come in by %s are refused", route.Interface, p.Name)}.
			run("%s", sysctlCommand("net.ipv4", p.Name, "rp_filter=2")))
	}
	return orOK(list, "refuses no client on "+strings.Join(names(uplinks), ", "))
}

// bridge looks for bridges whose frames pass netfilter before hairpin sees them.
func bridge(f *Facts) []Finding {
	var bridges []string
	for i := range f.Ports {
		if p := &f.Ports[i]; p.Link != nil && p.Link.Bridge {
			bridges = append(bridges, p.Name)
		}
	}
	if len(bridges) == 0 {
		return nil
	}
	where := strings.Join(bridges, ", ")
	if !f.BridgeCall {
		return ok("netfilter does not see the frames of " + where)
	}
	return []Finding{Finding{Level: Warning, Code: "bridge-netfilter",
		Text: fmt.Sprintf("br_netfilter is on: the rules of iptables and nftables see the frames of %s before hairpin does, and can drop or translate them", where)}.
		run("sysctl -w net.bridge.bridge-nf-call-iptables=0 net.bridge.bridge-nf-call-ip6tables=0")}
}

// shared is the network of RFC 6598 for carriers' NAT.
var shared = netip.MustParsePrefix("100.64.0.0/10")

// wanAddress looks for WANs to which the Internet cannot send.
func wanAddress(f *Facts) []Finding {
	var list []Finding
	var public []string
	for _, p := range f.of(config.RoleWAN) {
		code, text, address := "", "", netip.Addr{}
		for _, addr := range p.Addresses {
			switch {
			case shared.Contains(addr):
				code, address = "cgnat", addr
				text = "%s is a shared address (RFC 6598): the provider translates it, and nobody on the Internet can reach a forward here"
			case addr.Is4() && addr.IsPrivate():
				code, address = "double-nat", addr
				text = "%s is a private address: a router in front of this one translates it, and must forward the ports to this one"
			case !addr.IsPrivate():
				public = append(public, p.Name+" has "+addr.String())
			}
		}
		if code == "" {
			continue
		}
		found := Finding{Level: Warning, Code: code, Interface: p.Name, Text: fmt.Sprintf(text, address)}
		if code == "cgnat" {
			list = append(list, found.advise("ask the provider for a public address, or use IPv6"))
			continue
		}
		list = append(list, found.advise("forward the ports on the router in front to %s, or set that router to bridge mode", address))
	}
	if len(list)+len(public) == 0 {
		return nil
	}
	return orOK(list, strings.Join(public, ", "))
}

// privateSources looks for WANs that drop packets of private sources.
func privateSources(f *Facts) []Finding {
	var list []Finding
	for _, p := range f.of(config.RoleWAN) {
		dropped := f.Datapath.PrivateDropped[p.Name]
		if dropped == 0 || slices.Contains(f.Config.PrivateSources, p.Name) {
			continue
		}
		list = append(list, Finding{Level: Warning, Code: "private-sources-dropped", Interface: p.Name,
			Text: fmt.Sprintf("%s dropped because their sources are private", count(int(dropped), "packet"))}.
			advise("if the provider routes private addresses to %s, name it in interfaces.private_sources", p.Name))
	}
	if len(list) == 0 && f.Datapath.PrivateDropped == nil {
		return nil
	}
	return orOK(list, "no packet was dropped because its source is private")
}

const usualMTU = 1500 // of Ethernet, in bytes

// mtu looks for pairs of interfaces between which only path MTU discovery makes packets small enough.
func mtu(f *Facts) []Finding {
	largest := 0
	for _, p := range f.of(config.RoleLAN) {
		largest = max(largest, p.Link.MTU)
	}
	var list []Finding
	var good []string
	for _, p := range f.of(config.RoleWAN) {
		clamps := f.Config.ClampsMSS(config.Interface{Name: p.Name, Role: p.Role, Bare: p.Link.Bare})
		text := fmt.Sprintf("%s has %d bytes", p.Name, p.Link.MTU)
		switch {
		case p.Link.MTU < largest && !clamps:
			list = append(list, Finding{Level: Warning, Code: "mss-not-clamped", Interface: p.Name,
				Text: fmt.Sprintf("the MTU is %d bytes, and that of a LAN %d: TCP stalls if ICMP errors do not reach the servers", p.Link.MTU, largest)}.
				advise("add %q to mss_clamp in the section datapath of the configuration file", p.Name))
			continue
		case p.Link.MTU < usualMTU && clamps:
			text += ", and hairpin clamps the MSS to it"
		}
		good = append(good, text)
	}
	if len(list)+len(good) == 0 {
		return nil
	}
	return orOK(list, strings.Join(good, ", "))
}

// flowtables looks for flowtables that take packets of the interfaces.
func flowtables(f *Facts) []Finding {
	if f.Rules == nil {
		return nil // natRules says why
	}
	var list []Finding
	for _, table := range f.Rules.Flowtables {
		var taken, quoted []string
		for i := range f.Ports {
			if name := f.Ports[i].Name; slices.Contains(table.Devices, name) {
				taken, quoted = append(taken, name), append(quoted, fmt.Sprintf("%q", name))
			}
		}
		if len(taken) == 0 {
			continue
		}
		list = append(list, Finding{Level: Warning, Code: "flowtable",
			Text: fmt.Sprintf("the flowtable %s %s %s has %s: connections that it took before hairpin started go on past hairpin until they end, and with hardware offload hairpin sees none of their packets",
				table.Family, table.Table, table.Name, strings.Join(taken, ", "))}.
			run("nft 'delete flowtable %s %s %s { devices = { %s }; }'", table.Family, table.Table, table.Name, strings.Join(quoted, ", ")))
	}
	if len(f.Ports) == 0 {
		return nil
	}
	return orOK(list, "no flowtable of nftables has an interface of hairpin")
}

// metricsOpen warns if strangers may be able to ask for the status page and the metrics, which tell about the LAN.
func metricsOpen(f *Facts) []Finding {
	listen := f.Config.MetricsListen
	if listen == "" {
		return nil
	}
	if !reachable(listen) {
		return ok("strangers cannot ask for the status page and the metrics")
	}
	if f.Config.MetricsWeb != "" {
		return ok(f.Config.MetricsWeb + " says who may ask for the status page and the metrics")
	}
	return []Finding{Finding{Level: Warning, Code: "metrics-open", Text: fmt.Sprintf(
		"metrics.listen: %s is for everybody whom the firewall lets through; the status page and the metrics tell about the LAN", listen)}.
		advise("listen on 127.0.0.1 or an address of the LAN, or ask for a password with metrics.web_config")}
}

// reachable reports whether strangers may reach a listening address: it is not of a LAN and not of the router alone.
func reachable(listen string) bool {
	if strings.HasPrefix(listen, "localhost:") {
		return false
	}
	at, err := netip.ParseAddrPort(listen) // without an address, it is every address
	address := at.Addr()
	return err != nil || address.IsUnspecified() || !address.IsLoopback() && !address.IsPrivate() && !address.IsLinkLocalUnicast()
}

// deniesRouter names the denied sources that hold an address of the router's own.
func deniesRouter(f *Facts) (list []Finding) {
	for _, source := range f.Config.Deny {
		for _, link := range f.Links {
			at := slices.IndexFunc(ownOf(&link), source.Contains)
			if at < 0 {
				continue
			}
			list = append(list, Finding{Level: Warning, Code: "denies-router", Text: fmt.Sprintf(
				"deny.sources: %s contains this router's address %s (%s); servers see reflected clients by this address",
				rule.SourceText(source), ownOf(&link)[at], link.Name)})
			break
		}
	}
	if len(list) == 0 && len(f.Config.Deny) > 0 {
		return ok("no denied source holds an address of the router")
	}
	return list
}

// ownOf returns the addresses of a link.
func ownOf(link *loader.Link) (list []netip.Addr) {
	for _, prefix := range slices.Concat(link.Addresses, link.Passive) {
		list = append(list, prefix.Addr())
	}
	return list
}

// shaping names the interfaces with shapers that hairpin's packets pass by.
func shaping(f *Facts) []Finding {
	const page = "see \"Traffic shaping\" in doc/limits.md"
	var list []Finding
	warn := func(code, name, format string, args ...any) {
		list = append(list, Finding{Level: Warning, Code: code, Interface: name, Text: fmt.Sprintf(format, args...)}.advise(page))
	}
	withXDP := slices.ContainsFunc(f.Ports, func(p Port) bool { return p.Attachment != nil && p.Attachment.XDP != "" })
	for i := range f.Ports {
		p := &f.Ports[i]
		if p.ShapingErr != nil {
			list = append(list, Finding{Level: Unknown, Code: "shaping-unseen", Interface: p.Name, Text: fmt.Sprintf("cannot look for shapers: %s", p.ShapingErr)})
			continue
		}
		kinds := strings.Join(p.Shaping.Ingress, ", ")
		switch {
		case kinds == "":
		case p.Shaping.Early && p.Attachment != nil && p.Attachment.TC == loader.TCClsact:
			warn("filter-before", p.Name, "a tc filter at ingress (%s) runs before hairpin; what it redirects to an IFB reaches no forward", kinds)
		default:
			warn("ingress-unshaped", p.Name, "tc filters at ingress (%s) do not see what hairpin translates, so that a shaper or policer there does not limit it", kinds)
		}
		if p.Shaping.Egress != "" && withXDP && p.Link != nil && p.Link.XDPTransmit {
			warn("egress-unshaped", p.Name, "the qdisc %s does not see what XDP sends; set datapath.mode = \"tc\" to shape it", p.Shaping.Egress)
		}
	}
	if len(f.Ports) == 0 {
		return nil
	}
	return orOK(list, "no shaper is passed by")
}

// localPorts looks whether the kernel may give sockets of the router the ports of reflected connections. A socket and a reflected
// connection with one port, to one port of a server, would get each other's answers.
func localPorts(f *Facts) []Finding {
	reflect, local := f.Config.ReflectPorts, f.Ephemeral
	if added := f.Added; added != nil && f.Config.ReflectOf(*added) == rule.ReflectOff && added.Clients != rule.ClientsRouter {
		return nil // the forward has no such connections
	}
	if !local.Overlaps(reflect) {
		return ok(fmt.Sprintf("the kernel gives none of reflection.ports (%s) to the router's own programs", reflect))
	}
	shared := rule.Ports{First: max(local.First, reflect.First), Last: min(local.Last, reflect.Last)}
	// The kernel writes neighbouring reserved ports as one range.
	for text := range strings.SplitSeq(f.Reserved, ",") {
		if kept, err := rule.ParsePorts(text); err == nil && kept.First <= shared.First && shared.Last <= kept.Last {
			return ok(fmt.Sprintf("net.ipv4.ip_local_reserved_ports keeps reflection.ports (%s) for hairpin", shared))
		}
	}
	list := shared.String()
	if f.Reserved != "" {
		list = f.Reserved + "," + list
	}
	return []Finding{Finding{Level: Warning, Code: "local-ports-overlap", Text: fmt.Sprintf(
		"the kernel may give ports %s (reflection.ports) to the router's own programs, and answers would reach the wrong one", shared)}.
		run("sysctl -w net.ipv4.ip_local_reserved_ports=%s", list)}
}

// nearlyFull is the used share of the connection table from which the table counts as nearly full. TCP may use three quarters of the
// table; beyond them, new TCP connections are refused.
const nearlyFull = 0.7

// NearlyFull reports whether a connection table is nearly full; limit 0 means that the limit is not known.
func NearlyFull(used int, limit uint32) bool {
	return limit > 0 && float64(used) >= nearlyFull*float64(limit)
}

func table(f *Facts) []Finding {
	d := f.Datapath
	if d.Limit == 0 {
		return nil
	}
	text := fmt.Sprintf("%d of %d connections", d.Connections, d.Limit)
	var list []Finding
	if d.Resize != "" {
		list = append(list, Finding{Level: Warning, Code: "table-size", Text: d.Resize})
	}
	if NearlyFull(d.Connections, d.Limit) {
		list = append(list, Finding{Level: Warning, Code: "table-nearly-full", Text: "the connection table is nearly full: " + text}.
			advise("raise max_connections in the configuration file"))
	}
	return orOK(list, text)
}
