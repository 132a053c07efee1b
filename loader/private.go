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

	"github.com/moby/sys/mountinfo"
)

// CheckMount reports, before anything is made, whether pins in dir would be lost with the calling process.
// They are if the bpffs is not mounted yet, and the mount namespace in which Lock would mount it is not that
// of PID 1 and goes away:
//
//   - "ip netns exec" gives a command, and what that starts, mounts of its own, with another /sys.
//   - No other process is in the mount namespace. So it is with a systemd service that has PrivateTmp=,
//     ProtectSystem= or their like, with a container that runs one command, with "unshare -m".
//
// A command that attaches and ends must not go on then. A daemon may: its mounts live as long as it does.
// A mount that propagates to the namespace of PID 1 stays, and so does what other processes use, as in a
// container that somebody enters. What the kernel does not tell counts as staying.
//
// It returns an error wrapping ErrPrivateMount that names the cause and the way out.
func CheckMount(dir string) error {
	dir = Options{Dir: dir}.dir()
	mounted, err := isMounted(dir)
	if err != nil {
		return explain(err)
	}
	if mounted {
		return nil
	}
	at, err := mountOf(dir)
	if errors.Is(err, os.ErrNotExist) {
		at, err = mountOf(filepath.Dir(dir))
	}
	if err != nil || isSeenByInit(at) {
		return nil
	}
	if name := netnsOfExec(); name != "" {
		return fmt.Errorf(`%w: "ip netns exec %s" gives a command mounts of its own, and they end with it: use "nsenter --net=/run/netns/%s" instead`,
			ErrPrivateMount, name, name)
	}
	if isAlone(at) {
		return fmt.Errorf("%w: no other process is in this mount namespace, so a bpffs on %s would end with this one: "+
			"use the mounts of the host, or mount it there before: mount -t bpf -o mode=0700 %s %s",
			ErrPrivateMount, dir, mountSource, dir)
	}
	return nil
}

// isSeenByInit reports whether what this process mounts on a mount is there for PID 1, too.
func isSeenByInit(at mountPoint) bool {
	if os.Getpid() == 1 {
		// Of a container. Where its mounts lead is not to be seen from inside.
		return peerGroup(at.Info) != ""
	}
	seen, err := seesMount("1", at)
	return seen || err != nil
}

// isAlone reports whether what this process mounts on a mount is there for no other process.
func isAlone(at mountPoint) bool {
	processes, err := os.ReadDir("/proc")
	if err != nil {
		return false
	}
	for _, process := range processes {
		pid, err := strconv.Atoi(process.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		seen, err := seesMount(process.Name(), at)
		if seen || errors.Is(err, os.ErrPermission) {
			return false // or it cannot be told
		}
	}
	return true
}

// seesMount reports whether a process has a mount among its own, or another of its peer group, to which mounts on
// it propagate. No two namespaces share the ID of a mount. Links in /proc/PID/ns would say the same, but want
// the permission to trace the process.
func seesMount(process string, at mountPoint) (bool, error) {
	file, err := os.Open(filepath.Join("/proc", process, "mountinfo"))
	if err != nil {
		return false, err
	}
	defer file.Close()
	group := peerGroup(at.Info)
	found, err := mountinfo.GetMountsFromReader(file, func(m *mountinfo.Info) (skip, stop bool) {
		same := m.ID == at.ID || group != "" && peerGroup(m) == group
		return !same, same
	})
	return len(found) > 0, err
}

// peerGroup is "shared:N", "" for a mount that propagates nothing (mount_namespaces(7)). systemd gives the mounts
// of a service groups of their own, which lead nowhere.
func peerGroup(m *mountinfo.Info) string {
	fields := strings.Fields(m.Optional)
	if i := slices.IndexFunc(fields, func(field string) bool { return strings.HasPrefix(field, "shared:") }); i >= 0 {
		return fields[i]
	}
	return ""
}

// netnsOfExec is the network namespace of the "ip netns exec" that this process descends from, "" if of none.
// That command mounts a sysfs whose source is the name (netns_switch in iproute2).
func netnsOfExec() string {
	at, err := mountOf("/sys")
	if err != nil || !at.root || at.FSType != "sysfs" || at.Source == "" {
		return ""
	}
	if _, err := os.Stat(filepath.Join("/run/netns", at.Source)); err != nil {
		return ""
	}
	return at.Source
}
