// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

// programs returns the number of programs on an interface.
func (h hooks) programs() int {
	count := len(h.TCX) + len(h.Filters)
	if h.XDP != 0 {
		count++
	}
	return count
}

// move moves an interface to another host and keeps its name.
func (r *router) move(dev string, to *lab.Host) {
	r.t.Helper()
	there := -1
	err := to.Do(func() (err error) {
		there, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	if err != nil {
		r.t.Fatal(err)
	}
	defer unix.Close(there)
	r.do("move "+dev, func() error {
		device, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return netlink.LinkSetNsFd(device, there)
	})
}

// TestInterfaceMovesAway: an interface that moves to another network namespace keeps its programs, and
// usually its index. Detach removes the programs there. A new interface with this index can be attached.
func TestInterfaceMovesAway(t *testing.T) {
	for name, leave := range map[string]func(r *router, d *Datapath, index int){
		"detached": func(r *router, d *Datapath, index int) {
			r.do("detach", func() error { return d.Detach(index) })
		},
		"its index is used again": func(r *router, d *Datapath, index int) {
			r.do("make it again", func() error {
				return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "wan0", Index: index}, PeerName: "wan2"})
			})
			if a := r.attach(d, "wan0", ModeXDPUntagged); a.Index != index || a.XDP != XDPNative || a.TC != TCX {
				r.t.Errorf("attached: %+v", a)
			}
			if n := r.hooks("wan0").programs(); n != 2 {
				r.t.Errorf("the new interface has %d programs", n)
			}
			if list := r.attachments(d); len(list) != 1 {
				r.t.Errorf("attached: %+v", list)
			}
		},
		"everything is removed": func(r *router, _ *Datapath, _ int) { r.remove() },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRouter(t)
			there := &router{Host: lab.NewHost(t, "elsewhere"), t: t}
			d := r.load(Options{})
			index := r.attach(d, "wan0", ModeXDPUntagged).Index

			r.move("wan0", there.Host)
			if list := r.attachments(d); len(list) != 0 {
				t.Errorf("attached in this namespace: %+v", list)
			}
			if err := r.upgrade(d); err != nil {
				t.Error("upgrade:", err)
			}
			if n := there.hooks("wan0").programs(); n != 2 {
				t.Errorf("%d programs on the interface that went, want 2", n)
			}
			leave(r, d, index)
			if n := there.hooks("wan0").programs(); n != 0 {
				t.Errorf("%d programs left on the interface that went", n)
			}
		})
	}
}

// TestGenericXDP: the driver of a bridge has no native XDP.
func TestGenericXDP(t *testing.T) {
	r := newRouter(t)
	d := r.load(Options{})
	r.Bridge("br0")
	a := r.attach(d, "br0", ModeXDPUntagged)
	if a.XDP != XDPGeneric || a.TC != TCX || a.Reason == "" {
		t.Errorf("attached: %+v", a)
	}
	if list := r.attachments(d); len(list) != 1 || list[0].XDP != XDPGeneric || list[0].Reason != a.Reason {
		t.Errorf("attachments: %+v", list)
	}
	if again := r.attach(d, "br0", ModeXDPUntagged); again.XDP != XDPGeneric || again.Reason != a.Reason {
		t.Errorf("attached again: %+v", again)
	}
	if a := r.attach(d, "br0", ModeAuto); a.XDP != "" {
		t.Errorf("in mode auto: %+v", a)
	}
	if list := r.attachments(d); len(list) != 1 || list[0].Reason != "" {
		t.Errorf("attachments in mode auto: %+v, want no reason: the mode does not ask for XDP", list)
	}
	if n := r.hooks("br0").programs(); n != 1 {
		t.Errorf("%d programs, want TC alone", n)
	}
}

// TestPhysicalDevices: mode auto uses native XDP only on NICs.
func TestPhysicalDevices(t *testing.T) {
	for _, c := range []struct {
		name  string
		attrs netlink.LinkAttrs
		want  bool
	}{
		{"PCI", netlink.LinkAttrs{ParentDev: "0000:00:03.0", ParentDevBus: "pci"}, true},
		{"virtio", netlink.LinkAttrs{ParentDev: "virtio0", ParentDevBus: "virtio"}, true},
		{"veth, bridge, tun", netlink.LinkAttrs{}, false},
	} {
		if got := isPhysical(&c.attrs); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}
