// SPDX-License-Identifier: Apache-2.0

package program

import (
	"encoding/binary"
	"net/netip"
	"runtime"
	"sync/atomic"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// While LAN clients open connections, the router's address changes. Once a change is done, no connection shows a server the old
// address: the opening that had read the old address has ended before.
func TestAddressChangesWhileConnectionsOpen(t *testing.T) {
	b := newBench(t, rig.Forwards...)
	stop, opened := atomic.Bool{}, atomic.Int64{}
	done := make(chan error)
	go func() {
		defer stop.Store(true)
		done <- b.Router.Do(func() error {
			context := make([]byte, 192)
			binary.NativeEndian.PutUint32(context[40:], uint32(b.LAN.Index))
			for port := uint16(1024); !stop.Load(); port = max(port+1, 1024) {
				in := frames.Frame{From: rig.ClientMAC, To: b.LAN.MAC, Src: netip.AddrPortFrom(rig.Client, port), Dst: netip.AddrPortFrom(rig.WANAddress, 443), UDP: true, TTL: 64}
				frames.Payload("open")(&in)
				data := in.Bytes()
				if _, err := b.Objects.HairpinTc.Run(&ebpf.RunOptions{Data: data, DataOut: make([]byte, len(data)+256), Context: context}); err != nil {
					return err
				}
				opened.Add(1)
			}
			return nil
		})
	}()
	addresses := []netip.Addr{rig.LANAddress, netip.MustParseAddr("192.168.1.2")}
	for i := range 40 {
		now, gone := addresses[(i+1)%2], addresses[i%2]
		for before := opened.Load(); opened.Load() < before+20 && !stop.Load(); {
			runtime.Gosched()
		}
		b.WatchLAN(t, now, netip.PrefixFrom(rig.WANAddress, 24))
		for _, c := range b.Connections(t) {
			if c.Source.Addr() == gone {
				t.Errorf("change %d: a connection lives with the old address: %+v", i, c)
			}
		}
		if t.Failed() {
			break
		}
	}
	stop.Store(true)
	lab.Must(<-done)
}
