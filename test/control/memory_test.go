// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"io"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// manyForwards are so many in a file, every two hundredth of them to a target of its own.
func manyForwards(count int, other string) string {
	var text strings.Builder
	for i := range count {
		target := lab.Server
		if i%200 == 0 {
			target = other
		}
		fmt.Fprintf(&text, "[[forward]]\nname = \"forward-%d\"\nprotocol = [\"tcp\"]\nport = \"%d\"\nto = \"%s\"\n\n", i, i+1, target)
	}
	return text.String()
}

// TestMemoryOfTheDaemon: it stays small with as many forwards as there may be, and does not grow much while it reads them.
func TestMemoryOfTheDaemon(t *testing.T) {
	const forwards, steady, peak = 65000, 64 << 20, 80 << 20
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", manyForwards(forwards, "192.168.1.21")))
	check := func(what string) {
		t.Helper()
		page, err := io.ReadAll(home.Get(t, n, "/metrics").Body)
		if err != nil || strings.Contains(string(page), "hairpin_forward_") {
			t.Errorf("%s: scrape of %d bytes, %v", what, len(page), err)
		}
		now, most := hp.Memory()
		t.Logf("%s: %d MiB, at most %d MiB so far", what, now>>20, most>>20)
		if now > steady || most > peak {
			t.Errorf("%s: %d bytes, at most %d so far; want up to %d and %d", what, now, most, steady, peak)
		}
	}
	hp.Start()
	check("started")
	hp.Write(home.Config("tc", manyForwards(forwards, "192.168.1.22")))
	hp.Reload()
	check("reloaded")
	if log := hp.Log(); !strings.Contains(log, "325 changed, 64675 unchanged") {
		t.Errorf("not reloaded:\n%s", log)
	}
}
