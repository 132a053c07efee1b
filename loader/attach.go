// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// Mode selects the hooks of an interface. The TC program handles every packet on every kind of device. XDP
// does the same work earlier in the receive path, so it is faster.
type Mode string

const (
	// ModeAuto is native XDP and TC on a physical NIC whose driver has native XDP, otherwise TC alone.
	ModeAuto Mode = "auto"
	// ModeXDP is XDP and TC: native XDP, or generic XDP if the driver has no native XDP. It is TC alone on
	// devices where XDP may not see VLAN tags: software devices except tap, and NICs that cannot stop
	// removing tags from frames.
	ModeXDP Mode = "xdp"
	// ModeXDPUntagged uses XDP on these devices, too. Who sets it guarantees that no frame has a VLAN tag.
	// It is TC alone if VLAN interfaces exist on the device.
	ModeXDPUntagged Mode = "xdp-untagged"
	// ModeTC is TC alone.
	ModeTC Mode = "tc"
)

// Values of Attachment.XDP and Attachment.TC.
const (
	XDPNative  = "native"
	XDPGeneric = "generic"
	TCX        = "tcx"
	TCClsact   = "clsact"
)

// Hooks are the hooks that an interface should get.
type Hooks struct {
	Mode Mode
	// Guard adds the leak guard, which checks the packets that leave by the interface. Only WANs need the
	// guard.
	Guard bool
}

// Attachment describes the programs that run on an interface.
type Attachment struct {
	Interface string
	Index     int
	XDP       string // "", XDPNative or XDPGeneric
	TC        string // "", TCX or TCClsact
	Guard     bool   // the leak guard runs; TC says how it is attached
	// TagsKept reports whether hairpin switched off rxvlan, so that the NIC leaves VLAN tags in frames and
	// XDP sees them. Detach switches rxvlan on again.
	TagsKept bool
	// Reason says why XDP is less than the mode allows. Attachments sets it only if the driver refused.
	Reason string
}

// Kinds of attachment: the first part of a pin's name.
const (
	kindXDP         = "xdp"
	kindTCX         = "tcx"
	kindClsact      = "clsact"
	kindGuardTCX    = "guard-tcx"
	kindGuardClsact = "guard-clsact"
	// kindTags is not a program: its pin records which offloads of a NIC hairpin switched off for XDP.
	kindTags = "rxvlan"
	// kindRefusal is not a program: its pin records the error by which the driver refused native XDP.
	kindRefusal = "refusal"
)

// kinds lists the kinds in the order of detaching. XDP goes first, because TC alone can still handle every
// packet. Tags go after XDP: without XDP the NIC may remove VLAN tags from frames again. kindClsact goes
// last, because removing the ingress filter also removes the qdisc, which the guard's filter needs.
var kinds = []string{kindXDP, kindTags, kindGuardTCX, kindGuardClsact, kindTCX, kindClsact, kindRefusal}

// hook is one place where hairpin has attached a program; the program may be gone.
type hook struct {
	kind    string
	ifindex int
	path    string
	link    link.Link // nil for a filter, for offloads and for a refusal; their pin is a directory
}

// isFilter reports whether the hook is a clsact filter. The kernel has no link for a filter.
func (h *hook) isFilter() bool { return h.kind == kindClsact || h.kind == kindGuardClsact }

// isLink reports whether the hook is a bpf link. A link finds its interface in every network namespace.
func (h *hook) isLink() bool { return !h.isFilter() && !h.isNote() }

// isNote reports whether the hook is no program.
func (h *hook) isNote() bool { return h.kind == kindTags || h.kind == kindRefusal }

func (p pins) linkPin(kind string, ifindex int) string {
	return filepath.Join(p.links(), kind+"_"+strconv.Itoa(ifindex))
}

// hook opens one attachment. It returns nil if the attachment does not exist.
func (p pins) hook(kind string, ifindex int) (*hook, error) {
	h := &hook{kind: kind, ifindex: ifindex, path: p.linkPin(kind, ifindex)}
	if _, err := os.Lstat(h.path); errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if !h.isLink() {
		return h, nil
	}
	var err error
	h.link, err = link.LoadPinnedLink(h.path, nil)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open link %s: %w", h, err)
	}
	return h, nil
}

// hooks opens every attachment, sorted by pin name. On an error it also returns the hooks that it opened.
func (p pins) hooks() ([]*hook, error) {
	entries, err := os.ReadDir(p.links())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	var hooks []*hook
	var errs []error
	for _, entry := range entries {
		kind, number, _ := strings.Cut(entry.Name(), "_")
		ifindex, err := strconv.Atoi(number)
		if err != nil || !slices.Contains(kinds, kind) {
			continue
		}
		h, err := p.hook(kind, ifindex)
		if err != nil {
			errs = append(errs, err)
		}
		if h != nil {
			hooks = append(hooks, h)
		}
	}
	return hooks, errors.Join(errs...)
}

func closeHooks(hooks []*hook) {
	for _, h := range hooks {
		h.Close()
	}
}

func (h *hook) Close() {
	if h != nil && h.link != nil {
		_ = h.link.Close()
	}
}

func (h *hook) String() string {
	return h.kind + "_" + strconv.Itoa(h.ifindex)
}

// running returns the ID of the program that runs at the hook on dev. It returns 0 if the hook is dead: the
// interface was deleted or moved to another network namespace, or a new interface has its index now.
func (h *hook) running(dev netlink.Link) (ebpf.ProgramID, error) {
	switch h.kind {
	case kindXDP:
		return runningXDP(h.link, dev)
	case kindTCX, kindGuardTCX:
		return runningTCX(h.link, dev, sideOf(h.kind).tcx)
	case kindTags, kindRefusal:
		return 0, nil
	}
	filter, err := findFilter(dev.Attrs().Index, sideOf(h.kind))
	if filter == nil || err != nil {
		return 0, err
	}
	return ebpf.ProgramID(filter.Id), nil
}

// replace makes the hook run another program. There is no moment without a program.
func (h *hook) replace(programs *bpf.HairpinPrograms) error {
	if err := fault("replace " + h.kind); err != nil {
		return err
	}
	switch h.kind {
	case kindXDP:
		return h.link.Update(programs.HairpinXdp)
	case kindTCX, kindGuardTCX:
		return h.link.Update(sideOf(h.kind).program(programs))
	}
	side := sideOf(h.kind)
	return replaceFilter(h.ifindex, side, side.program(programs))
}

// remove detaches the program, also in another network namespace, and removes the pin.
func (h *hook) remove() error {
	if h.kind == kindTags {
		return restoreTagOffloads(h.ifindex, h.path)
	}
	if h.kind == kindRefusal {
		return os.RemoveAll(h.path)
	}
	if h.isFilter() {
		return removeFilter(h.ifindex, sideOf(h.kind), h.path)
	}
	detached := h.link.Detach()
	if errors.Is(detached, ebpf.ErrNotSupported) || errors.Is(detached, unix.ENOLINK) {
		// The kernel detaches the link when its pin is removed and this descriptor is closed.
		detached = nil
	}
	if err := os.Remove(h.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(detached, fmt.Errorf("unpin %s: %w", h, err))
	}
	return detached
}

// Attach makes the programs run on an interface: it updates attached programs, or attaches and pins them.
// On devices without a link-layer header, and on the loopback device, it attaches TC alone in every mode.
// It may be called again at any time to change the mode or Guard.
//
// It returns an error wrapping ErrNoInterface if the interface does not exist, and ErrLinkType if the
// programs cannot parse its packets. The error wraps ErrNotLoaded if the datapath was removed since it was
// opened. Attach also fails if another hairpin, with other pins, runs on the interface. After an error the
// interface is as it was before.
func (d *Datapath) Attach(ifname string, want Hooks) (Attachment, error) {
	a, err := d.attach(ifname, want)
	if err != nil {
		return Attachment{}, explain(fmt.Errorf("attach to %s: %w", ifname, err))
	}
	return a, nil
}

func (d *Datapath) attach(ifname string, want Hooks) (Attachment, error) {
	dev, mode, err := d.target(ifname, want)
	if err != nil {
		return Attachment{}, err
	}
	programs, err := d.pinnedPrograms()
	if err != nil {
		return Attachment{}, err
	}
	defer programs.Close()
	if err := d.refuseOthers(dev, programs); err != nil {
		return Attachment{}, err
	}

	x, err := d.prepareXDP(dev, mode)
	if err != nil {
		return Attachment{}, err
	}
	defer x.old.Close()

	// Attach TC first: it can do all the work if XDP fails.
	a := Attachment{Interface: dev.Attrs().Name, Index: dev.Attrs().Index}
	tc, undo, err := d.attachTC(dev, ingress, programs)
	if err != nil {
		return Attachment{}, err
	}
	a.TC = tc
	if want.Guard {
		undoTC, undoGuard := undo, undo
		if _, undoGuard, err = d.attachTC(dev, egress, programs); err != nil {
			return Attachment{}, errors.Join(err, undoTC())
		}
		undo = func() error { return errors.Join(undoGuard(), undoTC()) }
		a.Guard = true
	}
	if a.XDP, a.Reason, err = d.attachXDP(dev, x, programs); err != nil {
		return Attachment{}, errors.Join(err, undo())
	}
	a.TagsKept = d.tagsKept(a.Index)
	// Remove unwanted hooks last: an error in the steps before can be undone, a removed hook cannot.
	for _, kind := range unwantedHooks(tc, want.Guard) {
		if err := d.removeHook(kind, dev.Attrs().Index); err != nil {
			return Attachment{}, err
		}
	}
	return a, d.sweep()
}

// Probe returns the error that Attach would return, and changes nothing. It also finds programs of others
// in the places that hairpin needs. Only Attach finds errors that come from the driver.
func (d *Datapath) Probe(ifname string, want Hooks) error {
	if err := d.probe(ifname, want); err != nil {
		return explain(fmt.Errorf("attach to %s: %w", ifname, err))
	}
	return nil
}

func (d *Datapath) probe(ifname string, want Hooks) error {
	dev, mode, err := d.target(ifname, want)
	if err != nil {
		return err
	}
	programs, err := d.pinnedPrograms()
	if err != nil {
		return err
	}
	defer programs.Close()
	if err := d.refuseOthers(dev, programs); err != nil {
		return err
	}
	x, err := d.prepareXDP(dev, mode)
	if err != nil {
		return err
	}
	x.old.Close()
	if !d.noTCX && haveTCX(dev) {
		return nil
	}
	if err := checkPlace(dev.Attrs().Index, ingress); err != nil || !want.Guard {
		return err
	}
	return checkPlace(dev.Attrs().Index, egress)
}

// haveTCX reports whether the kernel has TCX (Linux 6.6): older kernels refuse the query.
func haveTCX(dev netlink.Link) bool {
	_, err := link.QueryPrograms(link.QueryOptions{Target: dev.Attrs().Index, Attach: ebpf.AttachTCXIngress})
	return err == nil || !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL)
}

// target returns the device to attach to, and the mode that its kind allows.
func (d *Datapath) target(ifname string, want Hooks) (netlink.Link, Mode, error) {
	if !slices.Contains([]Mode{ModeAuto, ModeXDP, ModeXDPUntagged, ModeTC}, want.Mode) {
		return nil, "", fmt.Errorf("unknown mode %q; use auto, xdp, xdp-untagged or tc", want.Mode)
	}
	dev, err := findDevice(ifname)
	if err != nil {
		return nil, "", err
	}
	if hasNoLinkHeader(dev) || loopback(dev) {
		return dev, ModeTC, nil
	}
	return dev, want.Mode, nil
}

// unwantedHooks returns the kinds of TC hooks that must not be on an interface, in the order of detaching.
// tc is the kind that it uses, guard is whether the leak guard runs.
func unwantedHooks(tc string, guard bool) (list []string) {
	for _, side := range []*side{egress, ingress} {
		if tc == TCX || side == egress && !guard {
			list = append(list, side.filterKind)
		}
		if tc == TCClsact || side == egress && !guard {
			list = append(list, side.tcxKind)
		}
	}
	return list
}

// sweep removes the pins of links whose interface was deleted. Such a link never runs again, because a new
// interface of this name gets another index.
func (d *Datapath) sweep() error {
	hooks, err := pins(d.dir).hooks()
	defer closeHooks(hooks)
	if err != nil {
		return err
	}
	for _, h := range hooks {
		// Skip filters and offloads: an interface in another network namespace cannot be told from a
		// deleted interface.
		if !h.isLink() {
			continue
		}
		alive, err := h.alive()
		if err != nil {
			return fmt.Errorf("inspect %s: %w", h, err)
		}
		if alive {
			continue
		}
		if err := h.remove(); err != nil {
			return err
		}
	}
	return nil
}

// findDevice returns the interface with this name. It fails if the programs cannot parse the packets.
func findDevice(ifname string) (netlink.Link, error) {
	if ifname == "" || len(ifname) >= unix.IFNAMSIZ {
		return nil, fmt.Errorf("%w: an interface name has 1 to %d characters", ErrNoInterface, unix.IFNAMSIZ-1)
	}
	dev, err := netlink.LinkByName(ifname)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, ErrNoInterface
	}
	if err != nil {
		return nil, fmt.Errorf("look interface up: %w", err)
	}
	if kind := dev.Attrs().EncapType; kind != "ether" && !hasNoLinkHeader(dev) && !loopback(dev) {
		return nil, fmt.Errorf("%w %s: hairpin handles Ethernet, ppp, wireguard and tun; name another interface",
			ErrLinkType, kind)
	}
	return dev, nil
}

// loopback reports whether the device is lo, which carries the router's packets to itself.
func loopback(dev netlink.Link) bool { return dev.Attrs().RawFlags&unix.IFF_LOOPBACK != 0 }

// hasNoLinkHeader reports whether packets on the device have no link-layer header. ARPHRD_NONE is the type
// of WireGuard and tun. On ARPHRD_PPP the driver adds and removes the PPP header.
func hasNoLinkHeader(dev netlink.Link) bool {
	kind := dev.Attrs().EncapType
	return kind == "none" || kind == "ppp"
}

// pinnedPrograms opens the programs to attach. It opens the pins again, because another process may have
// upgraded the programs since the datapath was opened.
func (d *Datapath) pinnedPrograms() (*bpf.HairpinPrograms, error) {
	if err := d.checkCurrent(); err != nil {
		return nil, err
	}
	programs := new(bpf.HairpinPrograms)
	if err := pins(d.dir).openPrograms(programs); err != nil {
		return nil, errors.Join(err, programs.Close())
	}
	return programs, nil
}

// checkCurrent fails if the pinned datapath is not the datapath that was opened: an administrator may have
// detached everything and started hairpin again.
func (d *Datapath) checkCurrent() error {
	p := pins(d.dir)
	if err := p.check(); err != nil {
		return err
	}
	pinned, err := p.openMap(bpf.HairpinMapSchema)
	if err != nil {
		return err
	}
	defer pinned.Close()
	ours, err := mapID(d.objs.Schema)
	if err != nil {
		return err
	}
	theirs, err := mapID(pinned)
	if err != nil {
		return err
	}
	if ours != theirs {
		return fmt.Errorf("%w: the datapath in %s was removed and created again; open it again", ErrNotLoaded, d.dir)
	}
	return nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("inspect map: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("inspect program: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// Detach removes the programs from an interface. The interface may be deleted, or in another network
// namespace. It is no error if nothing is attached.
func (d *Datapath) Detach(ifindex int) error {
	if err := d.checkCurrent(); err != nil {
		return explain(fmt.Errorf("detach from interface %d: %w", ifindex, err))
	}
	var errs []error
	for _, kind := range kinds {
		if err := d.removeHook(kind, ifindex); err != nil {
			errs = append(errs, fmt.Errorf("detach from interface %d: %w", ifindex, err))
		}
	}
	return explain(errors.Join(errs...))
}

func (d *Datapath) removeHook(kind string, ifindex int) error {
	h, err := pins(d.dir).hook(kind, ifindex)
	if h == nil || err != nil {
		return err
	}
	defer h.Close()
	return h.remove()
}

// Attachments lists the attachments on interfaces of this network namespace, sorted by index.
func (d *Datapath) Attachments() ([]Attachment, error) {
	hooks, err := pins(d.dir).hooks()
	defer closeHooks(hooks)
	if err != nil {
		return nil, explain(err)
	}
	found := make(map[int]*Attachment)
	for _, h := range hooks {
		if err := h.describe(found); err != nil {
			return nil, explain(fmt.Errorf("inspect %s: %w", h, err))
		}
	}
	list := make([]Attachment, 0, len(found))
	for _, a := range found {
		a.TagsKept = d.tagsKept(a.Index)
		if a.XDP != XDPNative {
			a.Reason = d.refusal(a.Index)
		}
		list = append(list, *a)
	}
	slices.SortFunc(list, func(a, b Attachment) int { return a.Index - b.Index })
	return list, nil
}

// tagsKept reports whether offloads of an interface were switched off for XDP.
func (d *Datapath) tagsKept(ifindex int) bool {
	_, err := os.Lstat(pins(d.dir).linkPin(kindTags, ifindex))
	return err == nil
}

// describe adds the hook to the Attachment of its interface in found, if the hook is alive.
func (h *hook) describe(found map[int]*Attachment) error {
	dev, err := netlink.LinkByIndex(h.ifindex)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil
	}
	if err != nil {
		return err
	}
	if id, err := h.running(dev); id == 0 || err != nil {
		return err
	}
	a := found[h.ifindex]
	if a == nil {
		a = &Attachment{Interface: dev.Attrs().Name, Index: h.ifindex}
		found[h.ifindex] = a
	}
	switch h.kind {
	case kindXDP:
		a.XDP = xdpMode(dev)
	case kindTCX:
		a.TC = TCX
	case kindClsact:
		a.TC = TCClsact
	case kindGuardTCX, kindGuardClsact:
		a.Guard = true
	}
	return nil
}
