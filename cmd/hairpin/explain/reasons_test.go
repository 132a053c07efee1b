// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"strings"
	"testing"

	"hairpin/maps"
)

// internal are the reasons that the datapath never gives a packet at the end.
var internal = map[string]bool{"begun": true, "obstacle": true, "not_ours": true}

// TestReasonsHaveWords: every reason of the datapath has words, and no other word has.
func TestReasonsHaveWords(t *testing.T) {
	known := map[string]bool{}
	for reason := uint32(1); ; reason++ {
		name := maps.ReasonName(reason)
		if strings.HasPrefix(name, "unknown_") {
			break
		}
		known[name] = true
		if (reasons[name] == "") != internal[name] {
			t.Errorf("reason %s: words %q, internal %t", name, reasons[name], internal[name])
		}
	}
	for name := range reasons {
		if !known[name] {
			t.Errorf("words for %s, which the datapath does not know", name)
		}
	}
}
