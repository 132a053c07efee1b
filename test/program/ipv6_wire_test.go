// SPDX-License-Identifier: Apache-2.0

package program

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWires6 sends every case of IPv6 as real frames through three routers, as TestWires does. Held
// fragments show only here.
func TestWires6(t *testing.T) {
	var rows []row
	for _, r := range allRows6() {
		rows = append(rows, row{r.name, func(c *corpus) []step { return r.steps(case6{c}) }})
	}
	onWires(t, newWireBench6, rows)
}

// newWireBench6 is the bench of the IPv6 cases, for wires.
func newWireBench6(tb testing.TB) *bench {
	tb.Helper()
	b := newBench6(tb)
	b.kernelPort(tb)
	// The hosts themselves must send nothing: no multicast listener reports (RFC 3810) and no neighbour solicitations.
	for _, dev := range sinks {
		b.Router.Run("ip", "link", "set", dev, "multicast", "off")
		b.Wires.Run("ip", "link", "set", "to-"+dev, "multicast", "off")
	}
	return b
}

// quiet returns when nothing has come out for a while.
func (w *wires) quiet(t *testing.T) {
	t.Helper()
	for until := time.Now().Add(time.Second); time.Now().Before(until); {
		polls := make([]unix.PollFd, 0, len(sinks))
		for _, dev := range sinks {
			polls = append(polls, unix.PollFd{Fd: int32(w.sockets[dev]), Events: unix.POLLIN})
		}
		if n, err := unix.Poll(polls, 100); n == 0 && err == nil {
			continue
		}
		w.collect(t, map[string][][]byte{})
		until = time.Now().Add(time.Second)
	}
}
