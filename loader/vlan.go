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

// A VLAN tag may travel in skb->vlan_tci instead of in the frame. TC sees this tag, XDP does not: XDP would
// take the frame for an untagged frame. Three kinds of devices move the tag out of the frame:
//
//   - A NIC, by an offload that can usually be switched off (ethtool -K DEV rxvlan off). Without the offload
//     native XDP sees the tag, and so does generic XDP: __netif_receive_skb_core runs generic XDP before
//     skb_vlan_untag.
//   - A veth, because the sender never puts the tag into the frame. A veth has the offload for
//     transmission, so a VLAN interface or a bridge on the peer leaves the tag in the skb.
//     veth_xdp_rcv_skb shows the program only the frame. rxvlan of the receiver changes nothing, and the
//     peer is often in another network namespace.
//   - A device on top of another device. A bridge, a bond and a macvlan get skbs whose tag is already removed.
//
// A tap device gets whole frames from user space.

// tagFeatures are the NIC offloads that remove tags from frames.
var tagFeatures = []string{"rx-vlan-hw-parse", "rx-vlan-stag-hw-parse"}

// isHardware reports whether a device is a NIC that receives frames from a wire. Tests replace it. A DSA
// port also has a parent device, but its type is not "device".
var isHardware = func(dev netlink.Link) bool { return isPhysical(dev.Attrs()) && dev.Type() == "device" }

// TagVisibility says whether XDP sees VLAN tags on a device.
type TagVisibility struct {
	Strips []string // active offloads of the NIC that remove tags from frames, and can be switched off
	Hides  string   // why XDP cannot see tags, whatever hairpin does; "" if XDP can see them
}

func readTagVisibility(dev netlink.Link) (TagVisibility, error) {
	if dev.Type() == "tuntap" {
		return TagVisibility{}, nil
	}
	if !isHardware(dev) {
		return TagVisibility{Hides: fmt.Sprintf("no XDP: on a %s device VLAN tags may travel outside the frame, where XDP does not see them", dev.Type())}, nil
	}
	features, err := tagOffloads(dev)
	return tagVisibilityOf(features), err
}

// tagVisibilityOf returns the TagVisibility of a NIC with offloads in these states.
func tagVisibilityOf(features map[string]ethtool.FeatureState) (sight TagVisibility) {
	for _, name := range tagFeatures {
		switch state := features[name]; {
		case !state.Active:
		case !state.Available || state.NeverChanged:
			sight.Hides = fmt.Sprintf("no XDP: the device removes VLAN tags from frames before XDP sees them, and %s cannot be switched off", name)
		default:
			sight.Strips = append(sight.Strips, name)
		}
	}
	return sight
}

// tagOffloads returns the state of the device's features, nil if the device is gone.
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

// vlansOn returns the names of the VLAN interfaces on a device.
func vlansOn(dev netlink.Link, devices []netlink.Link) (names []string) {
	for _, other := range devices {
		if attrs := other.Attrs(); other.Type() == "vlan" && attrs.ParentIndex == dev.Attrs().Index && attrs.NetNsID < 0 {
			names = append(names, attrs.Name)
		}
	}
	return names
}

// NoXDP returns the reason why the link gets no XDP in this mode because XDP would not see VLAN tags. It
// returns "" if there is no such reason, or if the mode does not use XDP on this link.
func (l Link) NoXDP(mode Mode) string {
	switch {
	case mode == ModeTC || mode == ModeAuto && !l.Physical || l.Bare || l.Loopback || l.Tags.Hides == "":
		return ""
	case mode != ModeXDPUntagged:
		return l.Tags.Hides
	case len(l.VLANs) > 0:
		return "no XDP: XDP does not see VLAN tags on this device, and it has VLAN interfaces: " + strings.Join(l.VLANs, ", ")
	}
	return ""
}

// StripsTags reports whether the device removes VLAN tags from frames before XDP sees them. Attach switches
// this offload off.
func (l Link) StripsTags() bool { return len(l.Tags.Strips) > 0 }

// linkOf returns the Link of one device, without addresses.
func linkOf(dev netlink.Link) (Link, error) {
	devices, err := retryDump(netlink.LinkList)
	if err != nil {
		return Link{}, fmt.Errorf("list interfaces: %w", err)
	}
	return newLink(dev, devices, nil, nil)
}

// keepTags switches off the offloads of a NIC that remove VLAN tags from frames. It records their names as
// directories in the pin. reason says why XDP must not run although the offloads should be off.
func (d *Datapath) keepTags(dev netlink.Link, l Link) (reason string, err error) {
	if !l.StripsTags() {
		return "", nil
	}
	if err := fault("switch rxvlan off"); err != nil {
		return "", err
	}
	// Record the names first: after a crash, Detach then switches the offloads on, even if they were not
	// off.
	path := pins(d.dir).linkPin(kindTags, dev.Attrs().Index)
	for _, name := range l.Tags.Strips {
		if err := os.MkdirAll(filepath.Join(path, name), 0o700); err != nil {
			return "", fmt.Errorf("pin offload: %w", err)
		}
	}
	const still = "no XDP: the device removes VLAN tags from frames before XDP sees them, and this cannot be switched off"
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

// restoreTagOffloads switches the offloads on that keepTags switched off, and removes the record. It only
// removes the record if the device is gone or in another network namespace.
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
