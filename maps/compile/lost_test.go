// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"testing"
	"time"

	"hairpin/bpf"
	"hairpin/maps/config"
)

// TestGraceOfALostInterface: an interface is lost for its grace and at most two seconds more, whatever the clock says.
func TestGraceOfALostInterface(t *testing.T) {
	doc := &Document{Config: config.Config{WAN: []string{"wan0"}, Timeouts: config.Timeouts{AddressGrace: 2 * time.Second}}}
	renamed := []config.Interface{{Name: "else0", Index: 2, Attached: true}}
	for _, began := range []time.Duration{0, time.Second, 65535 * time.Second, 65536 * time.Second, 65536*time.Second + 999*time.Millisecond, 65537 * time.Second, 100_000 * time.Hour} {
		entries := map[uint32]bpf.HairpinInterface{2: {Role: bpf.HairpinRoleROLE_WAN}}
		at := func(after time.Duration) bool {
			found := FindLost(doc, entries, renamed, uint64(began+after))
			if len(found) != 0 {
				entries = found
			}
			return len(found) != 0
		}
		for _, after := range []time.Duration{0, time.Second, 2 * time.Second} {
			if !at(after) {
				t.Errorf("began at %v: not lost after %v", began, after)
			}
		}
		if left := Left(nil, entries, 2*time.Second, uint64(began+2*time.Second)); left <= 0 || left > 2*time.Second {
			t.Errorf("began at %v: %v are left after 2 s", began, left)
		}
		if at(4*time.Second + time.Millisecond) {
			t.Errorf("began at %v: still lost after 4 s", began)
		}
	}
}
