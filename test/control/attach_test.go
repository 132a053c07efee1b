// SPDX-License-Identifier: Apache-2.0

package control

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// foreign makes a program of somebody else that lets every packet pass.
func foreign(t *testing.T, kind ebpf.ProgramType, pass int32) *ebpf.Program {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "foreign", Type: kind, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, pass), asm.Return()},
	})
	if err != nil {
		t.Fatalf("load foreign program: %v", err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// foreignTCX attaches somebody else's program beside hairpin's.
func foreignTCX(t *testing.T, router *lab.Host, dev string) ebpf.ProgramID {
	t.Helper()
	program := foreign(t, ebpf.SchedCLS, -1) // TCX_NEXT
	err := router.Do(func() error {
		l, err := link.AttachTCX(link.TCXOptions{Interface: router.Index(dev), Program: program, Attach: ebpf.AttachTCXIngress})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatalf("attach foreign program: %v", err)
	}
	return programID(t, program)
}

func programID(t *testing.T, program *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

// detach --all leaves the machine as it found it, and what is not hairpin's alone.
func TestDetachAllLeavesNothing(t *testing.T) {
	devs := []string{"wan0", "lan0", "lan1"}
	n := lab.NewNetwork(t)
	theirs := foreignTCX(t, n.Router, "wan0")
	n.Router.Run("tc", "qdisc", "add", "dev", "lan1", "clsact")
	before := make(map[string]int)
	for _, dev := range devs {
		before[dev] = len(n.Router.Qdiscs(dev))
	}

	hp := home.Start(t, n, "xdp", home.Forwards)
	for _, dev := range devs {
		if tc, xdp := n.Router.Attached(dev); len(tc) == 0 || xdp == 0 {
			t.Errorf("%s: not attached: TC %v, XDP %d", dev, tc, xdp)
		}
	}
	hp.Stop()
	hp.Run("detach", "--all")
	hp.Run("detach", "--all") // nothing to do is no error

	for _, dev := range devs {
		tc, xdp := n.Router.Attached(dev)
		if dev == "wan0" && (len(tc) != 1 || tc[0] != theirs) {
			t.Errorf("wan0: TC programs %v, want only the foreign %d", tc, theirs)
		}
		if dev != "wan0" && len(tc) != 0 || xdp != 0 {
			t.Errorf("%s: still attached: TC %v, XDP %d", dev, tc, xdp)
		}
		if now := len(n.Router.Qdiscs(dev)); now != before[dev] {
			t.Errorf("%s: %d qdiscs, were %d", dev, now, before[dev])
		}
	}
	nothingLeft(t, hp.Dir)
	hp.Fail(4, "forward", "show")
}

// nothingLeft looks for a mount and pins.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if len(entries) != 0 || err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("left in the pin directory: %v, %v", entries, err)
	}
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err == nil && stat.Type == unix.BPF_FS_MAGIC {
		t.Error("the bpffs is still mounted")
	}
}

// foreignXDP attaches somebody else's XDP program.
func foreignXDP(t *testing.T, router *lab.Host, dev string) ebpf.ProgramID {
	t.Helper()
	program := foreign(t, ebpf.XDP, 2) // XDP_PASS
	err := router.Do(func() error {
		l, err := link.AttachXDP(link.XDPOptions{Interface: router.Index(dev), Program: program})
		if err == nil {
			t.Cleanup(func() { l.Close() })
		}
		return err
	})
	if err != nil {
		t.Fatalf("attach foreign program: %v", err)
	}
	return programID(t, program)
}

// An interface that runs somebody else's XDP program is refused, and left alone.
func TestForeignXDPIsRefused(t *testing.T) {
	n := lab.NewNetwork(t)
	theirs := foreignXDP(t, n.Router, "lan0")
	hp := lab.NewHairpin(n.Router, home.Config("xdp", home.Forwards))
	if said := hp.Fail(2, "attach"); !strings.Contains(said, "lan0") || !strings.Contains(said, "XDP") {
		t.Errorf("the message does not say what is wrong with lan0: %s", said)
	}
	if said := hp.Fail(2, "run"); !strings.Contains(said, "lan0") {
		t.Errorf("the message does not say what is wrong with lan0: %s", said)
	}
	if _, xdp := n.Router.Attached("lan0"); xdp != uint32(theirs) {
		t.Errorf("XDP program %d on lan0, want the foreign one", xdp)
	}
	if tc, xdp := n.Router.Attached("wan0"); len(tc) != 0 || xdp != 0 {
		t.Errorf("wan0 keeps programs of a failed attach: TC %v, XDP %d", tc, xdp)
	}
	nothingLeft(t, hp.Dir)
}

// TestRefusedModeKeepsWhatRuns: a file asks for XDP on an interface with another program's XDP. Apply and reload refuse it;
// forwarding, diff and status stay as before.
func TestRefusedModeKeepsWhatRuns(t *testing.T) {
	s := home.StartService(t, "tc")
	theirs := foreignXDP(t, s.Router, "wan0")
	s.HP.Write(home.Config("xdp", home.Forwards))
	before, generation := s.HP.Run("forward", "show"), liveGeneration(t, s.HP)
	tc, _ := s.Router.Attached("wan0")
	if said := s.HP.Fail(2, "apply"); !strings.Contains(said, "wan0") {
		t.Errorf("apply does not name wan0: %s", said)
	}
	s.HP.Reload()
	s.HP.Fail(3, "diff")
	if now := s.HP.Run("forward", "show"); now != before {
		t.Errorf("forwards\n%s\nwere\n%s", now, before)
	}
	if now, xdp := s.Router.Attached("wan0"); !slices.Equal(now, tc) || xdp != uint32(theirs) {
		t.Errorf("wan0 has the TC programs %v and the XDP program %d, had %v and %d", now, xdp, tc, theirs)
	}
	if now := liveGeneration(t, s.HP); now != generation {
		t.Errorf("generation %d, was %d", now, generation)
	}
	if home.Scrape(t, s.Network, "hairpin_config_last_reload_successful") != 0 {
		t.Error("the metrics say that the last reload went well")
	}
	s.Advance(10)
	s.Finish()
}

// TestDetachKeepsConnections: what detach leaves in the kernel goes on with the next attach.
func TestDetachKeepsConnections(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			hp := lab.NewHairpin(n.Router, home.Config(mode, home.Forwards))
			hp.Run("attach")
			inside, outside := home.Waiting(t, n.Client), home.Waiting(t, n.Internet)
			before := hp.Run("conn", "count")
			hp.Run("detach")
			if count := hp.Run("conn", "count"); count != before {
				t.Errorf("after detach\n%s\nbefore\n%s", count, before)
			}
			hp.Run("attach")
			for _, c := range []*lab.Conn{inside, outside} {
				if err := c.Echo(10_000); err != nil {
					t.Errorf("connection after detach and attach: %v", err)
				}
			}
		})
	}
}
