// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// xdpPlan is the plan for XDP on one interface.
type xdpPlan struct {
	native  bool
	generic bool  // use generic XDP if native XDP fails
	old     *hook // hairpin's present link, dead or alive; nil if there is none
	alive   bool
	mode    string // mode of the present program: "", XDPNative or XDPGeneric
	link    Link
	reason  string     // why there must be no XDP, or no native XDP
	refused unix.Errno // the driver's error for native XDP; 0: it gave none
}

// prepareXDP makes the plan and changes nothing. It fails if hairpin must not attach to the interface.
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
	// Read the features first: changing offloads resets some NICs, and a driver without native XDP does not
	// need the change.
	if plan.native && !plan.generic && plan.link.StripsTags() {
		features, err := xdpFeatures([]netlink.Link{dev})
		if err != nil {
			return xdpPlan{}, err
		}
		if bits, known := features[dev.Attrs().Index]; known && bits&featureBasic == 0 {
			plan.native, plan.refused, plan.reason = false, unix.EOPNOTSUPP, nativeReason(unix.EOPNOTSUPP)
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
	return fmt.Errorf("%s is attached, and an interface can have only one; detach the other program, or use mode tc", what)
}

// attachXDP executes the plan. It returns the mode, and the reason why XDP is less than the mode allows.
func (d *Datapath) attachXDP(dev netlink.Link, plan xdpPlan, programs *bpf.HairpinPrograms) (mode, reason string, err error) {
	if plan.old != nil && (!plan.alive || !plan.keeps()) {
		if err := plan.old.remove(); err != nil {
			return "", "", err
		}
		plan.alive = false
	}
	// Without XDP the NIC may remove VLAN tags again, as before.
	defer func() {
		if mode == "" {
			err = errors.Join(err, d.removeHook(kindTags, dev.Attrs().Index))
		}
	}()
	if !plan.native {
		return "", plan.reason, d.noteRefusal(dev.Attrs().Index, plan.refused)
	}
	reason, err = d.keepTags(dev, plan.link)
	if err != nil {
		return plan.mode, "", err
	}
	if reason != "" && plan.alive {
		err = plan.old.remove()
	}
	if reason != "" {
		return "", reason, errors.Join(err, d.noteRefusal(dev.Attrs().Index, 0))
	}
	if plan.alive {
		return plan.mode, d.refusal(dev.Attrs().Index), update(plan.old, dev, programs.HairpinXdp)
	}
	var l link.Link
	mode, reason, l, err = runXDP(dev, &plan, programs)
	if err != nil {
		return "", "", err
	}
	err = d.noteRefusal(dev.Attrs().Index, plan.refused)
	if err != nil && l != nil {
		err = errors.Join(err, l.Close()) // without a pin, this detaches the program
	}
	if l == nil || err != nil {
		return "", reason, err
	}
	if err := d.pinLink(l, kindXDP, dev.Attrs().Index); err != nil {
		return "", "", err
	}
	return mode, reason, nil
}

// runXDP attaches native XDP, or generic XDP if the driver refuses and the plan allows it. The link is nil
// if there is no XDP; reason says why, and plan.refused is the driver's error.
func runXDP(dev netlink.Link, plan *xdpPlan, programs *bpf.HairpinPrograms) (mode, reason string, l link.Link, err error) {
	mode = XDPNative
	l, err = newXDP(dev, link.XDPDriverMode, programs.HairpinXdp)
	if isRefusal(err) {
		plan.refused = refusal(err)
		reason = nativeReason(plan.refused)
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

// keeps reports whether the plan allows the mode of the running XDP link.
func (p xdpPlan) keeps() bool {
	return p.native && (p.mode == XDPNative || p.generic)
}

// update gives an attached link this program, unless the link already runs it.
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

// pinLink pins a new link. On an error it detaches the program.
func (d *Datapath) pinLink(l link.Link, kind string, ifindex int) error {
	// Without a pin, closing this descriptor detaches the program.
	defer l.Close()
	if err := fault("pin link"); err != nil {
		return errors.Join(err, l.Detach())
	}
	if err := l.Pin(pins(d.dir).linkPin(kind, ifindex)); err != nil {
		return errors.Join(fmt.Errorf("pin %s link: %w", kind, err), l.Detach())
	}
	return nil
}

// isRefusal reports whether the driver refuses the program. Then generic XDP, or no XDP, is used instead.
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

// refusal returns the error number of a refusal. The library's error for what it does not support may have none.
func refusal(err error) unix.Errno {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return unix.EOPNOTSUPP
}

// nativeReason explains why a driver refused native XDP. The kernel gives no text: a BPF link has no
// extack.
func nativeReason(err unix.Errno) string {
	switch err {
	case unix.EOPNOTSUPP:
		return "no native XDP: the driver does not support it, or not with its present offloads (LRO, GRO_HW)"
	case unix.ERANGE:
		return "no native XDP: the MTU is too large for the driver"
	case unix.EINVAL:
		return "no native XDP: the driver refuses the program; perhaps the MTU is too large for the driver"
	case unix.ENOMEM, unix.ENOSPC:
		return "no native XDP: the driver has too few queues or too little memory"
	}
	return "no native XDP: " + err.Error()
}

// noteRefusal records the error by which the driver refused native XDP, as the name of a directory in the pin. Without an error it removes
// the record.
func (d *Datapath) noteRefusal(ifindex int, refused unix.Errno) error {
	path := pins(d.dir).linkPin(kindRefusal, ifindex)
	err := os.RemoveAll(path)
	if err == nil && refused != 0 {
		err = os.MkdirAll(filepath.Join(path, strconv.Itoa(int(refused))), 0o700)
	}
	if err != nil {
		return fmt.Errorf("record why there is no native XDP: %w", err)
	}
	return nil
}

// refusal returns why there is no native XDP, by the record; "" if there is no record.
func (d *Datapath) refusal(ifindex int) string {
	entries, err := os.ReadDir(pins(d.dir).linkPin(kindRefusal, ifindex))
	if err != nil || len(entries) != 1 {
		return ""
	}
	number, err := strconv.Atoi(entries[0].Name())
	if err != nil {
		return ""
	}
	return nativeReason(unix.Errno(number))
}

// isPhysical reports whether a device is a NIC: software devices have no parent device.
func isPhysical(attrs *netlink.LinkAttrs) bool {
	return attrs.ParentDev != "" && attrs.ParentDevBus != ""
}

// xdpMode returns the mode of the XDP program on a device, "" if there is no program.
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

// runningXDP returns the ID of the program that l runs on dev, 0 if l is not on dev. It asks the device as
// well as the link, because an interface in another network namespace may have the same index.
func runningXDP(l link.Link, dev netlink.Link) (ebpf.ProgramID, error) {
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("inspect XDP link: %w", err)
	}
	on := info.XDP()
	xdp := dev.Attrs().Xdp
	if on == nil || int(on.Ifindex) != dev.Attrs().Index || xdp == nil || xdp.ProgId != uint32(info.Program) {
		return 0, nil
	}
	return info.Program, nil
}
