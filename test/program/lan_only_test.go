// SPDX-License-Identifier: Apache-2.0

package program

import (
	"testing"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// TestForwardForLANsAlone: LAN clients reach the target by the external address. The kernel gets what the Internet sends to the same port,
// unchanged, and what the target answers: another program's rules in the kernel serve the Internet.
func TestForwardForLANsAlone(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	for _, udp := range []bool{false, true} {
		for _, h := range hooks {
			b.Config.Forwards[0].LANOnly = true
			b.Apply(t)
			for _, way := range []string{"hairpin", "from another LAN", "server to itself"} {
				c := newCase(t, b)
				for _, s := range c.opened(c.flow(way, udp)) {
					c.play(t, h, s)
				}
			}
			c := newCase(t, b)
			f := c.flow("from the Internet", udp)
			in, _ := f.In(opener)
			data, _ := f.In(frames.TCP("PA", rig.ClientISN+1, rig.ServerISN+1))
			answer, _ := f.Back(answerer)
			steps := []step{pass(f.At, in.Bytes()), pass(b.LAN, answer.Bytes()), pass(f.At, data.Bytes())}
			if udp {
				d := c.pieces(f, long(100), 64, 36)
				steps = append(steps, d.passes(0), d.passes(1))
			}
			for _, s := range steps {
				c.play(t, h, s)
			}

			// The same forward for everybody takes what the Internet sends.
			b.Config.Forwards[0].LANOnly = false
			b.Apply(t)
			c = newCase(t, b)
			for _, s := range c.opened(c.flow("from the Internet", udp)) {
				c.play(t, h, s)
			}
		}
	}
}
