// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

const (
	virtioRun  = "virtio"   // needs virtio-net devices
	upgradeRun = "upgrades" // needs other builds of hairpin
)

// runs has the runs of a guest.
var runs = []testRun{
	{0, "load", "kernels.test", "^TestLoad$"},
	{alone, "conntrack", "kernels.test", "^TestConntrackModule$"},
	{alone, "floods", "torture.test", "^TestTorture$/^1_Floods"},
	{alone, "death", "torture.test", "^TestTorture$/^2_Death"},
	{alone, upgradeRun, "torture.test", "^TestTorture$/^3_"},
	{alone, "forgery", "torture.test", "^TestTorture$/^6_Forged"},
	{1, "packets", "program.test", "^(TestTranslation|TestTranslation6)$"},
	{1, "T", "program.test", "^(TestCorpus|TestHandshake|TestExpiry)$"},
	{0, "T6", "program.test", "^TestCorpus6$"},
	{1, "N", "network.test", "^(TestReflectModes|TestLocalClients|TestPingForward|TestCurlIsRefused)$"},
	{0, "beside", "kernels.test", "^(TestIPsecTunnel|TestPriorityTags|TestWGQuick|TestMSSOfWireGuardLAN)$"},
	{1, "trace", "kernels.test", "^TestTrace(Packets|Connections)$"},
	{1, "tracing", "kernels.test", "^TestTrace(Filters|Limits|FollowsAnUpgrade|WritesPcapng|Log|Session)$"},
	{1, virtioRun, "kernels.test", "^TestVirtio$"},
	{0, "devices", "kernels.test", "^(TestDevices|TestVLANOnTop|TestDoctorSeesVLANOnTop|TestFlowtable)$"},
}

// runsFor returns the runs of a kernel whose names are in only; nil: all runs of this kernel.
func runsFor(k kernel, only []string) []testRun {
	return slices.DeleteFunc(slices.Clone(runs), func(r testRun) bool {
		return only != nil && !slices.Contains(only, r.name) || k.runs != nil && !slices.Contains(k.runs, r.name)
	})
}

// runsOf returns all runs on the selected kernels of an architecture; some are there several times.
func runsOf(a *arch, opts options) (all []testRun) {
	for _, k := range opts.kernels {
		if k.arch == a {
			all = append(all, runsFor(k, opts.runs)...)
		}
	}
	return all
}

// columns are the columns of the table: each is a run, or one test of a run.
var columns = []struct{ title, run, test string }{
	{"load", "load", ""},
	{"conntrack", "conntrack", ""},
	{"floods", "floods", ""},
	{"death", "death", ""},
	{upgradeRun, upgradeRun, ""},
	{"forgery", "forgery", ""},
	{"packets", "packets", ""},
	{"T", "T", ""},
	{"T6", "T6", ""},
	{"N", "N", ""},
	{"IPsec", "beside", "TestIPsecTunnel"},
	{"VLAN 0", "beside", "TestPriorityTags"},
	{"wg-quick", "beside", "TestWGQuick"},
	{"MSS", "beside", "TestMSSOfWireGuardLAN"},
	{"trace", "trace", ""},
	{"tracing", "tracing", ""},
	{"virtio-net", virtioRun, "TestVirtio"},
	{"veth", "devices", "TestDevices/veth"},
	{"bridge", "devices", "TestDevices/bridge"},
	{"VLAN", "devices", "TestDevices/VLAN"},
	{"bond", "devices", "TestDevices/bond"},
	{"macvlan", "devices", "TestDevices/macvlan"},
	{"vxlan", "devices", "TestDevices/vxlan"},
	{"tun", "devices", "TestDevices/tun"},
	{"WireGuard", "devices", "TestDevices/WireGuard"},
	{"PPP", "devices", "TestDevices/PPP"},
	{"PPPoE", "devices", "TestDevices/PPPoE"},
	{"flowtable", "devices", "TestFlowtable"},
}

const preface = `# Kernels

` + "`sudo make test-kernels`" + ` boots each of Debian's kernels in qemu, runs tests there, and writes this table.
Each row is from one run.

- load: hairpin attaches, and explain answers for both IP versions. On kernels older than 6.1, hairpin refuses to start, and its message names 6.1.
- conntrack: programs ask nf_conntrack, a module there. They ask whether the module was loaded before them or after them, with the daemon
  and without. Without CAP_SYS_ADMIN they work, and do not ask.
- floods, death, upgrades, forgery: the first scenarios 1, 2, 3 and 6 of [TORTURE.md](TORTURE.md), with fewer packets, and with the oracle
  of every scenario.
- packets: translated packets, compared byte by byte, through both programs.
- T, T6: the packet corpus of IPv4 and of IPv6, through both programs; T also has connection state and expiry.
- N: real clients in network namespaces: all reflect modes, the router's own connections, ping, refusals.
- IPsec: ESP tunnels of both families beside forwards. What a policy protects never leaves unencrypted, the tunnels go on, and a target
  behind an xfrm interface is served.
- VLAN 0: hosts that begin to send priority tags, from VLAN devices with id 0, keep their connections, and a VLAN beside them is untouched.
- wg-quick: wg-quick has made a WireGuard tunnel the default route, with strict rp_filter. The Internet is served by the WAN.
- MSS: a WireGuard interface with a small MTU in ` + "`lan`" + `. TCP fits into it by default, though the server ignores ICMP errors.
- trace: packets and connections are traced by programs that are attached to the running ones.
- tracing: filters, limits, losses, an upgrade, pcapng files, the log of connections. Nothing stays attached, also after a kill.
- virtio-net: the WAN and the LAN are virtio-net devices of the virtual machine, at bridges with other virtio-net devices. The traffic is
  that of a kind of device, and more than a megabyte where frames are long. Every frame that arrives at a host has a correct checksum.
  - Modes tc, auto and xdp. Native XDP runs on a device whose receive offloads the driver can switch off, or that has none.
    On a device with fixed offloads the driver refuses: auto is then TC alone, xdp is generic XDP, and the status says why. There may be XDP
    on the WAN alone.
  - With TC, frames arrive with partial checksums, and longer than the MTU. The offloads are switched off one by one: to send, to receive
    long frames, those of the hosts.
  - Buffers: frames in one buffer, in several, in chained pages. MTU 9000: native XDP since Linux 6.3; before, the driver refuses.
  - VLAN devices as WAN and LAN; and a VLAN beside the WAN, whose frames pass native XDP.
- A kind of device: both the WAN and the LAN interface are of this kind. TCP in both directions, and UDP, whole and in fragments,
  over IPv4 and IPv6, in modes tc and xdp. The clients are on the Internet and in this LAN; some packets leave by the interface that
  they came in by, and the server may be in this LAN. Packets of tun, WireGuard, PPP and PPPoE have no link-layer header, so XDP is
  not attached there.
- flowtable: at the same time, an nftables flowtable offloads and masquerades outbound connections.

`

// row is a kernel in the table.
type row struct {
	kernel   kernel
	runs     []testRun
	version  string
	outcomes map[string]*outcome
	died     error // the guest's error, if it ended before all runs had ended
}

// title names the kernel's source in the table.
func (k kernel) title() string {
	if k.arch == amd64 {
		return k.suite
	}
	return k.suite + ", " + k.arch.name
}

func (r row) cell(run, test string) string {
	o := r.outcomes[run]
	switch {
	case !hasRun(r.runs, run):
		return ""
	case !o.passed(test):
		return "FAILED"
	case r.kernel.refused:
		return "refused"
	}
	return "ok"
}

// header returns the first two lines of the table.
func header() string {
	line := "| kernel |"
	for _, c := range columns {
		line += " " + c.title + " |"
	}
	return line + "\n|---|" + strings.Repeat("---|", len(columns)) + "\n"
}

// line returns the kernel's line of the table. It contains nothing that differs from run to run.
func (r row) line() string {
	line := fmt.Sprintf("| %s, %s |", series(r.version), r.kernel.title())
	for _, c := range columns {
		line += " " + r.cell(c.run, c.test) + " |"
	}
	return line + "\n"
}

// format returns the table in Markdown.
func format(rows []row) string {
	table := header()
	for _, r := range rows {
		table += r.line()
	}
	return table
}

// update returns the table with the rows of this run, and those that the text before has of other kernels. A text with other columns has
// none.
func update(before string, rows []row) string {
	table := header()
	_, kept, _ := strings.Cut(before, table)
	for _, k := range kernels {
		if i := slices.IndexFunc(rows, func(r row) bool { return r.kernel.name == k.name }); i >= 0 {
			table += rows[i].line()
			continue
		}
		for line := range strings.Lines(kept) {
			if _, title, _ := strings.Cut(line, ", "); strings.HasPrefix(title, k.title()+" |") {
				table += line
			}
		}
	}
	return table
}

// series returns the first two numbers of a version.
func series(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// failures returns an error with the kernels and columns that failed, or nil.
func failures(rows []row) error {
	var errs []error
	for _, r := range rows {
		if r.died != nil {
			errs = append(errs, fmt.Errorf("on %s: %w", r.version, r.died))
		}
		var failed []string
		for _, c := range columns {
			if r.cell(c.run, c.test) == "FAILED" {
				failed = append(failed, c.title)
			}
		}
		// A test without a column may have failed.
		for _, run := range r.runs {
			if len(failed) == 0 && !r.outcomes[run.name].passed("") {
				failed = append(failed, run.name)
			}
		}
		if len(failed) > 0 {
			errs = append(errs, fmt.Errorf("failed on %s: %s", r.version, strings.Join(failed, ", ")))
		}
	}
	return errors.Join(errs...)
}

// runNames returns the names of all runs.
func runNames() (names []string) {
	for _, r := range runs {
		names = append(names, r.name)
	}
	return names
}
