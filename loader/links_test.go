// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"fmt"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"

	"hairpin/test/lab"
)

// TestLinksOfMany: with many interfaces, Links lists every interface, each time.
func TestLinksOfMany(t *testing.T) {
	host := lab.NewHost(t, "router")
	for n := range 100 {
		lab.Cable(host, fmt.Sprintf("a%d", n), host, fmt.Sprintf("b%d", n))
	}
	for range 20 {
		err := host.Do(func() error {
			links, err := Links()
			if err == nil && len(links) != 201 {
				err = fmt.Errorf("%d links", len(links))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestXDPTransmitWithoutFeatures: if the kernel reports no features, only a NIC with native XDP running
// transmits.
func TestXDPTransmitWithoutFeatures(t *testing.T) {
	native := &netlink.LinkXdp{Attached: true, AttachMode: nl.XDP_ATTACHED_DRV}
	generic := &netlink.LinkXdp{Attached: true, AttachMode: nl.XDP_ATTACHED_SKB}
	nic := netlink.LinkAttrs{Index: 2, ParentDev: "0000:01:00.0", ParentDevBus: "pci"}
	for _, c := range []struct {
		name     string
		parent   netlink.LinkAttrs
		xdp      *netlink.LinkXdp
		features map[int]uint64
		want     bool
	}{
		{"NIC with native XDP", nic, native, nil, true},
		{"NIC with generic XDP", nic, generic, nil, false},
		{"NIC without XDP", nic, nil, nil, false},
		{"veth with native XDP", netlink.LinkAttrs{Index: 2}, native, nil, false},
		{"NIC that says so", nic, nil, map[int]uint64{2: featureTransmit}, true},
		{"NIC that says no", nic, native, map[int]uint64{2: 3}, false},
		{"device that is not listed", nic, native, map[int]uint64{}, false},
	} {
		attrs := c.parent
		attrs.Xdp = c.xdp
		if got := transmitsXDP(&netlink.Device{LinkAttrs: attrs}, c.features); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func TestParseFeatures(t *testing.T) {
	message := append([]byte{1, 1, 0, 0},
		8, 0, 1, 0, 7, 0, 0, 0, // ifindex
		12, 0, 3, 0, 0x47, 0, 0, 0, 0, 0, 0, 0) // features
	index, bits, err := parseFeatures(message)
	if index != 7 || bits != 0x47 || err != nil {
		t.Errorf("parsed %d, %#x, %v", index, bits, err)
	}
	if _, _, err := parseFeatures(message[:2]); err == nil {
		t.Error("a short message passes")
	}
}
