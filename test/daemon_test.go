// SPDX-License-Identifier: Apache-2.0

package test

import (
	"errors"
	"io/fs"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"hairpin/test/lab"
)

// service is a network where hairpin serves and traffic is on its way, from the Internet
// and reflected.
type service struct {
	*lab.Network
	hp    *lab.Hairpin
	loads []*lab.Load
}

// startService also watches that nothing arrives untranslated anywhere while the test lasts.
func startService(t *testing.T, mode string) *service {
	t.Helper()
	s := &service{Network: lab.NewNetwork(t)}
	s.SetOffloads(offloadsFor(mode))
	s.Server.ServeTCP(":8080")
	s.Server.ServeUDP(":5353")
	s.hp = start(t, s.Network, mode, forwards)

	answers := func(p *lab.Packet) error {
		if p.Src.Addr() != externalAddress {
			return errors.New("not from the external address")
		}
		return nil
	}
	s.Internet.Capture("eth0", answers)
	s.Client.Capture("eth0", answers)
	internet := ways(s.Network)[0].addr
	s.Server.Capture("eth0", func(p *lab.Packet) error {
		if src := p.Src.Addr(); src != internet && src != routerAddress {
			return errors.New("not from whom the server should see")
		}
		return nil
	})
	for _, from := range []*lab.Host{s.Internet, s.Client} {
		s.loads = append(s.loads, from.StartLoad(lab.External+":80", lab.External+":53"))
	}
	return s
}

// advance returns when all traffic has gone on for a good while.
func (s *service) advance(rounds int64) {
	for _, load := range s.loads {
		load.Advance(rounds)
	}
}

// finish ends the traffic; what it lost fails the test.
func (s *service) finish() {
	for _, load := range s.loads {
		load.Stop()
	}
}

// The daemon is not in the way of packets: killed without warning it takes nothing along, and
// the next one finds everything as it is.
func TestKilledDaemon(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			s := startService(t, mode)
			s.advance(100)
			before := forwardNamed(t, s.hp, "web")

			s.hp.Kill()
			s.advance(100)
			withoutDaemon(t, s)

			s.hp.Start()
			s.advance(100)
			after := forwardNamed(t, s.hp, "web")
			if after.Packets <= before.Packets || after.Bytes <= before.Bytes {
				t.Errorf("counters did not go on: %+v before, %+v after", before, after)
			}
			forwardNamed(t, s.hp, "late")
			s.finish()
		})
	}
}

// withoutDaemon has the CLI list and change what runs.
func withoutDaemon(t *testing.T, s *service) {
	t.Helper()
	if got := len(show(t, s.hp, "forward", "show").Forwards); got != 2 {
		t.Errorf("%d forwards listed, want 2", got)
	}
	found := make(map[string]bool)
	for _, c := range show(t, s.hp, "conn", "show", "proto", "tcp").Connections {
		if c.State == "established" {
			found[c.Path] = true
		}
	}
	if !found["wan"] || !found["hairpin"] {
		t.Errorf("established connections listed of paths %v, want wan and hairpin", found)
	}
	s.hp.Run("forward", "add", "late", "tcp", "8443", "to", lab.Server+":8080")
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

// Programs are replaced under traffic a hundred times, every time by really new ones.
func TestUpgradesUnderTraffic(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			s := startService(t, mode)
			old := linkedPrograms(t, s.hp.Dir)
			if len(old) == 0 {
				t.Fatal("no pinned link found")
			}
			for range 100 {
				s.hp.Run("upgrade")
				linked := linkedPrograms(t, s.hp.Dir)
				for path, program := range linked {
					if old[path] == program {
						t.Fatalf("link %s still holds program %d", path, program)
					}
				}
				if len(linked) != len(old) {
					t.Fatalf("%d links before the upgrade, %d after", len(old), len(linked))
				}
				old = linked
				s.advance(1)
			}
			s.finish()
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
