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

// programPrefix begins the kernel names of hairpin's programs, in every version.
const programPrefix = "hairpin_"

// refuseOthers fails if another hairpin, with its own pins and tables, runs on the device. Both would
// translate the same packets without knowing each other's connections.
//
// Programs that share a map belong to one hairpin. This is also true for programs of other versions after
// an interrupted upgrade, and for a filter with hairpin's name and priority. On lo only filters are
// checked, because one filter would replace the other. With TCX, several hairpins can share lo: each passes
// packets that are not for it.
//
// Reading programs of others needs CAP_SYS_ADMIN. Without this capability refuseOthers finds no others.
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
		return fmt.Errorf("%s, pinned in %s), and both would translate the same packets; stop the other with \"hairpin --bpffs %[2]s detach --all\", or use different interfaces",
			text, dir)
	}
	return fmt.Errorf("%s, not pinned in a bpffs that is mounted here), and both would translate the same packets; stop it where it was started, perhaps in a container; "+
		"to remove filters that it left behind, run \"tc filter del dev %s ingress pref %d\" and \"... egress pref %d\"",
		text, dev.Attrs().Name, ingress.priority, egress.priority)
}

// programsOn lists the programs on a device, except the programs that hairpin's own links run.
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

// linkedPrograms lists the XDP and TCX programs on a device.
func linkedPrograms(dev netlink.Link) ([]ebpf.ProgramID, error) {
	var found []ebpf.ProgramID
	if xdp := dev.Attrs().Xdp; xdp != nil && xdp.Attached {
		found = append(found, ebpf.ProgramID(xdp.ProgId))
	}
	for _, side := range []*side{ingress, egress} {
		attached, err := link.QueryPrograms(link.QueryOptions{Target: dev.Attrs().Index, Attach: side.tcx})
		// Linux before 6.6 has no TCX. ENODEV: the device was deleted a moment ago.
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

// ownPrograms lists the programs that hairpin's own links run on a device.
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

// foreignPrograms returns the programs in found that are hairpin's but share no map with programs, and the
// maps that they use.
func foreignPrograms(found []ebpf.ProgramID, programs *bpf.HairpinPrograms) (others []ebpf.ProgramID, maps []ebpf.MapID, err error) {
	var ours []ebpf.MapID // read only if a hairpin program is found, which is rare
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

// readProgram returns the name of a program and the maps that it uses. Both are empty if the program is
// gone or this process may not read it.
func readProgram(id ebpf.ProgramID) (name string, maps []ebpf.MapID, err error) {
	program, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.EPERM) {
		return "", nil, nil
	}
	if err != nil {
		return "", nil, fmt.Errorf("inspect program %d: %w", id, err)
	}
	defer program.Close()
	info, err := program.Info()
	if err != nil {
		return "", nil, fmt.Errorf("inspect program %d: %w", id, err)
	}
	maps, _ = info.MapIDs()
	return info.Name, maps, nil
}

func mapsOf(programs ...*ebpf.Program) ([]ebpf.MapID, error) {
	var maps []ebpf.MapID
	for _, program := range programs {
		info, err := program.Info()
		if err != nil {
			return nil, fmt.Errorf("inspect program: %w", err)
		}
		used, _ := info.MapIDs()
		maps = append(maps, used...)
	}
	return maps, nil
}

func shareAny(a, b []ebpf.MapID) bool {
	return slices.ContainsFunc(a, func(id ebpf.MapID) bool { return slices.Contains(b, id) })
}

// findPins returns the mount point of the bpffs whose programs use one of these maps. It returns "" if no
// such bpffs is mounted in this mount namespace.
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
