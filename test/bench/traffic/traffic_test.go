// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/test/lab"
)

// sum is the one's complement sum of RFC 1071.
func sum(total uint32, data []byte) uint32 {
	for ; len(data) > 1; data = data[2:] {
		total += uint32(binary.BigEndian.Uint16(data))
	}
	if len(data) == 1 {
		total += uint32(data[0]) << 8
	}
	for total > 0xffff {
		total = total&0xffff + total>>16
	}
	return total
}

// Every frame that is made is one that a host would accept: what is measured must not be how bad ones are refused.
func TestFramesAreValid(t *testing.T) {
	lab.NeedRoot(t)
	tr, err := Load()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tr.Close() })
	src, dst := netip.MustParseAddrPort("192.168.1.50:1025"), netip.MustParseAddrPort("203.0.113.2:10000")
	frame := append(make([]byte, 12, 64), 0x08, 0x00)
	frame = append(frame, lab.UDP(src, dst, []byte("18 bytes of payload")).Packet()...)
	frame = append(frame, make([]byte, 64-len(frame))...)
	stream := Stream{Frames: []Frame{{Data: frame, First: 34, Second: 36, Check: 40}}, Flows: 3 * FlowsPerRound, Ordered: true}
	for _, flow := range []int{0, 1, 59999, 60000, 2*FlowsPerRound + 12345} {
		stream.From = flow
		if err := tr.Set(stream); err != nil {
			t.Fatal(err)
		}
		if err := tr.objs.TestedXdp.Put(uint32(0), tr.objs.EmptyXdp); err != nil {
			t.Fatal(err)
		}
		out := make([]byte, len(frame))
		if _, err := tr.objs.RenewXdp.Run(&ebpf.RunOptions{Data: make([]byte, len(frame)), DataOut: out}); err != nil {
			t.Fatal(err)
		}
		source, destination := int(binary.BigEndian.Uint16(out[34:])), int(binary.BigEndian.Uint16(out[36:]))
		if source != 1025+flow%FlowsPerRound || destination != 10000+flow/FlowsPerRound {
			t.Errorf("flow %d: ports %d and %d", flow, source, destination)
		}
		if s := sum(0, out[14:34]); s != 0xffff {
			t.Errorf("flow %d: IP header sums up to %#x", flow, s)
		}
		length := binary.BigEndian.Uint16(out[38:])
		pseudo := sum(sum(0, out[26:34]), []byte{0, 17, byte(length >> 8), byte(length)})
		if s := sum(pseudo, out[34:34+length]); s != 0xffff {
			t.Errorf("flow %d: UDP datagram sums up to %#x", flow, s)
		}
	}
}

// A scattered stream comes by every flow before it comes by one again.
func TestScatterVisitsEveryFlow(t *testing.T) {
	for _, flows := range []int{1, 2, 3, 7, 250, 60000, 65536} {
		step, seen := scatter(flows), make([]bool, flows)
		for i, at := 0, 0; i < flows; i, at = i+1, (at+step)%flows {
			if seen[at] {
				t.Fatalf("%d flows, step %d: flow %d a second time after %d", flows, step, at, i)
			}
			seen[at] = true
		}
	}
}

func TestStreamsThatCannotBe(t *testing.T) {
	tr := new(Traffic)
	frame := Frame{Data: make([]byte, FrameBytes)}
	for name, s := range map[string]Stream{
		"no frame":               {Flows: 1},
		"no flow":                {Frames: []Frame{frame}},
		"from behind the end":    {Frames: []Frame{frame}, Flows: 2, From: 2, Ordered: true},
		"two frames, scattered":  {Frames: []Frame{frame, frame}, Flows: Block},
		"two frames, half block": {Frames: []Frame{frame, frame}, Flows: Block + 1, Ordered: true},
		"too long":               {Frames: []Frame{{Data: make([]byte, maxFrameBytes+1)}}, Flows: 1},
	} {
		if err := tr.Set(s); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}
