// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// elsewhere makes another network namespace; do runs a function in it.
func elsewhere(t *testing.T) (fd int, do func(func() error) error) {
	t.Helper()
	opened := make(chan int)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread is of no more use
		fd := -1
		if unix.Unshare(unix.CLONE_NEWNET) == nil {
			fd, _ = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		opened <- fd
	}()
	if fd = <-opened; fd < 0 {
		t.Fatal("make another network namespace")
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd, func(f func() error) error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread()
			if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
				done <- err
				return
			}
			done <- f()
		}()
		return <-done
	}
}

// programsOn counts the programs on an interface of the namespace of this thread.
func programsOn(name string) (count int, err error) {
	dev, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	if xdp := dev.Attrs().Xdp; xdp != nil && xdp.Attached {
		count++
	}
	attached, err := link.QueryPrograms(link.QueryOptions{Target: dev.Attrs().Index, Attach: ebpf.AttachTCXIngress})
	if err != nil {
		return 0, err
	}
	return count + len(attached.Programs), nil
}

// An interface keeps its programs, and most often its index, when it goes to another network
// namespace. They can be taken off there, and are no reason not to attach to a new one of that index.
func TestInterfaceMovesAway(t *testing.T) {
	for name, leave := range map[string]func(t *testing.T, d *Datapath, index int){
		"detached": func(t *testing.T, d *Datapath, index int) {
			if err := d.Detach(index); err != nil {
				t.Error("detach:", err)
			}
		},
		"its index is used again": func(t *testing.T, d *Datapath, index int) {
			again := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "a", Index: index}, PeerName: "c"}
			if err := netlink.LinkAdd(again); err != nil {
				t.Fatal(err)
			}
			if a := mustAttach(t, d, "a", ModeXDP); a.Index != index || a.XDP != XDPNative || a.TC != TCX {
				t.Errorf("attached: %+v", a)
			}
			if n, err := programsOn("a"); n != 2 || err != nil {
				t.Errorf("the new interface has %d programs (%v)", n, err)
			}
			if list := mustAttachments(t, d); len(list) != 1 {
				t.Errorf("attached: %+v", list)
			}
		},
		"everything is removed": func(t *testing.T, d *Datapath, index int) {
			if err := Remove(d.dir); err != nil {
				t.Error("remove:", err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			newNetNS(t)
			dir := newDir(t)
			index := mustVeth(t, "a", "b")
			d := mustLoad(t, Options{Dir: dir})
			mustAttach(t, d, "a", ModeXDP)

			fd, there := elsewhere(t)
			if err := netlink.LinkSetNsFd(mustLink(t, "a"), fd); err != nil {
				t.Fatal(err)
			}
			if list := mustAttachments(t, d); len(list) != 0 {
				t.Errorf("attached in this namespace: %+v", list)
			}
			if err := d.Upgrade(); err != nil {
				t.Error("upgrade:", err)
			}
			leave(t, d, index)
			left := -1
			err := there(func() (err error) {
				left, err = programsOn("a")
				return err
			})
			if left != 0 || err != nil {
				t.Errorf("%d programs on the interface that went (%v)", left, err)
			}
		})
	}
}

// A bridge's driver has no XDP.
func TestGenericXDP(t *testing.T) {
	newNetNS(t)
	d := mustLoad(t, Options{Dir: newDir(t)})
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	a := mustAttach(t, d, "br", ModeXDP)
	if a.XDP != XDPGeneric || a.TC != TCX || a.Reason == "" {
		t.Errorf("attached: %+v", a)
	}
	if list := mustAttachments(t, d); len(list) != 1 || list[0].XDP != XDPGeneric {
		t.Errorf("attachments: %+v", list)
	}
	if a := mustAttach(t, d, "br", ModeXDP); a.XDP != XDPGeneric {
		t.Errorf("attached again: %+v", a)
	}
	if a := mustAttach(t, d, "br", ModeAuto); a.XDP != "" {
		t.Errorf("in mode auto: %+v", a)
	}
	if n, err := programsOn("br"); n != 1 || err != nil {
		t.Errorf("%d programs (%v), want TC alone", n, err)
	}
}

// Native XDP comes by itself to NICs only.
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
