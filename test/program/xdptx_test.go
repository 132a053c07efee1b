// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"
	"net/netip"
	"testing"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// TestXDPTx: what leaves by the interface that it came in by is sent with XDP_TX, where the interface is so configured; everything else is
// redirected. The bytes are the same. A device that takes no redirected frames can still get its own frames back.
func TestXDPTx(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	port := uint16(20000)
	for _, c := range []struct {
		name            string
		back, only      bool
		hairpin, others uint32 // verdicts for what stays on lan0, and for what goes to lan0 from elsewhere
	}{
		{"XDP_TX on lan0", true, false, rig.XDPTx, rig.XDPRedirect},
		{"lan0 takes no redirected frames", true, true, rig.XDPTx, rig.XDPPass},
		{"XDP_TX off again", false, false, rig.XDPRedirect, rig.XDPRedirect},
	} {
		b.Back, b.OnlyBack = c.back, c.only
		b.Watch(t, netip.PrefixFrom(rig.WANAddress, 24))
		for way := range b.Flows(false, 0) {
			for _, udp := range []bool{false, true} {
				port++
				f := b.Flows(udp, port)[way]
				t.Run(fmt.Sprintf("%s/%s/udp=%v", c.name, way, udp), func(t *testing.T) {
					h := hooks[1]
					h.send = c.others
					if f.At.Index == b.LAN.Index {
						h.send = c.hairpin
					}
					prepare := func() { f.Open(t) }
					in, want := f.In(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1), frames.Payload("to the server"))
					if h.send == rig.XDPPass {
						prepare()
						if got := b.XDP(t, f.At, in.Bytes()); got.Code != rig.XDPPass {
							t.Errorf("XDP answers %d", got.Code)
						}
						return
					}
					h.sends(t, f, prepare, f.At, in, want)
					in, want = f.Back(frames.TCP("PA", rig.ServerISN+1, rig.ClientISN+1), frames.Payload("to the client"))
					if f.At.Index != b.LAN.Index {
						h.send = rig.XDPRedirect
					}
					h.sends(t, f, prepare, f.Rig.LAN, in, want)
				})
			}
		}
	}
}
