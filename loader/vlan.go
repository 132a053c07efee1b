// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A VLAN tag may travel beside a frame instead of in it, in skb->vlan_tci. TC sees it there, XDP does
// not: it would take the frame for an untagged one. Who takes the tag out of the frame:
//
//   - A NIC, by an offload that can mostly be switched off (ethtool -K DEV rxvlan off). Then the tag is in
//     the frame for native XDP, and for generic XDP too: __netif_receive_skb_core runs that before
//     skb_vlan_untag.
//   - The sender, where a packet goes from one device of the same machine to another. A veth has the
//     offload for transmission, so a VLAN device or a bridge on the peer leaves the tag beside the
//     frame, and veth_xdp_rcv_skb shows the program the data alone. The receiver's rxvlan changes nothing,
//     and the peer is often in another network namespace.
//   - The stack, for devices on top of others: a bridge, a bond and a macvlan get skbs that were
//     untagged below.
//
// A tap device gets whole frames from user space.

// tagFeatures are the offloads of a NIC that take tags out of frames.
var tagFeatures = []string{"rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"}

// isHardware tells NICs, whose frames come from a wire. A test may have its own idea. DSA has a parent
// device too, but also a kind.
var isHardware = func(dev netlink.Link) bool { return isPhysical(dev.Attrs()) && dev.Type() == "device" }

// TagVisibility says what XDP sees of VLAN tags on a device.
type TagVisibility struct {
	Strips []string // offloads of the NIC that take tags out of frames, and can be switched off
	Hides  string   // why nothing can be done about tags that are not seen; "" if they are
}

func readTagVisibility(dev netlink.Link) (TagVisibility, error) {
	if dev.Type() == "tuntap" {
		return TagVisibility{}, nil
	}
	if !isHardware(dev) {
		return TagVisibility{Hides: fmt.Sprintf("no XDP: to a %s device VLAN tags come beside frames, where XDP does not see them", dev.Type())}, nil
	}
	features, err := tagOffloads(dev)
	return tagVisibilityOf(features), err
}

// tagVisibilityOf is what XDP sees of tags on a NIC with offloads in these states.
func tagVisibilityOf(features map[string]ethtool.FeatureState) (sight TagVisibility) {
	for _, name := range tagFeatures {
		switch state := features[name]; {
		case !state.Active:
		case !state.Available || state.NeverChanged:
			sight.Hides = fmt.Sprintf("no XDP: the device takes VLAN tags off frames before XDP sees them, and %s cannot be switched off", name)
		default:
			sight.Strips = append(sight.Strips, name)
		}
	}
	return sight
}

// tagOffloads reads the state of the features of a device; one that is gone has none.
func tagOffloads(dev netlink.Link) (map[string]ethtool.FeatureState, error) {
	client, err := ethtool.NewEthtool()
	if err != nil {
		return nil, fmt.Errorf("open ethtool socket: %w", err)
	}
	defer client.Close()
	features, err := client.FeaturesWithState(dev.Attrs().Name)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return nil, fmt.Errorf("read offloads of %s: %w", dev.Attrs().Name, err)
	}
	return features, nil
}

func setOffloads(dev netlink.Link, features []string, on bool) error {
	client, err := ethtool.NewEthtool()
	if err != nil {
		return fmt.Errorf("open ethtool socket: %w", err)
	}
	defer client.Close()
	change := make(map[string]bool)
	for _, name := range features {
		change[name] = on
	}
	return client.Change(dev.Attrs().Name, change)
}

// vlansOn names the VLAN devices on top of a device.
func vlansOn(dev netlink.Link, devices []netlink.Link) (names []string) {
	for _, other := range devices {
		if attrs := other.Attrs(); other.Type() == "vlan" && attrs.ParentIndex == dev.Attrs().Index && attrs.NetNsID < 0 {
			names = append(names, attrs.Name)
		}
	}
	return names
}

// NoXDP says why the link does not get the XDP that a mode asks for, as VLAN tags would not be seen;
// "" if there is no such reason, or the mode does not ask.
func (l Link) NoXDP(mode Mode) string {
	switch {
	case mode == ModeTC || mode == ModeAuto && !l.physical || l.Bare || l.Loopback || l.Tags.Hides == "":
		return ""
	case mode != ModeXDPUntagged:
		return l.Tags.Hides
	case len(l.VLANs) > 0:
		return "no XDP: frames come with VLAN tags, which XDP does not see: VLAN devices stand on it: " + strings.Join(l.VLANs, ", ")
	}
	return ""
}

// StripsTags reports whether the device takes VLAN tags out of frames before XDP sees them, though it
// need not: Attach makes it stop.
func (l Link) StripsTags() bool { return len(l.Tags.Strips) > 0 }

// linkOf looks at one device as Links does, without addresses.
func linkOf(dev netlink.Link) (Link, error) {
	devices, err := retryDump(netlink.LinkList)
	if err != nil {
		return Link{}, fmt.Errorf("list interfaces: %w", err)
	}
	return newLink(dev, devices, nil, nil)
}

// keepTags makes a NIC leave VLAN tags in frames, and remembers what it has switched off by names of
// directories. The reason says why XDP must not run all the same.
func (d *Datapath) keepTags(dev netlink.Link, l Link) (reason string, err error) {
	if !l.StripsTags() {
		return "", nil
	}
	if err := fault("switch rxvlan off"); err != nil {
		return "", err
	}
	// Written first: a device that strips tags again after a crash is told to, and needs no telling.
	path := pins(d.dir).linkPin(kindTags, dev.Attrs().Index)
	for _, name := range l.Tags.Strips {
		if err := os.MkdirAll(filepath.Join(path, name), 0o700); err != nil {
			return "", fmt.Errorf("pin offload: %w", err)
		}
	}
	const still = "no XDP: the device takes VLAN tags off frames before XDP sees them, and goes on when told to stop"
	if err := setOffloads(dev, l.Tags.Strips, false); err != nil {
		return still + ": " + err.Error(), nil
	}
	now, err := readTagVisibility(dev)
	if err != nil {
		return "", err
	}
	if len(now.Strips) > 0 || now.Hides != "" {
		return still, nil
	}
	return "", nil
}

// restoreTagOffloads has a NIC strip tags again that did so before keepTags, and forgets it. A device that is
// gone or elsewhere is out of reach.
func restoreTagOffloads(ifindex int, path string) error {
	entries, err := os.ReadDir(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list offloads: %w", err)
	}
	var features []string
	for _, entry := range entries {
		if slices.Contains(tagFeatures, entry.Name()) {
			features = append(features, entry.Name())
		}
	}
	dev, err := netlink.LinkByIndex(ifindex)
	if err == nil {
		err = setOffloads(dev, features, true)
	}
	if err != nil && !errors.As(err, &netlink.LinkNotFoundError{}) && !isGone(err) {
		return fmt.Errorf("switch %s on again: %w", strings.Join(features, ", "), err)
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("unpin offloads: %w", err)
	}
	return nil
}
