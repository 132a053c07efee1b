// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	const forwards, steady, peak = 65000, 64 << 20, 90 << 20
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", manyForwards(forwards, "192.168.1.21")))
	check := func(what string) {
		t.Helper()
		page, err := io.ReadAll(home.Get(t, n, "/metrics").Body)
		if err != nil || strings.Contains(string(page), "hairpin_forward_") {
			t.Errorf("%s: scrape of %d bytes, %v", what, len(page), err)
		}
		askPage(t, n, what, forwards)
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

// TestMappingsBesideManyForwards: the daemon follows a lease file beside as many forwards as there may be, and stays small.
func TestMappingsBesideManyForwards(t *testing.T) {
	const forwards, mappings, steady, peak = 65000, 256, 64 << 20, 100 << 20
	n := lab.NewNetwork(t)
	path := filepath.Join(t.TempDir(), "upnp.leases")
	hp := lab.NewHairpin(n.Router, home.Config("tc", fmt.Sprintf("[leases]\nfiles = [%q]\n", path)+manyForwards(forwards, "192.168.1.21")))
	hp.Start()
	hp.ForgetPeak()
	write := func(first int) {
		var text strings.Builder
		for i := range mappings {
			fmt.Fprintf(&text, "UDP:%d:%s:%d:0:console %d\n", first+i, lab.Server, first+i, i)
		}
		lab.Must(os.WriteFile(path, []byte(text.String()), 0o644))
	}
	for _, first := range []int{2000, 2001} {
		write(first)
		began := time.Now()
		lab.Eventually(t, 3*lab.Patience, func() error {
			r, err := hp.Try("forward", "show", fmt.Sprintf("lease-udp-%d", first+mappings-1))
			if err == nil && r.Code != 0 {
				err = fmt.Errorf("exit code %d: %s", r.Code, r.Stderr)
			}
			return err
		})
		// The daemon counts the mappings when the change is complete; the forwards run a moment before.
		lab.Eventually(t, lab.Patience, func() error {
			if got := home.Scrape(t, n, "hairpin_leases"); got != mappings {
				return fmt.Errorf("%v mappings", got)
			}
			return nil
		})
		now, most := hp.Memory()
		t.Logf("after %s: %d MiB, at most %d MiB", time.Since(began).Round(time.Millisecond), now>>20, most>>20)
		if now > steady || most > peak {
			t.Errorf("%d bytes, at most %d so far; want up to %d and %d", now, most, steady, peak)
		}
	}
}

// askPage asks for the status page until "hairpin doctor" has looked. The answers stay small however many forwards there are.
func askPage(t *testing.T, n *lab.Network, what string, forwards int) {
	t.Helper()
	var answer struct {
		Status struct {
			Forwards struct {
				Total, Matching int
				List            []struct{ Name string }
			}
			Findings *struct{ Error string }
		}
	}
	first := true
	lab.Eventually(t, 2*lab.Patience, func() error {
		start := time.Now()
		text, err := io.ReadAll(home.Get(t, n, "/api/v1/status?filter=forward-6&limit=200").Body)
		if err == nil {
			err = json.Unmarshal(text, &answer)
		}
		if err != nil || len(text) > 200_000 {
			t.Fatalf("status of %d bytes: %v", len(text), err)
		}
		if first {
			t.Logf("%s: a status of %d bytes in %v", what, len(text), time.Since(start))
		}
		first = false
		if answer.Status.Findings == nil {
			return errors.New("the doctor has not looked")
		}
		return nil
	})
	if s := answer.Status; s.Forwards.Total != forwards || len(s.Forwards.List) != 200 || s.Findings.Error != "" {
		t.Errorf("%s: status %+v", what, s)
	}
}
