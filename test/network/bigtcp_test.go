// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// received returns how many packets and bytes a host has received by a device.
func received(t *testing.T, h *lab.Host, dev string) (packets, bytes uint64) {
	t.Helper()
	var links []struct {
		Stats struct {
			RX struct{ Packets, Bytes uint64 } `json:"rx"`
		} `json:"stats64"`
	}
	if err := json.Unmarshal([]byte(h.Run("ip", "-j", "-s", "link", "show", dev)), &links); err != nil || len(links) != 1 {
		t.Fatalf("statistics of %s: %d links, %v", dev, len(links), err)
	}
	return links[0].Stats.RX.Packets, links[0].Stats.RX.Bytes
}

// bigTCP is the length of the longest packets, in bytes.
const bigTCP = 200_000

// TestBigTCP: TCP packets of more than 65,535 bytes (BIG TCP), whose checksums a device is still to finish, arrive with right checksums.
func TestBigTCP(t *testing.T) {
	n := lab.NewNetwork(t)
	n.SetOffloads(lab.RouterOff) // the router finishes the checksums, so a receiver sees whether they are right
	for _, h := range []*lab.Host{n.Internet, n.Router, n.Switch, n.Client, n.Server} {
		for _, link := range h.Links() {
			if link.Type() == "veth" {
				lab.Must(h.Do(func() error {
					return errors.Join(netlink.LinkSetGSOMaxSize(link, bigTCP), netlink.LinkSetGSOIPv4MaxSize(link, bigTCP),
						netlink.LinkSetGROMaxSize(link, bigTCP), netlink.LinkSetGROIPv4MaxSize(link, bigTCP))
				}))
			}
		}
	}
	n.Server.ServeTCP(":8080")
	home.Start(t, n, "tc", home.Forwards)
	c, err := n.Internet.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// On a busy machine the sender makes shorter packets.
	lab.Eventually(t, lab.Patience, func() error {
		packets, bytes := received(t, n.Router, "wan0")
		if err := c.Upload(transferBytes); err != nil {
			t.Fatal(err)
		}
		afterPackets, afterBytes := received(t, n.Router, "wan0")
		if afterBytes-bytes <= 65536*(afterPackets-packets) {
			return fmt.Errorf("%d packets have %d bytes: none is known to be longer than 65,535", afterPackets-packets, afterBytes-bytes)
		}
		return nil
	})
	if err := c.Download(transferBytes); err != nil {
		t.Error(err)
	}
	for _, h := range []*lab.Host{n.Internet, n.Server} {
		if bad := h.SNMP("Tcp", "InCsumErrors"); bad != "0" {
			t.Errorf("%s counts %s checksum errors", h.Name, bad)
		}
	}
}
