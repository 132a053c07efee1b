// SPDX-License-Identifier: Apache-2.0

package kernels

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"hairpin/test/lab"
)

// flowtable masquerades what goes out, and takes established connections off the kernel's hands.
const flowtable = `
table inet router {
	flowtable fast {
		hook ingress priority 0
		devices = { wan0, lan0 }
	}
	chain forward {
		type filter hook forward priority 0; policy accept
		ct state established meta l4proto { tcp, udp } flow add @fast
	}
	chain postrouting {
		type nat hook postrouting priority 100
		oifname "wan0" masquerade
	}
}
`

// Connections out of the LAN go on through an nftables flowtable, begun before hairpin as well as
// after, while it translates its own on the same interfaces.
func TestFlowtable(t *testing.T) {
	n := lab.NewNetwork(t)
	r, err := n.Router.TryInput(flowtable, "nft", "-f", "-")
	if err != nil || r.Code != 0 {
		lacking(t, "flowtable: not in this kernel, or no nft: %v %s", err, r.Stderr)
	}
	n.Server.ServeTCP(lab.Server + ":8080")
	n.Internet.ServeTCP(lab.InternetSource + ":9000")
	before := outbound(t, n)
	transferred(t, before)
	hp := lab.NewHairpin(n.Router, fmt.Sprintf(deviceConfig, "tc"))
	hp.Start()
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			hp := hp.For(t)
			hp.Write(fmt.Sprintf(deviceConfig, lab.DeviceMode(mode)))
			hp.Reload()
			besideFlowtable(t, n.For(t), before)
		})
	}
	toldByDoctor(t, n, hp)
}

// toldByDoctor wants "hairpin doctor" to name the flowtable, until the command that it prints has run.
func toldByDoctor(t *testing.T, n *lab.Network, hp *lab.Hairpin) {
	t.Helper()
	told := func() (cure string, found bool) {
		r, err := hp.Try("doctor")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, found := strings.Cut(r.Stdout, "warning  flowtables      the flowtable inet router fast has wan0, lan0: ")
		_, rest, _ = strings.Cut(rest, "cure: ")
		cure, _, _ = strings.Cut(rest, "\n")
		return cure, found
	}
	cure, found := told()
	if !found {
		t.Fatalf("doctor does not name the flowtable:\n%s", hp.Run("-j", "doctor"))
	}
	n.Router.Run("sh", "-c", cure)
	if _, found := told(); found {
		t.Errorf("doctor names the flowtable after %s", cure)
	}
}

func besideFlowtable(t *testing.T, n *lab.Network, before *lab.Conn) {
	transferred(t, before)
	after := outbound(t, n)
	for _, w := range []trip{
		{from: n.Internet, source: lab.InternetSource, sees: lab.InternetSource, to: lab.External + ":80"},
		{from: n.Client, source: lab.Client, sees: lab.RouterLAN, to: lab.External + ":80"},
		{from: n.Guest, source: lab.Guest, sees: lab.Guest, to: lab.External + ":80"},
	} {
		w.tcp(t)
		transferred(t, after)
	}
	offloaded(t, n.Router, before, after)
}

// outbound connects from the LAN to the Internet, where the router's address is seen.
func outbound(t *testing.T, n *lab.Network) *lab.Conn {
	t.Helper()
	c, err := n.Client.DialTCP(lab.InternetSource+":9000", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if who, err := c.Who(); err != nil || who.Addr() != netip.MustParseAddr(lab.External) {
		t.Errorf("Internet sees %v, want the router (%v)", who, err)
	}
	return c
}

func transferred(t *testing.T, c *lab.Conn) {
	t.Helper()
	if err := c.Upload(deviceBytes); err != nil {
		t.Error(err)
	}
	if err := c.Download(deviceBytes); err != nil {
		t.Error(err)
	}
}

// offloaded makes sure that the flowtable has the connections, and netfilter none of hairpin's.
func offloaded(t *testing.T, router *lab.Host, connections ...*lab.Conn) {
	t.Helper()
	var table string
	if err := router.Do(func() error {
		text, err := os.ReadFile("/proc/thread-self/net/nf_conntrack")
		table = string(text)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, c := range connections {
		port := fmt.Sprintf(" sport=%d dport=9000 ", c.LocalAddr().(interface{ AddrPort() netip.AddrPort }).AddrPort().Port())
		found := false
		for line := range strings.Lines(table) {
			found = found || strings.Contains(line, port) && strings.Contains(line, "[OFFLOAD]")
		}
		if !found {
			t.Errorf("not in the flowtable:%s\n%s", port, table)
		}
	}
	if strings.Contains(table, "port=8080") {
		t.Errorf("netfilter has seen a translated connection:\n%s", table)
	}
}
