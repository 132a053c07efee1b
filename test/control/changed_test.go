// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// TestCommandsLeaveALine: the daemon logs each command that changed something, with its arguments and the user's id. The daemon logs no
// command that only reads, and none that failed.
func TestCommandsLeaveALine(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	const message = `msg="a command was run"`
	count := 0
	for _, c := range []struct {
		args   string
		code   int
		leaves bool
	}{
		{"forward add game udp 3074 to 192.168.1.20", 0, true},
		{"forward show", 0, false},
		{"forward add game udp 3075 to 192.168.1.20", 1, false}, // the name is taken
		{"status", 0, false},
		{"deny add 198.51.100.7", 0, true},
		{"apply " + hp.File, 0, true},
		{"doctor", 0, false},
		{"forward del nothing", 3, false},
	} {
		r, err := hp.Try(strings.Fields(c.args)...)
		if err != nil || r.Code != c.code && c.args != "doctor" { // doctor's code is for its findings
			t.Fatalf("%s: exit code %d, want %d, %v\n%s", c.args, r.Code, c.code, err, r.Stderr)
		}
		if c.leaves {
			count++
		}
		want := fmt.Sprintf("%s\" uid=%d", c.args, os.Getuid())
		lab.Eventually(t, lab.Patience, func() error {
			if now := strings.Count(hp.Log(), message); now < count || c.leaves && !strings.Contains(hp.Log(), want) {
				return fmt.Errorf("%s: %d lines, want %d, and %s in\n%s", c.args, now, count, want, hp.Log())
			}
			return nil
		})
	}
	hp.Stop()
	if now := strings.Count(hp.Log(), message); now != count {
		t.Errorf("%d lines, want %d:\n%s", now, count, hp.Log())
	}
	hp.Run("forward", "del", "web") // without a daemon there is nobody to tell
}
