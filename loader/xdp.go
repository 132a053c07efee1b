// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// xdpPlan is what is to become of XDP on an interface.
type xdpPlan struct {
	native  bool
	generic bool  // if native XDP fails
	old     *hook // ours, dead or alive; nil if there is none
	alive   bool
	mode    string // what the old one runs as
	link    Link
	reason  string // why there must be no XDP, or no native one
}

// prepareXDP decides without changing anything, and refuses an interface where it must not attach.
func (d *Datapath) prepareXDP(dev netlink.Link, mode Mode) (xdpPlan, error) {
	var plan xdpPlan
	switch mode {
	case ModeXDP, ModeXDPUntagged:
		plan.native, plan.generic = true, true
	case ModeAuto:
		plan.native = isPhysical(dev.Attrs())
	}
	var err error
	if plan.link, err = linkOf(dev); err != nil {
		return xdpPlan{}, err
	}
	if plan.reason = plan.link.NoXDP(mode); plan.reason != "" {
		plan.native, plan.generic = false, false
	}
	// Asked first, so as not to touch a NIC's offloads in vain, which resets some.
	if plan.native && !plan.generic && plan.link.StripsTags() {
		features, err := xdpFeatures([]netlink.Link{dev})
		if err != nil {
			return xdpPlan{}, err
		}
		if bits, known := features[dev.Attrs().Index]; known && bits&featureBasic == 0 {
			plan.native, plan.reason = false, nativeReason(unix.EOPNOTSUPP)
		}
	}

	if plan.old, err = pins(d.dir).hook(kindXDP, dev.Attrs().Index); err != nil {
		return xdpPlan{}, err
	}
	if plan.old != nil {
		running, err := plan.old.running(dev)
		if err != nil {
			plan.old.Close()
			return xdpPlan{}, err
		}
		plan.alive, plan.mode = running != 0, xdpMode(dev)
	}
	if xdp := dev.Attrs().Xdp; plan.native && !plan.alive && xdp != nil && xdp.Attached {
		plan.old.Close()
		return xdpPlan{}, foreignXDP(xdp.ProgId)
	}
	return plan, nil
}

func foreignXDP(id uint32) error {
	what := "another XDP program"
	if id != 0 {
		what = fmt.Sprintf("another XDP program (id %d)", id)
	}
	return fmt.Errorf("%s is attached, and an interface takes one only: detach that one, or use mode tc", what)
}

// attachXDP carries the plan out. The reason says why XDP is less than the mode allows.
func (d *Datapath) attachXDP(dev netlink.Link, plan xdpPlan, programs *bpf.HairpinPrograms) (mode, reason string, err error) {
	if plan.old != nil && (!plan.alive || !plan.keeps()) {
		if err := plan.old.remove(); err != nil {
			return "", "", err
		}
		plan.alive = false
	}
	// Without XDP, for whatever reason, the NIC does as it did before.
	defer func() {
		if mode == "" {
			err = errors.Join(err, d.removeHook(kindTags, dev.Attrs().Index))
		}
	}()
	if !plan.native {
		return "", plan.reason, nil
	}
	reason, err = d.keepTags(dev, plan.link)
	if err != nil {
		return plan.mode, "", err
	}
	if reason != "" && plan.alive {
		err = plan.old.remove()
	}
	if reason != "" {
		return "", reason, err
	}
	if plan.alive {
		return plan.mode, "", update(plan.old, dev, programs.HairpinXdp)
	}
	var l link.Link
	mode, reason, l, err = runXDP(dev, plan, programs)
	if l == nil || err != nil {
		return "", reason, err
	}
	if err := d.pinLink(l, kindXDP, dev.Attrs().Index); err != nil {
		return "", "", err
	}
	return mode, reason, nil
}

// runXDP attaches XDP as well as the driver can; it returns no link if that is not at all.
func runXDP(dev netlink.Link, plan xdpPlan, programs *bpf.HairpinPrograms) (mode, reason string, l link.Link, err error) {
	mode = XDPNative
	l, err = newXDP(dev, link.XDPDriverMode, programs.HairpinXdp)
	if isRefusal(err) {
		reason = nativeReason(err)
		if !plan.generic {
			return "", reason, nil, nil
		}
		mode = XDPGeneric
		l, err = newXDP(dev, link.XDPGenericMode, programs.HairpinXdp)
	}
	if err != nil {
		return "", "", nil, err
	}
	return mode, reason, l, nil
}

// keeps reports whether the XDP link that runs is one the mode may have.
func (p xdpPlan) keeps() bool {
	return p.native && (p.mode == XDPNative || p.generic)
}

// update gives an attached link the program, unless it has it.
func update(h *hook, dev netlink.Link, program *ebpf.Program) error {
	running, err := h.running(dev)
	if err != nil {
		return err
	}
	want, err := programID(program)
	if err != nil || running == want {
		return err
	}
	if err := h.link.Update(program); err != nil {
		return fmt.Errorf("update %s: %w", h, err)
	}
	return nil
}

func newXDP(dev netlink.Link, flags link.XDPAttachFlags, program *ebpf.Program) (link.Link, error) {
	if err := fault("attach xdp"); err != nil {
		return nil, err
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: program, Interface: dev.Attrs().Index, Flags: flags})
	if errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST) {
		return nil, errors.Join(foreignXDP(0), err)
	}
	if err != nil {
		return nil, fmt.Errorf("attach XDP: %w", err)
	}
	return l, nil
}

// pinLink pins a fresh link; it takes the program off again if it cannot.
func (d *Datapath) pinLink(l link.Link, kind string, ifindex int) error {
	// Without a pin the program goes with this descriptor.
	defer l.Close()
	if err := fault("pin link"); err != nil {
		return errors.Join(err, l.Detach())
	}
	if err := l.Pin(pins(d.dir).linkPin(kind, ifindex)); err != nil {
		return errors.Join(fmt.Errorf("pin %s link: %w", kind, err), l.Detach())
	}
	return nil
}

// isRefusal tells whether it is the driver that will not have the program: then generic XDP, or none,
// is the answer.
func isRefusal(err error) bool {
	var errno unix.Errno
	if !errors.As(err, &errno) {
		return errors.Is(err, ebpf.ErrNotSupported)
	}
	switch errno {
	case unix.EBUSY, unix.EEXIST, unix.EPERM, unix.EACCES, unix.ENODEV:
		return false
	}
	return true
}

// nativeReason puts in words why a driver refused; the kernel gives a bpf link no text.
func nativeReason(err error) string {
	switch {
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, ebpf.ErrNotSupported):
		return "no native XDP: the driver has none, or not with its offloads (LRO, GRO_HW) as they are"
	case errors.Is(err, unix.ERANGE):
		return "no native XDP: the MTU is too large for the driver"
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.ENOSPC):
		return "no native XDP: the driver has too few queues or too little memory"
	}
	return "no native XDP: " + err.Error()
}

// isPhysical tells NICs from devices made of software: those have a kind, or no device behind them.
func isPhysical(attrs *netlink.LinkAttrs) bool {
	return attrs.ParentDev != "" && attrs.ParentDevBus != ""
}

// xdpMode names the mode of the XDP program on a device.
func xdpMode(dev netlink.Link) string {
	xdp := dev.Attrs().Xdp
	switch {
	case xdp == nil || !xdp.Attached:
		return ""
	case xdp.AttachMode == nl.XDP_ATTACHED_SKB:
		return XDPGeneric
	}
	return XDPNative
}

// runningXDP returns the program that l runs on dev, 0 if it is not there. The device is asked as
// well as the link: an interface in another network namespace may have the same index.
func runningXDP(l link.Link, dev netlink.Link) (ebpf.ProgramID, error) {
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("look at XDP link: %w", err)
	}
	on := info.XDP()
	xdp := dev.Attrs().Xdp
	if on == nil || int(on.Ifindex) != dev.Attrs().Index || xdp == nil || xdp.ProgId != uint32(info.Program) {
		return 0, nil
	}
	return info.Program, nil
}
