// SPDX-License-Identifier: Apache-2.0

package test

import (
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// TestWires6 sends every case of IPv6 as real frames through three routers, as TestWires does. Held
// fragments show only here.
func TestWires6(t *testing.T) {
	first := map[string][]string{}
	for _, mode := range []struct {
		name  string
		flags link.XDPAttachFlags
	}{{"tc", 0}, {"native", link.XDPDriverMode}, {"generic", link.XDPGenericMode}} {
		w := newWires6(t, mode.flags)
		failed := 0
		for _, r := range allRows6() {
			if failed == wireFailures {
				t.Errorf("%s: the other cases are left out", mode.name)
				break
			}
			ok := t.Run(mode.name+"/"+r.name, func(t *testing.T) {
				frames := w.play(t, row{r.name, func(c *corpus) []step { return r.steps(case6{c}) }})
				if other, known := first[r.name]; known && !slices.Equal(frames, other) {
					t.Errorf("what comes out is\n%v, of the router before\n%v", frames, other)
				}
				first[r.name] = frames
			})
			if !ok {
				failed++
			}
		}
	}
}

func newWires6(t *testing.T, flags link.XDPAttachFlags) *wires {
	t.Helper()
	w := &wires{b: newBench6(t), sockets: map[string]int{}}
	w.b.kernelPort(t)
	// The hosts themselves are to say nothing: neither which groups they are in (RFC 3810) nor what they look for.
	for _, dev := range sinks {
		w.b.router.Run("ip", "link", "set", dev, "multicast", "off")
		w.b.wires.Run("ip", "link", "set", "to-"+dev, "multicast", "off")
	}
	for _, dev := range sinks {
		w.sockets[dev] = w.open(t, dev)
	}
	kernel := toKernel(t, w.b.router.Index("kernel0"))
	watching := xdpPasser(t)
	for _, dev := range sinks[:3] {
		if flags == link.XDPDriverMode {
			w.attachXDP(t, w.b.wires, "to-"+dev, watching, link.XDPDriverMode)
		}
		if flags != 0 {
			w.attachXDP(t, w.b.router, dev, w.b.objs.HairpinXdp, flags)
		}
		w.attachTC(t, dev, w.b.objs.HairpinTc)
		w.attachTC(t, dev, kernel)
	}
	w.quiet(t)
	return w
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
