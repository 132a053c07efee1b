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

// Mode says which hooks an interface gets. The TC program does everything, on every kind of device;
// XDP is the same thing earlier.
type Mode string

const (
	// ModeAuto is native XDP and TC on a physical NIC whose driver has native XDP, else TC alone.
	ModeAuto Mode = "auto"
	// ModeXDP is XDP and TC: native XDP, or generic where the driver has none. It is TC alone where VLAN
	// tags may come beside frames, out of XDP's sight: on devices made of software, but for tap devices.
	ModeXDP Mode = "xdp"
	// ModeXDPUntagged is ModeXDP on those devices, too: whoever sets it vouches that no frame comes with
	// a tag. Where VLAN devices stand on one it is TC alone.
	ModeXDPUntagged Mode = "xdp-untagged"
	// ModeTC is TC alone.
	ModeTC Mode = "tc"
)

// What Attachment says of the hooks.
const (
	XDPNative  = "native"
	XDPGeneric = "generic"
	TCX        = "tcx"
	TCClsact   = "clsact"
)

// Hooks say what an interface is to get.
type Hooks struct {
	Mode Mode
	// Guard adds the leak guard, which looks at what leaves by the interface. It belongs on WANs.
	Guard bool
}

// Attachment is what runs on an interface.
type Attachment struct {
	Interface string
	Index     int
	XDP       string // "", XDPNative or XDPGeneric
	TC        string // "", TCX or TCClsact
	Guard     bool   // the leak guard runs, by what TC does
	// TagsKept says that the NIC was told to leave VLAN tags in frames (rxvlan off), for XDP to see
	// them. Detach takes that back.
	TagsKept bool
	// Reason says why XDP is less than the mode allows, known to Attach alone.
	Reason string
}

// Kinds of attachment, the first half of a pin's name.
const (
	kindXDP         = "xdp"
	kindTCX         = "tcx"
	kindClsact      = "clsact"
	kindGuardTCX    = "guard-tcx"
	kindGuardClsact = "guard-clsact"
	// kindTags is no program: it remembers which offloads of a NIC were switched off for XDP.
	kindTags = "rxvlan"
)

// kinds in the order to detach: XDP first, TC does the rest of the way alone. The filter at ingress
// comes after the guard's: with it goes the qdisc of both. Tags may be taken off frames once XDP is gone.
var kinds = []string{kindXDP, kindTags, kindGuardTCX, kindGuardClsact, kindTCX, kindClsact}

// hook is one place where a program of ours is, or was, attached.
type hook struct {
	kind    string
	ifindex int
	path    string
	link    link.Link // nil for a filter and for offloads, whose pin is a directory
}

// isFilter reports whether the hook is a clsact filter, of which the kernel keeps no link.
func (h *hook) isFilter() bool { return h.kind == kindClsact || h.kind == kindGuardClsact }

// isLink reports whether the kernel keeps a link of the hook, which knows where its interface is.
func (h *hook) isLink() bool { return !h.isFilter() && h.kind != kindTags }

func (p pins) linkPin(kind string, ifindex int) string {
	return filepath.Join(p.links(), kind+"_"+strconv.Itoa(ifindex))
}

// hook opens one attachment; it returns nil if there is none.
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

// hooks opens every attachment, in the order of their names. With an error it returns those that can
// be opened.
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

// running returns the program at the hook, 0 if the hook is dead: its interface was deleted, or went
// to another network namespace, or a new one has the index now.
func (h *hook) running(dev netlink.Link) (ebpf.ProgramID, error) {
	switch h.kind {
	case kindXDP:
		return runningXDP(h.link, dev)
	case kindTCX, kindGuardTCX:
		return runningTCX(h.link, dev, sideOf(h.kind).tcx)
	case kindTags:
		return 0, nil
	}
	filter, err := findFilter(dev.Attrs().Index, sideOf(h.kind))
	if filter == nil || err != nil {
		return 0, err
	}
	return ebpf.ProgramID(filter.Id), nil
}

// replace makes the hook run another program, without a packet that meets none.
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

// remove detaches the program, wherever its interface is now, and forgets it.
func (h *hook) remove() error {
	if h.kind == kindTags {
		return restoreTagOffloads(h.ifindex, h.path)
	}
	if h.isFilter() {
		return removeFilter(h.ifindex, sideOf(h.kind), h.path)
	}
	detached := h.link.Detach()
	if errors.Is(detached, ebpf.ErrNotSupported) || errors.Is(detached, unix.ENOLINK) {
		// Without its pin and this descriptor the link is gone as well.
		detached = nil
	}
	if err := os.Remove(h.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return errors.Join(detached, fmt.Errorf("unpin %s: %w", h, err))
	}
	return detached
}

// Attach makes the programs run on an interface: it updates what is attached already, else attaches
// and pins. Where packets are bare, and on the loopback device, that is TC alone, whatever the mode. It may
// be called again at any time; another mode takes effect then, and so does Guard.
//
// It returns an error wrapping ErrNoInterface if there is no such interface, ErrLinkType if its
// packets are neither Ethernet frames nor bare, and ErrNotLoaded if the datapath was removed since it was opened. It
// fails, too, if another hairpin, with other pins, runs on the interface. If it fails, the interface is as it was.
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

	// TC first: it can do alone what XDP cannot.
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
	// What is not wanted any more last: until here there was a way back.
	for _, kind := range unwantedHooks(tc, want.Guard) {
		if err := d.removeHook(kind, dev.Attrs().Index); err != nil {
			return Attachment{}, err
		}
	}
	return a, d.sweep()
}

// Probe reports, changing nothing, why Attach would refuse: its errors, and programs of others in the places that hairpin's
// need. What only the driver knows shows when Attach is called.
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

// haveTCX reports whether the kernel knows TCX (Linux 6.6): older ones do not know what is asked.
func haveTCX(dev netlink.Link) bool {
	_, err := link.QueryPrograms(link.QueryOptions{Target: dev.Attrs().Index, Attach: ebpf.AttachTCXIngress})
	return err == nil || !errors.Is(err, ebpf.ErrNotSupported) && !errors.Is(err, unix.EINVAL)
}

// target is the device to attach to, and the mode that its kind allows.
func (d *Datapath) target(ifname string, want Hooks) (netlink.Link, Mode, error) {
	if !slices.Contains([]Mode{ModeAuto, ModeXDP, ModeXDPUntagged, ModeTC}, want.Mode) {
		return nil, "", fmt.Errorf("unknown mode %q: auto, xdp, xdp-untagged or tc", want.Mode)
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

// unwantedHooks are the kinds of hooks of TC that an interface does not have besides those it has, in the
// order to detach.
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

// sweep forgets links whose interface is gone: one that is made again gets another index.
func (d *Datapath) sweep() error {
	hooks, err := pins(d.dir).hooks()
	defer closeHooks(hooks)
	if err != nil {
		return err
	}
	for _, h := range hooks {
		// A filter, or a NIC, that is elsewhere looks the same as one that is gone.
		if !h.isLink() {
			continue
		}
		alive, err := h.alive()
		if err != nil {
			return fmt.Errorf("look at %s: %w", h, err)
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

// findDevice looks an interface up by its name.
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
		return nil, fmt.Errorf("%w %s: packets are Ethernet frames, or bare as on ppp, wireguard and tun; name another interface",
			ErrLinkType, kind)
	}
	return dev, nil
}

// loopback reports whether the device is the one that brings the router its own packets.
func loopback(dev netlink.Link) bool { return dev.Attrs().RawFlags&unix.IFF_LOOPBACK != 0 }

// hasNoLinkHeader reports whether the device carries packets without a link-layer header: ARPHRD_NONE, as of
// WireGuard and tun, and ARPHRD_PPP, whose header the driver keeps to itself.
func hasNoLinkHeader(dev netlink.Link) bool {
	kind := dev.Attrs().EncapType
	return kind == "none" || kind == "ppp"
}

// pinnedPrograms opens the programs to attach. They are the pinned ones, not those that were opened
// with the datapath: another process may have upgraded since.
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

// checkCurrent makes sure that what is pinned is what was opened: an administrator may have detached
// everything, and may have started anew.
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
		return fmt.Errorf("%w: the datapath in %s was removed and another one made: open that one", ErrNotLoaded, d.dir)
	}
	return nil
}

func mapID(m *ebpf.Map) (ebpf.MapID, error) {
	info, err := m.Info()
	if err != nil {
		return 0, fmt.Errorf("look at map: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

func programID(p *ebpf.Program) (ebpf.ProgramID, error) {
	info, err := p.Info()
	if err != nil {
		return 0, fmt.Errorf("look at program: %w", err)
	}
	id, _ := info.ID()
	return id, nil
}

// Detach takes the programs off an interface, which may be gone, or in another network namespace, by
// now. It is no error if nothing is attached.
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

// Attachments lists what runs on the interfaces of this network namespace, by index.
func (d *Datapath) Attachments() ([]Attachment, error) {
	hooks, err := pins(d.dir).hooks()
	defer closeHooks(hooks)
	if err != nil {
		return nil, explain(err)
	}
	found := make(map[int]*Attachment)
	for _, h := range hooks {
		if err := h.describe(found); err != nil {
			return nil, explain(fmt.Errorf("look at %s: %w", h, err))
		}
	}
	list := make([]Attachment, 0, len(found))
	for _, a := range found {
		a.TagsKept = d.tagsKept(a.Index)
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

// describe adds a hook that is alive to what is known of its interface.
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
