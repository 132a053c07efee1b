// SPDX-License-Identifier: Apache-2.0

package maps

import "golang.org/x/sys/unix"

const millisecond = 1_000_000

// monotonic is the clock of the datapath, in nanoseconds.
func monotonic() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		// It takes no argument that could be wrong.
		panic(err)
	}
	return uint64(now.Nano())
}
