// SPDX-License-Identifier: Apache-2.0

package program

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"hairpin/test/frames"
	"hairpin/test/rig"
)

// merged runs a frame of several segments through the TC program: GRO has put them together.
func (b *bench) merged(tb testing.TB, p rig.Port, data []byte, segment, segments uint32) rig.Answer {
	tb.Helper()
	context := make([]byte, 192) // struct __sk_buff
	binary.NativeEndian.PutUint32(context[40:], uint32(p.Index))
	binary.NativeEndian.PutUint32(context[164:], segments)
	binary.NativeEndian.PutUint32(context[176:], segment)
	return b.Run(tb, b.Objects.HairpinTc, context, data)
}

// TestGSOTunnels is row 213: of a tunnel's packets that GRO has put together each is short enough for the next
// hop, whatever their sum. XDP never sees one.
func TestGSOTunnels(t *testing.T) {
	b := newBench6(t)
	b.Config.Forwards = append(b.Config.Forwards, rig.MustForward(t, "dmz any 203.0.113.10:any to 192.168.1.22"))
	b.Apply(t)
	inner := strings.Repeat("inner packet ", 220)
	for name, packet := range map[string]func(*frames.Frame){
		"GRE": raw(protocolGRE, "\x00\x00\x08\x00"+inner), "IPIP": raw(protocolIPIP, inner),
		"UDP": func(f *frames.Frame) { f.UDP = true; frames.Payload(inner)(f) },
	} {
		for _, way := range []string{"from the Internet", "from another LAN"} {
			for _, v6 := range []bool{false, true} {
				for _, segment := range []uint32{536, 1360} {
					t.Run(fmt.Sprintf("%s %s, IPv6=%v, %d", name, way, v6, segment), func(t *testing.T) {
						c := twinCase{newCase(t, b), v6}
						f := c.whole(way, 4789)
						in, wantIn := f.inBytes(packet, dontCut)
						back, wantBack := f.backBytes(packet, dontCut)
						segments := (uint32(len(inner)) + segment - 1) / segment
						for _, s := range []step{
							sendBytes(f.At, in, wantIn), sendBytes(b.LAN, back, wantBack), sendBytes(f.At, in, wantIn), sendBytes(b.LAN, back, wantBack),
						} {
							got := b.merged(t, s.at, s.in, segment, segments)
							if got.Code != rig.TCRedirect || !bytes.Equal(got.Data[12:], s.sent[0][12:]) {
								t.Fatalf("tc answers %d, and %d bytes of %d: %x", int32(got.Code), len(got.Data), len(s.in), got.Data[:64])
							}
						}
						// One packet of that length is too long.
						if got := b.TC(t, f.At, in); got.Code == rig.TCRedirect && len(got.Data) == len(in) {
							t.Error("a single packet of this length was sent on")
						}
					})
				}
			}
		}
	}
}
