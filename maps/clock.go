// SPDX-License-Identifier: Apache-2.0

package maps

import "golang.org/x/sys/unix"

const (
	second      = 1_000_000_000
	millisecond = 1_000_000
)

// monotonic is the clock of the datapath, in nanoseconds.
func monotonic() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		// It takes no argument that could be wrong.
		panic(err)
	}
	return uint64(now.Nano())
}

// since is 0 for what happened after now was read.
func since(now, then uint64) uint64 {
	if then > now {
		return 0
	}
	return now - then
}
