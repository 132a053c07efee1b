// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// runs are the tests in a guest, chosen to take two or three minutes in all.
var runs = []testRun{
	{0, "load", "kernels.test", "^TestLoad$"},
	{alone, "conntrack", "kernels.test", "^TestConntrackModule$"},
	{1, "packets", "program.test", "^(TestTranslation|TestTranslation6)$"},
	{1, "T", "program.test", "^(TestCorpus|TestCorpus6|TestHandshake|TestExpiry)$"},
	{1, "N", "network.test", "^(TestReflectModes|TestLocalClients|TestPingForward|TestCurlIsRefused)$"},
	{0, "devices", "kernels.test", "^(TestDevices|TestVLANOnTop|TestFlowtable)$"},
}

// runsFor are those of only, by name, nil for all; below the floor there is but one.
func runsFor(k kernel, only []string) []testRun {
	if k.refused {
		return runs[:1]
	}
	return slices.DeleteFunc(slices.Clone(runs), func(r testRun) bool {
		return only != nil && !slices.Contains(only, r.name)
	})
}

// columns of the table: a run, or one test of it.
var columns = []struct{ title, run, test string }{
	{"load", "load", ""},
	{"conntrack", "conntrack", ""},
	{"packets", "packets", ""},
	{"T", "T", ""},
	{"N", "N", ""},
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

Debian's kernels, each booted in qemu with the tests: ` + "`sudo make test-kernels`" + ` writes this table.

- load: hairpin attaches; below its floor it refuses and names that.
- conntrack: programs ask nf_conntrack, which is a module there, whether it was loaded before them or after them, with the daemon and
  without. Without CAP_SYS_ADMIN they work, and do not ask.
- packets: what is translated, byte by byte, through both programs.
- T: the packet corpus of both families, connection state and expiry, through both programs.
- N: every reflection, the router's own connections, ping, refusals, by real clients in network namespaces.
- A device: WAN and LAN interface are of that kind. TCP, both ways, and UDP, also in fragments, over IPv4 and
  IPv6 in modes tc and xdp: from the Internet, from that LAN, out and in by the same interface, and
  to a server there. XDP is not attached to tun, WireGuard, PPP and PPPoE, whose packets are bare.
- flowtable: an nftables flowtable offloads and masquerades outbound connections beside it.

`

// row is a kernel in the table.
type row struct {
	kernel   kernel
	runs     []testRun
	version  string
	outcomes map[string]*outcome
	died     error // before all tests were done
}

func (r row) cell(run, test string) string {
	o := r.outcomes[run]
	switch {
	case !slices.ContainsFunc(r.runs, func(t testRun) bool { return t.name == run }):
		return ""
	case !o.passed(test):
		return "FAILED"
	case r.kernel.refused:
		return "refused"
	}
	return "ok"
}

// format makes a table in Markdown, without anything that another run would write otherwise.
func format(rows []row) string {
	var b strings.Builder
	b.WriteString("| kernel |")
	for _, c := range columns {
		b.WriteString(" " + c.title + " |")
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(columns)) + "\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s, %s |", series(r.version), r.kernel.suite)
		for _, c := range columns {
			b.WriteString(" " + r.cell(c.run, c.test) + " |")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// series is the first two numbers of a version.
func series(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// failures returns an error that names what is not as it should be.
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
		// A run may fail outside of what has a column.
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
