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

// CheckMount fails if pins in dir would be lost when the calling process ends. It makes nothing. Pins would
// be lost if the bpffs is not mounted yet, and Lock would mount it in a mount namespace that ends with the
// process:
//
//   - "ip netns exec" gives a command, and its children, their own mounts with another /sys.
//   - No other process is in the mount namespace. Examples: a systemd service with PrivateTmp= or ProtectSystem=, a
//     container that runs one command, "unshare -m".
//
// A command that attaches and ends must stop then. A daemon may continue: its mounts live as long as the
// daemon. The mount stays if it propagates to the namespace of PID 1, or if other processes use the
// namespace, as in a container that somebody enters. If /proc does not give an answer, CheckMount assumes
// that the mount stays.
//
// It returns an error wrapping ErrPrivateMount that names the cause and the cure.
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
		return fmt.Errorf(`%w: mounts made under "ip netns exec %s" end with the command; use "nsenter --net=/run/netns/%s" instead`,
			ErrPrivateMount, name, name)
	}
	if isAlone(at) {
		return fmt.Errorf("%w: no other process is in this mount namespace, so a bpffs mounted on %s would end with this process; "+
			"use the mount namespace of the host, or mount it there before: mount -t bpf -o mode=0700 %s %s",
			ErrPrivateMount, dir, mountSource, dir)
	}
	return nil
}

// isSeenByInit reports whether PID 1 also sees a new mount on at.
func isSeenByInit(at mountPoint) bool {
	if os.Getpid() == 1 {
		// This is PID 1 of a container, which cannot see where its mounts propagate to.
		return peerGroup(at.Info) != ""
	}
	seen, err := seesMount("1", at)
	return seen || err != nil
}

// isAlone reports whether no other process sees a new mount on at.
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
			return false // with ErrPermission, the process may see the mount
		}
	}
	return true
}

// seesMount reports whether a process sees a new mount on at: its mountinfo contains at, or a mount of at's
// peer group, to which mounts propagate. The ID of a mount exists in one namespace only. The links in
// /proc/PID/ns are not used, because reading them needs permission to trace the process.
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

// peerGroup returns "shared:N", or "" for a mount that propagates nothing (mount_namespaces(7)). systemd
// gives the mounts of a service their own peer groups, which no other namespace shares.
func peerGroup(m *mountinfo.Info) string {
	fields := strings.Fields(m.Optional)
	if i := slices.IndexFunc(fields, func(field string) bool { return strings.HasPrefix(field, "shared:") }); i >= 0 {
		return fields[i]
	}
	return ""
}

// netnsOfExec returns the name of the network namespace if this process runs under "ip netns exec", ""
// otherwise. That command mounts a sysfs whose source is the name (netns_switch in iproute2).
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
