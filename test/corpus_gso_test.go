// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
)

// merged runs a frame of several segments through the TC program: GRO has put them together.
func (b *bench) merged(tb testing.TB, p port, data []byte, segment, segments uint32) answer {
	tb.Helper()
	context := make([]byte, 192) // struct __sk_buff
	binary.NativeEndian.PutUint32(context[40:], uint32(p.index))
	binary.NativeEndian.PutUint32(context[164:], segments)
	binary.NativeEndian.PutUint32(context[176:], segment)
	return b.run(tb, b.objs.HairpinTc, context, data)
}

// TestGSOTunnels is row 213: of a tunnel's packets that GRO has put together each is short enough for the next
// hop, whatever their sum. XDP never sees one.
func TestGSOTunnels(t *testing.T) {
	b := newBench6(t)
	b.config.Forwards = append(b.config.Forwards, mustForward(t, "dmz any 203.0.113.10:any to 192.168.1.22"))
	b.apply(t)
	inner := strings.Repeat("inner packet ", 220)
	for name, packet := range map[string]func(*frame){
		"GRE": raw(protocolGRE, "\x00\x00\x08\x00"+inner), "IPIP": raw(protocolIPIP, inner),
		"UDP": func(f *frame) { f.udp = true; payload(inner)(f) },
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
							sendBytes(f.at, in, wantIn), sendBytes(b.lan, back, wantBack), sendBytes(f.at, in, wantIn), sendBytes(b.lan, back, wantBack),
						} {
							got := b.merged(t, s.at, s.in, segment, segments)
							if got.code != tcRedirect || !bytes.Equal(got.data[12:], s.sent[0][12:]) {
								t.Fatalf("tc answers %d, and %d bytes of %d: %x", int32(got.code), len(got.data), len(s.in), got.data[:64])
							}
						}
						// One packet of that length is too long.
						if got := b.tc(t, f.at, in); got.code == tcRedirect && len(got.data) == len(in) {
							t.Error("a single packet of this length was sent on")
						}
					})
				}
			}
		}
	}
}
