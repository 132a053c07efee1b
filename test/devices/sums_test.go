// SPDX-License-Identifier: Apache-2.0

package devices

import (
	"crypto/rand"
	"fmt"
	"net"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// The kernel keeps the sum (CHECKSUM_COMPLETE) of a packet from a tunnel. A receiver on this machine uses this sum: the router
// itself, or the other end of a veth. UDP relies on it from 77 bytes on.
const summedBytes = 1000

// TestSummedPackets: translated packets leave with a correct CHECKSUM_COMPLETE sum, whatever helper sends them on.
func TestSummedPackets(t *testing.T) {
	for _, test := range []struct {
		name, mode string
		gro        bool // takes the sum out of use, except before XDP
	}{{"tc", "tc", false}, {"generic XDP", "xdp", true}} {
		t.Run(test.name, func(t *testing.T) {
			n := newDeviceNetwork(t, vxlanDevice, vethDevice)
			n.CompleteFrames()
			n.Router.Offload("lan0", lab.ReceiveOffload, test.gro)
			n.Server.ServeUDP(":5353")
			n.Server.ServeUDP("[::]:5353")
			home.Start(t, n, test.mode, home.Forwards+home.Forwards6)
			var clients []*net.UDPConn
			for _, from := range []*lab.Host{n.Internet, n.Router} {
				c, err := from.DialUDP(lab.External+":53", "")
				if err != nil {
					t.Fatal(err)
				}
				c6, err := from.DialUDP("["+lab.External6+"]:53", "")
				if err != nil {
					t.Fatal(err)
				}
				clients = append(clients, c, c6)
			}
			lab.Together(len(clients), func(i int) {
				defer clients[i].Close()
				if err := summed(clients[i]); err != nil {
					t.Error(err)
				}
			})
		})
	}
}

// summed has datagrams echoed for longer than a next hop is remembered: one in a second goes by way of the
// kernel's neighbours. The first, which finds them, is a short one.
func summed(c *net.UDPConn) error {
	if _, err := lab.Exchange(c, 1, 1); err != nil {
		return err
	}
	data := make([]byte, summedBytes)
	for began, count := time.Now(), 0; time.Since(began) < 1200*time.Millisecond; count++ {
		rand.Read(data)
		if _, err := c.Write(data); err != nil {
			return err
		}
		if err := lab.ReadsWithin(c, data, time.Second); err != nil {
			return fmt.Errorf("datagram %d: %w", count, err)
		}
	}
	return nil
}
