// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// The commands that status gives for interfaces without forwarding do what they say, whatever the name.
func TestForwardingHintForAnyName(t *testing.T) {
	n := lab.NewNetwork(t)
	names := []string{"lan0.10", "a.b.c", "l'n;$x", "wän0"}
	var lan strings.Builder
	for i, name := range names {
		lab.Cable(n.Router, name, n.Router, fmt.Sprintf("peer%d", i))
		fmt.Fprintf(&lan, ", %q", name)
	}
	hp := lab.NewHairpin(n.Router, strings.Replace(home.Config("tc", home.Forwards), `"lan1"`, `"lan1"`+lan.String(), 1))
	hp.Run("attach")
	hints := func() (commands []string) {
		var st struct{ Status struct{ Warnings []string } }
		if err := json.Unmarshal([]byte(hp.Run("-j", "status")), &st); err != nil {
			t.Fatal(err)
		}
		for _, warning := range st.Status.Warnings {
			if _, command, found := strings.Cut(warning, " forwarding is off on this interface; run "); found {
				commands = append(commands, command)
			}
		}
		return commands
	}
	if left := hints(); len(left) > 0 {
		t.Fatalf("before: %q", left)
	}
	for _, name := range names {
		n.Router.Run("sysctl", "-w", "net/ipv4/conf/"+name+"/forwarding=0")
	}
	commands := hints()
	if len(commands) != len(names) {
		t.Errorf("hints %q, want one for each of %q", commands, names)
	}
	for _, command := range commands {
		n.Router.Run("sh", "-c", command)
	}
	if left := hints(); len(left) > 0 {
		t.Errorf("after the commands: %q", left)
	}
}
