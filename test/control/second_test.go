// SPDX-License-Identifier: Apache-2.0

package control

import (
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// TestSecondHairpinIsRefused: the command to run is in the message, and afterwards the second one may start.
func TestSecondHairpinIsRefused(t *testing.T) {
	n := lab.NewNetwork(t)
	first := home.Start(t, n, "tc", home.Forwards)
	second := lab.NewHairpin(n.Router, home.Config("tc", "[metrics]\nlisten = \"\"\n"+home.Forwards))
	cure := "hairpin --bpffs " + first.Dir + " detach --all"
	for _, command := range []string{"attach", "run"} {
		said := second.Fail(2, command)
		for _, dev := range []string{"wan0", "lan0", "lan1"} {
			if !strings.Contains(said, "attach to "+dev+": another hairpin runs here") {
				t.Errorf("%s says nothing of %s: %s", command, dev, said)
			}
		}
		if !strings.Contains(said, cure) {
			t.Errorf("%s: %s\nlacks %q", command, said, cure)
		}
		nothingLeft(t, second.Dir)
	}
	first.Stop()
	first.Run("detach", "--all")
	second.Run("attach")
}
