// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// BecomeUser makes the calling thread one of a user and group that has these capabilities alone. The thread cannot go back: the goroutine
// must have locked it, and must end without unlocking it.
func BecomeUser(id uintptr, capabilities ...uintptr) error {
	if err := unix.Prctl(unix.PR_SET_KEEPCAPS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("keep capabilities: %w", err)
	}
	// The functions of package syscall would change every thread.
	for _, call := range []struct{ number, arguments uintptr }{{unix.SYS_SETGROUPS, 0}, {unix.SYS_SETRESGID, id}, {unix.SYS_SETRESUID, id}} {
		if _, _, errno := unix.RawSyscall(call.number, call.arguments, call.arguments, call.arguments); errno != 0 {
			return fmt.Errorf("become user %d: %w", id, errno)
		}
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	for _, capability := range capabilities {
		set, bit := &sets[capability/32], uint32(1)<<(capability%32)
		set.Effective |= bit
		set.Permitted |= bit
	}
	if err := unix.Capset(&header, &sets[0]); err != nil {
		return fmt.Errorf("set capabilities: %w", err)
	}
	return nil
}
