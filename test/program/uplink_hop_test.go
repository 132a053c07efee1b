// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"

	"hairpin/test/frames"
	"hairpin/test/lab"
)

// TestAnswersOnlyByRoutes: by an uplink that no route leads back by, an answer does not go to the station that
// its client's packet came from, which may be anybody's. It leaves by the kernel's route, if that is by an
// attached WAN interface, and is dropped if there is none.
func TestAnswersOnlyByRoutes(t *testing.T) {
	for _, mode := range []struct {
		name  string
		flags link.XDPAttachFlags
	}{{"tc", 0}, {"native", link.XDPDriverMode}} {
		t.Run(mode.name, func(t *testing.T) {
			w := newWires(t, newUplinkBench(t), mode.flags)
			for _, v6 := range []bool{false, true} {
				for _, udp := range []bool{false, true} {
					t.Run(fmt.Sprintf("IPv6=%v, udp=%v", v6, udp), func(t *testing.T) {
						answersByRoutes(t, w, twinCase{newCase(t, w.b), v6}, udp)
					})
				}
			}
		})
	}
}

func answersByRoutes(t *testing.T, w *wires, c twinCase, udp bool) {
	f := c.flow("from the Internet", udp)
	for i, s := range c.opened(f) {
		if s.at.Index == w.b.WAN.Index {
			s = s.by(w.b.LAN2, onLinkMAC) // answers go to the gateway of wan0 all the same
		}
		want := w.expected(s)
		got := w.pass(t, s, want)
		if err := s.judgeWire(t, want, got); err != nil {
			t.Fatalf("packet %d: %v; all that came out: %s", i+1, err, describe(got))
		}
	}

	w.b.Router.Run("ip", "route", "del", "default")
	w.b.Router.Run("ip", "-6", "route", "del", "default")
	defer w.b.Router.Route("wan0", "0.0.0.0/0", "203.0.113.254", "")
	defer w.b.Router.Route("wan0", "::/0", "fe80::fe", "")
	lab.Must(w.b.Tables.BumpRoutes())
	answer := c.back(f, answerer, frames.Payload("to whom?"))
	dropped := w.b.Counted(t, "no_route")
	for deadline := time.Now().Add(10 * time.Second); w.b.Counted(t, "no_route") == dropped; {
		for dev, frames := range w.pass(t, answer, nil) {
			for _, data := range frames {
				if bytes.Equal(data[:6], onLinkMAC) {
					t.Fatalf("an answer leaves by %s to the station its client's packet came from: %x", dev, data)
				}
			}
		}
		if time.Now().After(deadline) {
			t.Fatal("an answer without a route is not dropped for that")
		}
	}
}
