// SPDX-License-Identifier: Apache-2.0

package test

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

// attached returns the programs on an interface: those of TC, and that of XDP.
func attached(t *testing.T, router *lab.Host, dev string) (tc []ebpf.ProgramID, xdp uint32) {
	t.Helper()
	err := router.Do(func() error {
		result, err := link.QueryPrograms(link.QueryOptions{Target: router.Index(dev), Attach: ebpf.AttachTCXIngress})
		if err != nil {
			return err
		}
		for _, p := range result.Programs {
			tc = append(tc, p.ID)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("query programs of %s: %v", dev, err)
	}
	if state := router.Links()[dev].Attrs().Xdp; state != nil && state.Attached {
		xdp = state.ProgId
	}
	return tc, xdp
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

	hp := start(t, n, "xdp", forwards)
	for _, dev := range devs {
		if tc, xdp := attached(t, n.Router, dev); len(tc) == 0 || xdp == 0 {
			t.Errorf("%s: not attached: TC %v, XDP %d", dev, tc, xdp)
		}
	}
	hp.Stop()
	hp.Run("detach", "--all")
	hp.Run("detach", "--all") // nothing to do is no error

	for _, dev := range devs {
		tc, xdp := attached(t, n.Router, dev)
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
	hp := lab.NewHairpin(n.Router, config("xdp", forwards))
	if said := hp.Fail(2, "attach"); !strings.Contains(said, "lan0") || !strings.Contains(said, "XDP") {
		t.Errorf("the message does not say what is wrong with lan0: %s", said)
	}
	if said := hp.Fail(2, "run"); !strings.Contains(said, "lan0") {
		t.Errorf("the message does not say what is wrong with lan0: %s", said)
	}
	if _, xdp := attached(t, n.Router, "lan0"); xdp != uint32(theirs) {
		t.Errorf("XDP program %d on lan0, want the foreign one", xdp)
	}
	if tc, xdp := attached(t, n.Router, "wan0"); len(tc) != 0 || xdp != 0 {
		t.Errorf("wan0 keeps programs of a failed attach: TC %v, XDP %d", tc, xdp)
	}
	nothingLeft(t, hp.Dir)
}

// TestRefusedModeKeepsWhatRuns: a file asks for XDP where somebody else's XDP program is. Neither apply nor a reload changes
// anything by it, for packets or for what is told.
func TestRefusedModeKeepsWhatRuns(t *testing.T) {
	s := startService(t, "tc")
	theirs := foreignXDP(t, s.Router, "wan0")
	s.hp.Write(config("xdp", forwards))
	before, generation := s.hp.Run("forward", "show"), liveGeneration(t, s.hp)
	tc, _ := attached(t, s.Router, "wan0")
	if said := s.hp.Fail(2, "apply"); !strings.Contains(said, "wan0") {
		t.Errorf("apply does not name wan0: %s", said)
	}
	s.hp.Reload()
	s.hp.Fail(3, "diff")
	if now := s.hp.Run("forward", "show"); now != before {
		t.Errorf("forwards\n%s\nwere\n%s", now, before)
	}
	if now, xdp := attached(t, s.Router, "wan0"); !slices.Equal(now, tc) || xdp != uint32(theirs) {
		t.Errorf("wan0 has the TC programs %v and the XDP program %d, had %v and %d", now, xdp, tc, theirs)
	}
	if now := liveGeneration(t, s.hp); now != generation {
		t.Errorf("generation %d, was %d", now, generation)
	}
	if scrape(t, s.Network, "hairpin_config_last_reload_successful") != 0 {
		t.Error("the metrics say that the last reload went well")
	}
	s.advance(10)
	s.finish()
}

// TestDetachKeepsConnections: what detach leaves in the kernel goes on with the next attach.
func TestDetachKeepsConnections(t *testing.T) {
	for _, mode := range hookModes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(offloadsFor(mode))
			n.Server.ServeTCP(":8080")
			hp := lab.NewHairpin(n.Router, config(mode, forwards))
			hp.Run("attach")
			inside, outside := waiting(t, n.Client), waiting(t, n.Internet)
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
