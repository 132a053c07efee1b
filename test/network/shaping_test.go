// SPDX-License-Identifier: Apache-2.0

package network

import (
	"regexp"
	"strconv"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// shapeIngress leads all that comes in by a device over a shaper on an IFB, as SQM scripts do.
func shapeIngress(n *lab.Network, dev string) {
	for _, command := range []string{
		"ip link add ifb0 type ifb", "ip link set ifb0 up", "tc qdisc add dev ifb0 root tbf rate 100mbit burst 64k latency 50ms",
		"tc qdisc add dev " + dev + " ingress",
		"tc filter add dev " + dev + " parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev ifb0",
	} {
		n.Router.Run(strings.Fields(command)...)
	}
}

var sentBytes = regexp.MustCompile(`Sent (\d+) bytes`)

// shaped is how many bytes the shaper of a device has passed on.
func shaped(t *testing.T, n *lab.Network, dev string) int {
	t.Helper()
	for _, line := range strings.Split(n.Router.Run("tc", "-s", "qdisc", "show", "dev", dev), "qdisc ") {
		if found := sentBytes.FindStringSubmatch(line); strings.HasPrefix(line, "tbf") && found != nil {
			bytes, err := strconv.Atoi(found[1])
			lab.Must(err)
			return bytes
		}
	}
	t.Fatalf("no tbf on %s", dev)
	return 0
}

const uploaded = 1 << 20

// uploadsBy sends a megabyte to the server, and says how much of it a shaper has seen.
func uploadsBy(t *testing.T, n *lab.Network, external, dev string) int {
	t.Helper()
	c, err := n.Internet.DialTCP(external+":80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	before := shaped(t, n, dev)
	if err := c.Upload(uploaded); err != nil {
		t.Fatal(err)
	}
	return shaped(t, n, dev) - before
}

func warns(t *testing.T, hp *lab.Hairpin, want string, commands ...[]string) {
	t.Helper()
	for _, command := range commands {
		r, err := hp.Try(command...)
		if err != nil || r.Code != 0 || !strings.Contains(r.Stdout+r.Stderr, "warning: "+want) {
			t.Errorf("%v: code %d, %v\n%s%s\nlacks %q", command, r.Code, err, r.Stdout, r.Stderr, want)
		}
	}
}

func warnsNot(t *testing.T, hp *lab.Hairpin) {
	t.Helper()
	for _, command := range []string{"check", "apply", "status"} {
		if r, err := hp.Try(command); err != nil || strings.Contains(r.Stdout+r.Stderr, "Traffic shaping") {
			t.Errorf("%s: %v\n%s%s\nspeaks of shaping", command, err, r.Stdout, r.Stderr)
		}
	}
}

// TestShaperAtIngressIsPassedBy: hairpin takes packets before an IFB does, which every command says. A bridge over the interface puts
// hairpin behind the shaper.
func TestShaperAtIngressIsPassedBy(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Server.ServeTCP("[::]:8080")
			shapeIngress(n, "wan0")
			forwards := home.Forwards + home.Forwards6
			hp := home.Start(t, n, mode, forwards)
			for _, external := range []string{lab.External, "[" + lab.External6 + "]"} {
				if saw := uploadsBy(t, n, external, "ifb0"); saw > uploaded/10 {
					t.Errorf("%s: the shaper has seen %d bytes: the warning is wrong", external, saw)
				}
			}
			warns(t, hp, "wan0: tc filters at ingress (u32) do not see what hairpin translates",
				[]string{"check"}, []string{"apply"}, []string{"status"}, []string{"forward", "add", "more", "tcp", "8081", "to", lab.Server})
			if !strings.Contains(hp.Log(), "do not see what hairpin translates") {
				t.Errorf("the daemon says nothing:\n%s", hp.Log())
			}
		})
	}
}

// TestBehindTheShaper is the way that limits.md offers: the bridge receives what the shaper lets through.
func TestBehindTheShaper(t *testing.T) {
	n := lab.NewNetwork6(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeTCP("[::]:8080")
	shapeIngress(n, "wan0")
	n.Router.Bridge("br-wan", "wan0")
	n.Router.Unaddress("wan0", lab.External+"/24", lab.External6+"/64")
	n.Router.Enable6()
	n.Router.Address("br-wan", lab.External+"/24")
	n.Router.Address6("br-wan", lab.External6+"/64", lab.RouterLink6+"/64")
	n.Router.Route("br-wan", "0.0.0.0/0", lab.Gateway, "")
	n.Router.Run("ip", "-6", "route", "replace", "default", "via", lab.GatewayLink6, "dev", "br-wan")
	config := strings.Replace(home.Config("tc", home.Forwards+home.Forwards6), `"wan0"`, `"br-wan"`, 1)
	hp := lab.NewHairpin(n.Router, config)
	hp.Start()
	for _, external := range []string{lab.External, "[" + lab.External6 + "]"} {
		if saw := uploadsBy(t, n, external, "ifb0"); saw < uploaded {
			t.Errorf("%s: the shaper has seen %d bytes, want all", external, saw)
		}
	}
	warnsNot(t, hp)
}

// TestShaperAtEgress: what TC sends goes through the qdisc of the interface that it leaves by. What XDP sends does not, which is said.
func TestShaperAtEgress(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Server.ServeTCP("[::]:8080")
			n.Router.Run(strings.Fields("tc qdisc add dev lan0 root tbf rate 100mbit burst 64k latency 50ms")...)
			hp := home.Start(t, n, mode, home.Forwards+home.Forwards6)
			for _, external := range []string{lab.External, "[" + lab.External6 + "]"} {
				saw := uploadsBy(t, n, external, "lan0")
				if mode == "tc" && saw < uploaded {
					t.Errorf("%s: the shaper has seen %d bytes, want all", external, saw)
				}
				if mode == "xdp" && saw > uploaded/10 {
					t.Errorf("%s: the shaper has seen %d bytes: the warning is wrong", external, saw)
				}
			}
			if mode == "tc" {
				warnsNot(t, hp)
				return
			}
			warns(t, hp, "lan0: the qdisc tbf does not see what XDP sends", []string{"apply"}, []string{"status"})
		})
	}
}
