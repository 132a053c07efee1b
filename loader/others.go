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
	"github.com/moby/sys/mountinfo"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// programPrefix begins the names of the programs in the kernel, of every version.
const programPrefix = "hairpin_"

// refuseOthers fails if another hairpin runs on the device: one that has pins of its own, and so tables
// of its own. Both would translate the same packets, and one would not know the other's connections.
//
// Two programs belong together if they share a map. That holds for programs of other versions,
// after an upgrade that was killed half-way, and for a filter that has the same name and place
// as ours. The loopback device is looked at for filters alone, of which one replaces the other: by TCX,
// hairpins that serve different interfaces share it, and each lets pass what is not for it.
//
// To look at programs of others takes CAP_SYS_ADMIN. Without it the answer is that there are none.
func (d *Datapath) refuseOthers(dev netlink.Link, programs *bpf.HairpinPrograms) error {
	found, err := d.programsOn(dev)
	if len(found) == 0 || err != nil {
		return err
	}
	others, maps, err := foreignPrograms(found, programs)
	if len(others) == 0 || err != nil {
		return err
	}
	list := make([]string, len(others))
	for i, id := range others {
		list[i] = strconv.Itoa(int(id))
	}
	text := fmt.Sprintf("another hairpin runs here (programs %s", strings.Join(list, ", "))
	if dir := findPins(maps); dir != "" {
		return fmt.Errorf("%s, pinned in %s), and both would translate: stop that one with \"hairpin --bpffs %[2]s detach --all\", or give the two different interfaces",
			text, dir)
	}
	return fmt.Errorf("%s, pinned in no bpffs that is mounted here), and both would translate: stop that one where it was started, perhaps in a container; "+
		"filters that it left behind go with \"tc filter del dev %s ingress pref %d\" and \"... egress pref %d\"",
		text, dev.Attrs().Name, ingress.priority, egress.priority)
}

// programsOn lists the programs on a device that are not run by a link of ours.
func (d *Datapath) programsOn(dev netlink.Link) ([]ebpf.ProgramID, error) {
	var found []ebpf.ProgramID
	for _, side := range []*side{ingress, egress} {
		filters, err := listFilters(dev.Attrs().Index, side.parent)
		if err != nil {
			return nil, err
		}
		for _, filter := range filters {
			if f, ok := filter.(*netlink.BpfFilter); ok {
				found = append(found, ebpf.ProgramID(f.Id))
			}
		}
	}
	if loopback(dev) {
		return found, nil
	}
	linked, err := linkedPrograms(dev)
	if len(linked) == 0 || err != nil {
		return found, err
	}
	ours, err := d.ownPrograms(dev)
	if err != nil {
		return nil, err
	}
	for _, id := range linked {
		if !slices.Contains(ours, id) {
			found = append(found, id)
		}
	}
	return found, nil
}

// linkedPrograms lists the programs of XDP and TCX on a device.
func linkedPrograms(dev netlink.Link) ([]ebpf.ProgramID, error) {
	var found []ebpf.ProgramID
	if xdp := dev.Attrs().Xdp; xdp != nil && xdp.Attached {
		found = append(found, ebpf.ProgramID(xdp.ProgId))
	}
	for _, side := range []*side{ingress, egress} {
		attached, err := link.QueryPrograms(link.QueryOptions{Target: dev.Attrs().Index, Attach: side.tcx})
		// Before Linux 6.6 there is no TCX to ask for. A device may go at any moment.
		if errors.Is(err, ebpf.ErrNotSupported) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENODEV) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("list TC programs: %w", err)
		}
		for _, program := range attached.Programs {
			found = append(found, program.ID)
		}
	}
	return found, nil
}

// ownPrograms lists the programs that links of ours run on a device.
func (d *Datapath) ownPrograms(dev netlink.Link) ([]ebpf.ProgramID, error) {
	var ours []ebpf.ProgramID
	for _, kind := range []string{kindXDP, kindTCX, kindGuardTCX} {
		h, err := pins(d.dir).hook(kind, dev.Attrs().Index)
		if err != nil {
			return nil, err
		}
		if h == nil {
			continue
		}
		id, err := h.running(dev)
		h.Close()
		if err != nil {
			return nil, err
		}
		ours = append(ours, id)
	}
	return ours, nil
}

// foreignPrograms returns those of the programs that are hairpin's and share no map with ours, and the maps
// that they use.
func foreignPrograms(found []ebpf.ProgramID, programs *bpf.HairpinPrograms) (others []ebpf.ProgramID, maps []ebpf.MapID, err error) {
	var ours []ebpf.MapID // read when it is needed, which is hardly ever
	for _, id := range found {
		name, used, err := readProgram(id)
		if err != nil {
			return nil, nil, err
		}
		if !strings.HasPrefix(name, programPrefix) || slices.Contains(others, id) {
			continue
		}
		if ours == nil {
			if ours, err = mapsOf(programs.HairpinXdp, programs.HairpinTc, programs.HairpinGuard); err != nil {
				return nil, nil, err
			}
		}
		if !shareAny(used, ours) {
			others = append(others, id)
			maps = append(maps, used...)
		}
	}
	return others, maps, nil
}

// readProgram returns the name of a program and the maps that it uses, nothing if it is gone or may not be
// looked at.
func readProgram(id ebpf.ProgramID) (name string, maps []ebpf.MapID, err error) {
	program, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EPERM) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("look at program %d: %w", id, err)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return "", nil, fmt.Errorf("look at program %d: %w", id, err)
	}
	maps, _ = info.MapIDs()
	return info.Name, maps, nil
}

func mapsOf(programs ...*ebpf.Program) ([]ebpf.MapID, error) {
	var maps []ebpf.MapID
	for _, program := range programs {
		info, err := program.Info()
		if err != nil {
			return nil, fmt.Errorf("look at program: %w", err)
		}
		used, _ := info.MapIDs()
		maps = append(maps, used...)
	}
	return maps, nil
}

func shareAny(a, b []ebpf.MapID) bool {
	return slices.ContainsFunc(a, func(id ebpf.MapID) bool { return slices.Contains(b, id) })
}

// findPins returns the bpffs of the hairpin whose programs use these maps, "" if it is not mounted where
// this process can see it.
func findPins(maps []ebpf.MapID) string {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("bpf"))
	if err != nil {
		return ""
	}
	for _, mount := range mounts {
		path := filepath.Join(pins(mount.Mountpoint).programs(), bpf.HairpinProgHairpinTc)
		program, err := ebpf.LoadPinnedProgram(path, nil)
		if err != nil {
			continue
		}
		used, err := mapsOf(program)
		program.Close()
		if err == nil && shareAny(used, maps) {
			return mount.Mountpoint
		}
	}
	return ""
}
