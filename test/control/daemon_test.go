// SPDX-License-Identifier: Apache-2.0

package control

import (
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// The daemon is not in the way of packets: killed without warning it takes nothing along, and
// the next one finds everything as it is.
func TestKilledDaemon(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			s := home.StartService(t, mode)
			s.Advance(100)
			before := home.ForwardNamed(t, s.HP, "web")

			s.HP.Kill()
			s.Advance(100)
			withoutDaemon(t, s)

			s.HP.Start()
			s.Advance(100)
			after := home.ForwardNamed(t, s.HP, "web")
			if after.Packets <= before.Packets || after.Bytes <= before.Bytes {
				t.Errorf("counters did not go on: %+v before, %+v after", before, after)
			}
			home.ForwardNamed(t, s.HP, "late")
			s.Finish()
		})
	}
}

// withoutDaemon has the CLI list and change what runs.
func withoutDaemon(t *testing.T, s *home.Service) {
	t.Helper()
	if got := len(home.Show(t, s.HP, "forward", "show").Forwards); got != 2 {
		t.Errorf("%d forwards listed, want 2", got)
	}
	found := make(map[string]bool)
	for _, c := range home.Show(t, s.HP, "conn", "show", "proto", "tcp").Connections {
		if c.State == "established" {
			found[c.Path] = true
		}
	}
	if !found["wan"] || !found["hairpin"] {
		t.Errorf("established connections listed of paths %v, want wan and hairpin", found)
	}
	s.HP.Run("forward", "add", "late", "tcp", "8443", "to", lab.Server+":8080")
	for _, from := range []*lab.Host{s.Internet, s.Client} {
		c, err := from.DialTCP(lab.External+":8443", "", lab.Patience)
		if err != nil {
			t.Errorf("forward added without daemon: %v", err)
			continue
		}
		if err := c.Echo(10_000); err != nil {
			t.Errorf("forward added without daemon: %v", err)
		}
		c.Close()
	}
}

// Programs are replaced under traffic fifty times in each mode; each upgrade loads new programs.
func TestUpgradesUnderTraffic(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			s := home.StartService(t, mode)
			old := linkedPrograms(t, s.HP.Dir)
			if len(old) == 0 {
				t.Fatal("no pinned link found")
			}
			for range 50 {
				s.HP.Run("upgrade")
				linked := linkedPrograms(t, s.HP.Dir)
				for path, program := range linked {
					if old[path] == program {
						t.Fatalf("link %s still holds program %d", path, program)
					}
				}
				if len(linked) != len(old) {
					t.Fatalf("%d links before the upgrade, %d after", len(old), len(linked))
				}
				old = linked
				s.Advance(1)
			}
			s.Finish()
		})
	}
}

// linkedPrograms returns the program of each link pinned below a directory.
func linkedPrograms(t *testing.T, dir string) map[string]ebpf.ProgramID {
	t.Helper()
	programs := make(map[string]ebpf.ProgramID)
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return nil // a map or a program
		}
		defer l.Close()
		info, err := l.Info()
		if err != nil {
			return err
		}
		programs[path] = info.Program
		return nil
	})
	if err != nil {
		t.Fatalf("look for links: %v", err)
	}
	return programs
}
