// SPDX-License-Identifier: Apache-2.0

package program

import (
	"errors"
	"testing"

	"hairpin/maps/entries"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
	"hairpin/test/frames"
	"hairpin/test/lab"
	"hairpin/test/rig"
)

// TestFullBuckets: when the buckets of a key are full, the datapath uses later buckets of its walk, and finds every entry there. When no
// bucket of the walk has room, an opening is refused, and leaves nothing behind. The control plane finds the same entries by the same walk.
// Entries that end leave no trace in the buckets that they have passed.
func TestFullBuckets(t *testing.T) {
	for _, udp := range []bool{true, false} {
		b := newBenchOf(t, racesSpec(t), 2048, 2048, rig.Forwards...)
		narrowTables(t, b, 17) // one walk reaches 16 buckets of three entries
		b.StartSweeper(t)
		var open []rig.Flow
		refused := false
		for port := uint16(20000); port < 20100; port++ {
			f := b.Flows(udp, port)["from the Internet"]
			in, _ := f.In(frames.TCP("S", rig.ClientISN, 0))
			if got := b.TC(t, f.At, in.Bytes()); got.Code != rig.TCRedirect {
				refused = true
				continue
			}
			open = append(open, f)
		}
		if len(open) < 16 || len(open) > 25 || !refused || b.Counted(t, "table_full") == 0 {
			t.Errorf("udp=%v: %d connections in 51 slots, refused: %v, table_full: %d", udp, len(open), refused, b.Counted(t, "table_full"))
		}
		table, err := entries.Open(&b.Objects)
		lab.Must(err)
		found := 0
		lab.Must(entries.Each(&b.Objects, func(e *layout.Entry) {
			found++
			if got, err := table.Lookup(e.Key); err != nil || got.Serial != e.Serial {
				t.Errorf("udp=%v: %v is listed, and looked up as %+v, %v", udp, e.Key, got, err)
			}
		}))
		if found != 2*len(open) {
			t.Errorf("udp=%v: %d connections have %d entries", udp, len(open), found)
		}
		for _, f := range open {
			f.Send(t, false, frames.TCP("SA", rig.ServerISN, rig.ClientISN+1))
			f.Send(t, true, frames.TCP("A", rig.ClientISN+1, rig.ServerISN+1))
		}
		if got := b.Connections(t); len(got) != len(open) {
			t.Errorf("udp=%v: %d connections are listed, want %d", udp, len(got), len(open))
		}
		ended, err := b.Tables.EndConnections(rule.Selector{})
		if err != nil || ended != len(open) {
			t.Errorf("udp=%v: ended %d of %d connections, %v", udp, ended, len(open), err)
		}
		setIdleTimes(t, b, 1, 1, 1)
		lab.Eventually(t, lab.Patience, func() error {
			if left := empty(auditTables(t, b)); left != "" {
				return errors.New(left)
			}
			return nil
		})
		// The keys are still in the free slots.
		for _, f := range open {
			for _, h := range hooks {
				in, _ := f.Back(frames.TCP("A", rig.ServerISN+1, rig.ClientISN+1))
				if got := h.run(b, t, b.LAN, in.Bytes()); got.Code == h.send {
					t.Errorf("udp=%v: %s sends a packet of a connection that has gone", udp, h.name)
				}
			}
		}
	}
}
