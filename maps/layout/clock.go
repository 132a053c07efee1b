// SPDX-License-Identifier: Apache-2.0

package layout

import "golang.org/x/sys/unix"

// Millisecond is a millisecond in nanoseconds, the unit of Monotonic.
const Millisecond = 1_000_000

// Monotonic is the clock of the datapath, in nanoseconds.
func Monotonic() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		// It takes no argument that could be wrong.
		panic(err)
	}
	return uint64(now.Nano())
}
