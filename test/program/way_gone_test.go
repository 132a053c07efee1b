// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"testing"

	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// TestLANRouteGone: while the server's LAN has no route, the default route leads to the server. Packets of LAN clients have an inside
// source, so they do not take this route, which is by a WAN. When the LAN's route is back, they reach the server.
func TestLANRouteGone(t *testing.T) {
	b := newBench6(t)
	for _, v6 := range []bool{false, true} {
		for _, way := range []string{"hairpin", "from another LAN"} {
			t.Run(fmt.Sprintf("%s, IPv6=%v", way, v6), func(t *testing.T) {
				c := twinCase{newCase(t, b), v6}
				f := c.flow(way, true)
				c.open(t, f)
				in, _ := f.inBytes(frames.Payload("where to?"))
				family, network := "-4", "192.168.1.0/24"
				if v6 {
					family, network = "-6", "fd00:1::/64"
				}
				b.Router.Run("ip", family, "route", "del", network, "dev", "lan0")
				lab.Must(b.Tables.BumpRoutes())
				refused := b.Counted(t, "no_route")
				b.TC(t, f.At, in)
				if b.Counted(t, "no_route") == refused {
					t.Error("the packet is not refused for want of a route")
				}
				b.Router.Route("lan0", network, "", "")
				lab.Must(b.Tables.BumpRoutes())
				if got := b.TC(t, f.At, in); got.Code != rig.TCRedirect {
					t.Errorf("the route is back, and tc answers %d", int32(got.Code))
				}
			})
			b.Forget(t)
		}
	}
}
