// SPDX-License-Identifier: Apache-2.0

package program

import (
	"fmt"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// priorityTags are tags without a VLAN (IEEE 802.1Q): the frame is an untagged one.
var priorityTags = []struct {
	name  string
	bytes []byte
}{
	{"priority 0", []byte{0x81, 0, 0, 0}},
	{"priority 7, drop eligible", []byte{0x81, 0, 0xf0, 0}},
	{"a service tag", []byte{0x88, 0xa8, 0x20, 0}},
}

// tagged is the same step with a tag on its frame. What is sent has no tag. XDP leaves the frame to TC.
func (s step) tagged(tag []byte) step {
	s.in = insert(s.in, tag...)
	return s.deferred(uncounted)
}

// priorityTwins are row 3: frames with a priority tag open connections and belong to connections, whether the frames before
// them had tags or not.
func priorityTwins() (twins []twin) {
	for _, way := range ways6Names {
		for _, udp := range []bool{false, true} {
			for _, tag := range priorityTags {
				name := fmt.Sprintf("row 3: %s, %s, udp=%v", tag.name, way, udp)
				twins = append(twins, twin{name, func(c twinCase) (steps []step) {
					for _, s := range c.lifeOf(c.flow(way, udp)) {
						steps = append(steps, s.tagged(tag.bytes))
					}
					return steps
				}}, twin{name + ", after the opening", func(c twinCase) []step {
					f := c.flow(way, udp)
					return append(c.opened(f),
						c.in(f, middle, frames.Payload("tagged")).tagged(tag.bytes),
						c.back(f, frames.TCP("A", rig.ServerISN+1, rig.ClientISN+7)).tagged(tag.bytes),
						c.in(f, frames.TCP("A", rig.ClientISN+7, rig.ServerISN+1), frames.Payload("untagged")),
					)
				}})
			}
		}
	}
	return twins
}
