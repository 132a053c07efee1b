// SPDX-License-Identifier: Apache-2.0

package network

import (
	"net/netip"
	"testing"
	"time"

	"hairpin/test/lab"
)

// Without reflection the lab has the very problem that hairpin solves: the server answers
// its neighbour directly, from an address that the neighbour never called.
func TestPlainDNATDoesNotHairpin(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":80")
	n.Router.RunInput(`
		table ip nat {
			chain prerouting {
				type nat hook prerouting priority dstnat
				ip daddr 203.0.113.2 tcp dport 80 dnat to 192.168.1.20
			}
		}`, "nft", "-f", "-")

	c, err := n.Internet.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatalf("the forward does not even work from the Internet: %v", err)
	}
	defer c.Close()
	if who, err := c.Who(); err != nil || who.Addr() != netip.MustParseAddr(lab.InternetSource) {
		t.Errorf("server sees %v, %v", who, err)
	}

	direct := 0
	capture := n.Client.Capture("eth0", func(p *lab.Packet) error {
		if p.Src.Addr() == netip.MustParseAddr(lab.Server) {
			direct++
		}
		return nil
	})
	if c, err := n.Client.DialTCP(lab.External+":80", "", time.Second); err == nil {
		c.Close()
		t.Error("a LAN client got through without reflection: the lab proves nothing")
	}
	capture.Stop()
	if direct == 0 {
		t.Error("no answer came directly from the server")
	}
}
