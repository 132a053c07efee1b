// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/test/home"
	"hairpin/test/lab"
)

// Writers wait for each other: of many at once none undoes another's change.
func TestParallelForwardAdd(t *testing.T) {
	const writers = 64
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)

	t.Run("different ports", func(t *testing.T) {
		hp := hp.For(t)
		lab.Together(writers, func(i int) {
			r, err := hp.Try("forward", "add", fmt.Sprintf("f%d", i), "tcp", fmt.Sprint(2000+i), "to", lab.Server)
			if err != nil || r.Code != 0 {
				t.Errorf("add %d: %+v, %v", i, r, err)
			}
		})
		listed := make(map[string]bool)
		for _, f := range home.Show(t, hp, "forward", "show").Forwards {
			listed[f.Name] = true
		}
		for i := range writers {
			if !listed[fmt.Sprintf("f%d", i)] {
				t.Errorf("forward %d is not there", i)
			}
		}
		if len(listed) != writers+2 {
			t.Errorf("%d forwards, want %d", len(listed), writers+2)
		}
	})

	t.Run("same port", func(t *testing.T) {
		hp := hp.For(t)
		results := make([]lab.Result, writers)
		lab.Together(writers, func(i int) {
			var err error
			results[i], err = hp.Try("forward", "add", fmt.Sprintf("g%d", i), "tcp", "3000", "to", lab.Server)
			if err != nil {
				t.Error(err)
			}
		})
		winner := ""
		for i, r := range results {
			if r.Code == 0 && winner != "" {
				t.Errorf("both %s and g%d won", winner, i)
			}
			if r.Code == 0 {
				winner = fmt.Sprintf("g%d", i)
			}
		}
		if winner == "" {
			t.Fatal("nobody won")
		}
		home.ForwardNamed(t, hp, winner)
		for i, r := range results {
			if r.Code != 0 && (r.Code != 1 || !strings.Contains(r.Stderr, winner)) {
				t.Errorf("loser %d: exit code %d, want 1, and a message that names %s: %s", i, r.Code, winner, r.Stderr)
			}
		}
	})
}

// A file with a mistake changes nothing, whoever reads it.
func TestInvalidFileChangesNothing(t *testing.T) {
	s := home.StartService(t, "tc")
	s.HP.Run("forward", "add", "kept", "tcp", "8443", "to", lab.Server+":8080")
	before := s.HP.Run("forward", "show")
	generation := liveGeneration(t, s.HP)

	mistakes := map[string]string{
		"not TOML":           "version = \n",
		"unknown key":        "prot = [\"tcp\"]\n",
		"wrong type":         "[[forward]]\nname = 7\n",
		"port out of range":  "[[forward]]\nname = \"x\"\nprotocol = [\"tcp\"]\nport = \"65536\"\nto = \"192.168.1.20\"\n",
		"two on one port":    "[[forward]]\nname = \"x\"\nprotocol = [\"tcp\"]\nport = \"80\"\nto = \"192.168.1.21\"\n",
		"target is a router": "[[forward]]\nname = \"x\"\nprotocol = [\"tcp\"]\nport = \"81\"\nto = \"192.168.1.1\"\n",
	}
	for name, mistake := range mistakes {
		t.Run(name, func(t *testing.T) {
			hp := s.HP.For(t)
			hp.Write(home.Config("tc", home.Forwards) + mistake)
			if said := hp.Fail(1, "apply"); !strings.Contains(said, filepath.Base(hp.File)) && !strings.Contains(said, `"x"`) {
				t.Errorf("the message names neither the file nor the forward: %s", said)
			}
			hp.Reload()
			if after := hp.Run("forward", "show"); after != before {
				t.Errorf("forwards changed:\n%s\nwere:\n%s", after, before)
			}
		})
	}
	if home.Scrape(t, s.Network, "hairpin_config_last_reload_successful") != 0 {
		t.Error("the metrics say that the last reload went well")
	}
	if now := liveGeneration(t, s.HP); now != generation {
		t.Errorf("generation %d, was %d", now, generation)
	}
	s.Advance(10)
	s.Finish()
}

// Ten thousand forwards are added and removed by one swap each. Existing connections lose nothing.
func TestManyForwardsUnderTraffic(t *testing.T) {
	s := home.StartService(t, "tc")
	few, err := os.ReadFile(s.HP.File)
	if err != nil {
		t.Fatal(err)
	}
	var many strings.Builder
	many.Write(few)
	for i := range 10_000 {
		fmt.Fprintf(&many, "\n[[forward]]\nname = \"f%d\"\nprotocol = [\"tcp\"]\nport = \"%d\"\nto = \"192.168.1.20:8080\"\n", i, 10_000+i)
	}

	generation := liveGeneration(t, s.HP)
	for i, step := range []struct {
		file     string
		forwards int
	}{{many.String(), 10_002}, {string(few), 2}, {many.String(), 10_002}} {
		s.HP.Write(step.file)
		s.HP.Run("apply")
		if got, want := liveGeneration(t, s.HP), generation+uint32(i)+1; got != want {
			t.Errorf("generation %d after apply %d, want %d", got, i, want)
		}
		if got := len(home.Show(t, s.HP, "forward", "show").Forwards); got != step.forwards {
			t.Errorf("%d forwards, want %d", got, step.forwards)
		}
		s.Advance(10)
	}
	for _, port := range []string{"10000", "14999", "19999"} {
		c, err := s.Client.DialTCP(lab.External+":"+port, "", lab.Patience)
		if err != nil {
			t.Errorf("port %s: %v", port, err)
			continue
		}
		c.Close()
	}
	s.Finish()
}

// liveGeneration reads how often the forwards were swapped.
func liveGeneration(t *testing.T, hp *lab.Hairpin) uint32 {
	t.Helper()
	live, err := ebpf.LoadPinnedMap(filepath.Join(hp.Dir, "datapath", "maps", bpf.HairpinMapLive), nil)
	if err != nil {
		t.Fatalf("open live: %v", err)
	}
	defer live.Close()
	var value bpf.HairpinLive
	if err := live.Lookup(uint32(0), &value); err != nil {
		t.Fatalf("read live: %v", err)
	}
	return value.Generation
}
