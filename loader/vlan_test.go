// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"maps"
	"strings"
	"testing"

	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
)

// nics makes veths count as NICs: they have the offloads, which do nothing, and native XDP.
func nics(t *testing.T) {
	before := isHardware
	isHardware = func(dev netlink.Link) bool { return dev.Type() == "veth" }
	t.Cleanup(func() { isHardware = before })
}

// offloads returns the offloads in tagFeatures that are on.
func (r *router) offloads(dev string) map[string]bool {
	r.t.Helper()
	on := make(map[string]bool)
	r.do("read offloads", func() error {
		device, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		features, err := tagOffloads(device)
		for _, name := range tagFeatures {
			on[name] = features[name].Active
		}
		return err
	})
	return on
}

func (r *router) setOffloads(dev string, on bool, features ...string) {
	r.t.Helper()
	r.do("set offloads", func() error {
		device, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return setOffloads(device, features, on)
	})
}

func (r *router) wantOffloads(when, dev string, want map[string]bool) {
	r.t.Helper()
	if got := r.offloads(dev); !maps.Equal(got, want) {
		r.t.Errorf("%s: offloads %v, want %v", when, got, want)
	}
}

// TestXDPHasTagsKept: while XDP runs on a NIC, VLAN tags stay in frames; after Detach the offload is as
// before.
func TestXDPHasTagsKept(t *testing.T) {
	nics(t)
	off := map[string]bool{tagFeatures[0]: false, tagFeatures[1]: false}
	for name, before := range map[string]map[string]bool{
		"both are on":  {tagFeatures[0]: true, tagFeatures[1]: true},
		"one is on":    {tagFeatures[0]: true, tagFeatures[1]: false},
		"both are off": off,
	} {
		t.Run(name, func(t *testing.T) {
			r := newRouter(t)
			for feature, on := range before {
				r.setOffloads("wan0", on, feature)
			}
			r.wantOffloads("before", "wan0", before)
			d := r.load(Options{})
			kept := before[tagFeatures[0]]
			step := func(when string, mode Mode, xdp string) {
				t.Helper()
				a := r.attach(d, "wan0", mode)
				if a.XDP != xdp || a.TagsKept != (kept && xdp != "") {
					t.Errorf("%s: attached %+v", when, a)
				}
				if list := r.attachments(d); len(list) != 1 || list[0] != a {
					t.Errorf("%s: attachments %+v, want %+v", when, list, a)
				}
			}
			step("attached", ModeXDP, XDPNative)
			r.wantOffloads("attached", "wan0", off)
			step("attached twice", ModeXDP, XDPNative)
			if kept {
				r.setOffloads("wan0", true, tagFeatures[0])
				step("switched on meanwhile", ModeXDP, XDPNative)
			}
			r.wantOffloads("attached again", "wan0", off)
			if err := r.upgrade(d); err != nil {
				t.Error(err)
			}
			r.wantOffloads("upgraded", "wan0", off)
			step("TC alone", ModeTC, "")
			r.wantOffloads("TC alone", "wan0", before)

			r.attach(d, "wan0", ModeXDP)
			r.detach(d, "wan0")
			r.wantOffloads("detached", "wan0", before)
			r.attach(d, "wan0", ModeXDP)
			r.remove()
			r.wantOffloads("removed", "wan0", before)
		})
	}
}

// TestTagsAreKeptOrNothingChanges: a failed attachment leaves the offloads as they were.
func TestTagsAreKeptOrNothingChanges(t *testing.T) {
	nics(t)
	r := newRouter(t)
	d := r.load(Options{})
	before := r.offloads("wan0")
	if !before[tagFeatures[0]] {
		t.Fatalf("offloads %v: a veth has them on", before)
	}
	attempt := func() error {
		_, err := r.tryAttach(d, "wan0", ModeXDP)
		return err
	}
	eachFault(t, attempt, func(step string) { r.wantOffloads(step+" failed", "wan0", before) })
}

// TestXDPIsNotWhereTagsAreHidden: on a veth, tags travel outside the frame whatever the offloads are. So a
// veth gets TC alone, except in mode xdp-untagged.
func TestXDPIsNotWhereTagsAreHidden(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{})
	before := r.offloads("wan0")
	r.attach(d, "wan0", ModeXDPUntagged)
	a := r.attach(d, "wan0", ModeXDP)
	if a.XDP != "" || a.TC != TCX || a.TagsKept || !strings.Contains(a.Reason, "veth") {
		t.Errorf("attached %+v, want TC alone and a reason that names the kind", a)
	}
	r.wantOffloads("attached", "wan0", before)
	if a := r.attach(d, "wan0", ModeAuto); a.Reason != "" {
		t.Errorf("mode auto: reason %q, though it does not ask for XDP", a.Reason)
	}
}

// TestXDPOnATapSeesTags: a tap device gets whole frames, so XDP may run there.
func TestXDPOnATapSeesTags(t *testing.T) {
	r := newRouter(t)
	r.Run("ip", "tuntap", "add", "tap0", "mode", "tap")
	d := r.load(Options{})
	if a := r.attach(d, "tap0", ModeXDP); a.XDP == "" {
		t.Errorf("attached %+v, want XDP", a)
	}
}

func TestNoXDP(t *testing.T) {
	const stripping, fixed = "strips", "fixed"
	on := ethtool.FeatureState{Available: true, Requested: true, Active: true}
	states := map[string]ethtool.FeatureState{
		"off":     {Available: true},
		stripping: on,
		fixed:     {Active: true},
		"never":   {Available: true, Active: true, NeverChanged: true},
	}
	strips := map[string]bool{}
	nic := map[string]Link{}
	for name, state := range states {
		sight := tagVisibilityOf(map[string]ethtool.FeatureState{tagFeatures[1]: state})
		nic[name] = Link{Physical: true, Tags: sight}
		strips[name] = nic[name].StripsTags()
	}
	if !strips[stripping] || strips["off"] || strips[fixed] || strips["never"] {
		t.Errorf("strips Tags: %v", strips)
	}
	hidden := TagVisibility{Hides: "hidden"}
	cases := []struct {
		name   string
		link   Link
		mode   Mode
		reason string // a part of the reason; "" for no reason
	}{
		{"a NIC that strips nothing", nic["off"], ModeXDP, ""},
		{"a NIC that can stop", nic[stripping], ModeAuto, ""},
		{"a NIC that cannot stop", nic[fixed], ModeAuto, "cannot be switched off"},
		{"a NIC that never stops", nic["never"], ModeXDP, "cannot be switched off"},
		{"where no tags come", nic[fixed], ModeXDPUntagged, ""},
		{"TC alone", nic[fixed], ModeTC, ""},
		{"software", Link{Tags: hidden}, ModeXDP, "hidden"},
		{"software, which auto leaves to TC", Link{Tags: hidden}, ModeAuto, ""},
		{"software where no tags come", Link{Tags: hidden}, ModeXDPUntagged, ""},
		{"software with VLANs", Link{Tags: hidden, VLANs: []string{"eth0.5", "eth0.6"}}, ModeXDPUntagged, "eth0.5, eth0.6"},
		{"a NIC with VLANs", Link{Physical: true, VLANs: []string{"eth0.5"}}, ModeXDP, ""},
		{"bare packets", Link{Bare: true, Tags: hidden}, ModeXDP, ""},
		{"the loopback device", Link{Loopback: true, Tags: hidden}, ModeXDP, ""},
	}
	for _, c := range cases {
		if got := c.link.NoXDP(c.mode); (got == "") != (c.reason == "") || !strings.Contains(got, c.reason) {
			t.Errorf("%s, mode %s: %q, want %q", c.name, c.mode, got, c.reason)
		}
	}
}

// TestVLANsOn: a VLAN interface counts only for the device that it is on.
func TestVLANsOn(t *testing.T) {
	vlan := func(name string, parent, netns int) netlink.Link {
		return &netlink.Vlan{LinkAttrs: netlink.LinkAttrs{Name: name, ParentIndex: parent, NetNsID: netns}}
	}
	below := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 4}}
	devices := []netlink.Link{below, vlan("a.1", 4, -1), vlan("b.1", 5, -1), vlan("c.1", 4, 7),
		&netlink.Macvlan{LinkAttrs: netlink.LinkAttrs{Name: "m", ParentIndex: 4, NetNsID: -1}}}
	if got := strings.Join(vlansOn(below, devices), " "); got != "a.1" {
		t.Errorf("VLAN devices %q, want a.1", got)
	}
}
