// SPDX-License-Identifier: Apache-2.0

package layout

import "golang.org/x/sys/unix"

// Millisecond is the number of nanoseconds in a millisecond.
const Millisecond = 1_000_000

// Monotonic returns the time of the datapath's clock, CLOCK_MONOTONIC, in nanoseconds.
func Monotonic() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		// clock_gettime(2) fails only for a wrong argument.
		panic(err)
	}
	return uint64(now.Nano())
}
