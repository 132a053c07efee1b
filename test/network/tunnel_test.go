// SPDX-License-Identifier: Apache-2.0

package network

import (
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

const tunnelWithin = 10 * time.Second

// TestTunnelledTCP: a TCP connection works through a VXLAN tunnel whose end is the target of a forward. The tunnel has no UDP checksum, and
// the inner TCP checksum is left to a device. If XDP sent this frame on, no device would complete the inner checksum.
func TestTunnelledTCP(t *testing.T) {
	for _, mode := range []string{"xdp", "tc"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(lab.OnGRO)
			home.Start(t, n, mode, `
[[forward]]
name = "tunnel"
protocol = ["udp"]
port = "4789"
to = "192.168.1.20:4789"
`)
			tunnel(n.Internet, lab.InternetSource, lab.External, "10.50.0.1/24")
			tunnel(n.Server, lab.Server, lab.InternetSource, "10.50.0.2/24")
			n.Server.ServeTCP("10.50.0.2:80")
			c, err := n.Internet.DialTCP("10.50.0.2:80", "", tunnelWithin)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			if err := c.Echo(100000); err != nil {
				t.Error(err)
			}
		})
	}
}

// tunnel makes an end of a VXLAN tunnel on a host. Both ends use one fixed UDP port, so that the packets of each end are answers to the
// packets of the other end.
func tunnel(h *lab.Host, local, remote, address string) {
	h.Run("ip", "link", "add", "tunnel0", "type", "vxlan", "id", "50", "local", local, "remote", remote, "dstport", "4789",
		"srcport", "4789", "4790", "noudpcsum")
	h.Address("tunnel0", address)
	h.MTU("tunnel0", 1450)
	h.Up("tunnel0")
}
