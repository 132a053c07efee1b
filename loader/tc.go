// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// The clsact filter, for kernels without TCX. Other programs use priority 1, or let the kernel choose
// priority and handle. hairpin uses its own priority and handle, and finds its filter by these and the
// name.
const (
	filterName   = "hairpin"
	filterHandle = 0x6870
	// qdiscMark is a directory in the pin of the filter. It records that hairpin also made the qdisc.
	qdiscMark = "qdisc"
)

// side is a direction of an interface, with its hooks and its TC program.
type side struct {
	name       string
	tcxKind    string
	filterKind string
	tcx        ebpf.AttachType
	parent     uint32 // of the filter
	priority   uint16
	anchor     func() link.Anchor
	program    func(*bpf.HairpinPrograms) *ebpf.Program
}

var (
	// First at ingress: packets that the program leaves untouched go on to the programs behind it.
	ingress = &side{
		"ingress", kindTCX, kindClsact, ebpf.AttachTCXIngress, netlink.HANDLE_MIN_INGRESS, 2, link.Head,
		func(p *bpf.HairpinPrograms) *ebpf.Program { return p.HairpinTc },
	}
	// The guard runs last at egress: programs before it may translate the packet.
	egress = &side{
		"egress", kindGuardTCX, kindGuardClsact, ebpf.AttachTCXEgress, netlink.HANDLE_MIN_EGRESS, 0xfffe, link.Tail,
		func(p *bpf.HairpinPrograms) *ebpf.Program { return p.HairpinGuard },
	}
)

// sideOf returns the side of a kind of TC hook.
func sideOf(kind string) *side {
	if kind == kindGuardTCX || kind == kindGuardClsact {
		return egress
	}
	return ingress
}

// attachTC attaches the TC program of one side. It returns TCX or TCClsact, and a function that removes
// what this call attached.
func (d *Datapath) attachTC(dev netlink.Link, side *side, programs *bpf.HairpinPrograms) (kind string, undo func() error, err error) {
	program := side.program(programs)
	if !d.noTCX {
		kind, undo, err = d.attachTCX(dev, side, program)
	}
	if d.noTCX || errors.Is(err, ebpf.ErrNotSupported) {
		kind, undo, err = d.attachClsact(dev, side, program)
	}
	return kind, undo, err
}

func (d *Datapath) attachTCX(dev netlink.Link, side *side, program *ebpf.Program) (kind string, undo func() error, err error) {
	old, err := pins(d.dir).hook(side.tcxKind, dev.Attrs().Index)
	if err != nil {
		return "", nil, err
	}
	defer old.Close()
	if old != nil {
		running, err := old.running(dev)
		if err != nil {
			return "", nil, err
		}
		if running != 0 {
			return TCX, func() error { return nil }, update(old, dev, program)
		}
		if err := old.remove(); err != nil {
			return "", nil, err
		}
	}

	if err := d.pinTCX(dev, side, program); err != nil {
		return "", nil, err
	}
	return TCX, func() error { return d.removeHook(side.tcxKind, dev.Attrs().Index) }, nil
}

func (d *Datapath) pinTCX(dev netlink.Link, side *side, program *ebpf.Program) error {
	if err := fault("attach " + side.tcxKind); err != nil {
		return err
	}
	l, err := link.AttachTCX(link.TCXOptions{
		Interface: dev.Attrs().Index,
		Program:   program,
		Attach:    side.tcx,
		Anchor:    side.anchor(),
	})
	if err != nil {
		return fmt.Errorf("attach TC: %w", err)
	}
	return d.pinLink(l, side.tcxKind, dev.Attrs().Index)
}

// runningTCX returns the ID of the program that l runs on dev, 0 if l is not on dev. It asks the device as
// well as the link, because an interface in another network namespace may have the same index.
func runningTCX(l link.Link, dev netlink.Link, attach ebpf.AttachType) (ebpf.ProgramID, error) {
	info, err := l.Info()
	if err != nil {
		return 0, fmt.Errorf("inspect TC link: %w", err)
	}
	if on := info.TCX(); on == nil || int(on.Ifindex) != dev.Attrs().Index {
		return 0, nil
	}
	attached, err := link.QueryPrograms(link.QueryOptions{Target: dev.Attrs().Index, Attach: attach})
	if errors.Is(err, unix.ENODEV) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("list TC programs: %w", err)
	}
	for _, program := range attached.Programs {
		if id, ok := program.LinkID(); ok && id == info.ID {
			return program.ID, nil
		}
	}
	return 0, nil
}

// attachClsact attaches the TC program as a filter. The kernel has no link for a filter, so there is
// nothing to pin. An empty directory takes the place of the pin; the directory qdiscMark in it records the
// qdisc.
func (d *Datapath) attachClsact(dev netlink.Link, side *side, program *ebpf.Program) (kind string, undo func() error, err error) {
	ifindex := dev.Attrs().Index
	if err := checkPlace(ifindex, side); err != nil {
		return "", nil, err
	}
	old, err := findFilter(ifindex, side)
	if err != nil {
		return "", nil, err
	}
	// Make the directory first: a record without a filter does no harm, a filter without a record stays for
	// ever.
	path := pins(d.dir).linkPin(side.filterKind, ifindex)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", nil, fmt.Errorf("pin clsact filter: %w", err)
	}
	undo = func() error { return nil }
	if old == nil {
		undo = func() error { return removeFilter(ifindex, side, path) }
	}
	if err := addQdisc(ifindex, path); err != nil {
		return "", nil, errors.Join(err, undo())
	}
	if err := replaceFilter(ifindex, side, program); err != nil {
		return "", nil, errors.Join(err, undo())
	}
	return TCClsact, undo, nil
}

// addQdisc adds the clsact qdisc, which the filter needs, unless it exists.
func addQdisc(ifindex int, path string) error {
	if err := fault("add qdisc"); err != nil {
		return err
	}
	err := netlink.QdiscAdd(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex,
			Handle:    netlink.MakeHandle(0xffff, 0),
			Parent:    netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	})
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("add clsact qdisc: %w", err)
	}
	if err := os.Mkdir(filepath.Join(path, qdiscMark), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("pin clsact qdisc: %w", err)
	}
	return nil
}

func replaceFilter(ifindex int, side *side, program *ebpf.Program) error {
	err := netlink.FilterReplace(&netlink.BpfFilter{
		FilterAttrs:  filterAttrs(ifindex, side),
		Fd:           program.FD(),
		Name:         filterName,
		DirectAction: true,
	})
	if err != nil {
		return fmt.Errorf("replace clsact filter: %w", err)
	}
	return nil
}

func filterAttrs(ifindex int, side *side) netlink.FilterAttrs {
	return netlink.FilterAttrs{
		LinkIndex: ifindex,
		Parent:    side.parent,
		Handle:    filterHandle,
		Priority:  side.priority,
		Protocol:  unix.ETH_P_ALL,
	}
}

// findFilter returns hairpin's filter on an interface, nil if there is none.
func findFilter(ifindex int, side *side) (*netlink.BpfFilter, error) {
	filters, err := listFilters(ifindex, side.parent)
	if err != nil {
		return nil, err
	}
	for _, filter := range filters {
		if isOurs(filter, side) {
			return filter.(*netlink.BpfFilter), nil
		}
	}
	return nil, nil
}

func isOurs(filter netlink.Filter, side *side) bool {
	f, ok := filter.(*netlink.BpfFilter)
	return ok && f.Priority == side.priority && f.Handle == filterHandle && f.Name == filterName
}

// checkPlace fails if another filter has the priority of hairpin's filter. The kernel would replace a filter
// with the same handle. It would refuse a filter of a second kind, with an error that does not name the
// cause.
func checkPlace(ifindex int, side *side) error {
	filters, err := listFilters(ifindex, side.parent)
	if err != nil {
		return err
	}
	for _, filter := range filters {
		if filter.Attrs().Priority == side.priority && !isOurs(filter, side) {
			return fmt.Errorf("another %s filter has priority %d on %s, which hairpin needs; give that filter another priority",
				filter.Type(), side.priority, side.name)
		}
	}
	return nil
}

// listFilters lists the filters of one direction. The list is empty if the interface is gone or has no
// qdisc.
func listFilters(ifindex int, parent uint32) ([]netlink.Filter, error) {
	dev := &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: ifindex}}
	filters, err := retryDump(func() ([]netlink.Filter, error) { return netlink.FilterList(dev, parent) })
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list filters: %w", err)
	}
	return filters, nil
}

// removeFilter removes hairpin's filter and its pin. It also removes the qdisc if hairpin made it and no
// filter uses it.
func removeFilter(ifindex int, side *side, path string) error {
	filter, err := findFilter(ifindex, side)
	if err != nil {
		return err
	}
	if filter != nil {
		if err := netlink.FilterDel(&netlink.BpfFilter{FilterAttrs: filterAttrs(ifindex, side)}); err != nil && !isGone(err) {
			return fmt.Errorf("remove clsact filter: %w", err)
		}
	}
	mark := filepath.Join(path, qdiscMark)
	if _, err := os.Lstat(mark); err == nil {
		if err := removeQdisc(ifindex); err != nil {
			return err
		}
	}
	if err := os.RemoveAll(path); err != nil {
		return fmt.Errorf("unpin clsact filter: %w", err)
	}
	return nil
}

func removeQdisc(ifindex int) error {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		if filters, err := listFilters(ifindex, parent); err != nil || len(filters) > 0 {
			return err
		}
	}
	err := netlink.QdiscDel(&netlink.GenericQdisc{
		QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: ifindex,
			Handle:    netlink.MakeHandle(0xffff, 0),
			Parent:    netlink.HANDLE_CLSACT,
		},
		QdiscType: "clsact",
	})
	if err != nil && !isGone(err) {
		return fmt.Errorf("remove clsact qdisc: %w", err)
	}
	return nil
}

// isGone reports whether the error means that there is nothing left to remove.
func isGone(err error) bool {
	for _, errno := range []error{unix.ENOENT, unix.ENODEV, unix.EINVAL} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}
