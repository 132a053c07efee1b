// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Fatal("needs root: sudo make test")
	}
}

// newNetNS gives the test a network namespace of its own. Its thread ends with the test.
func newNetNS(t *testing.T) {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal("make network namespace:", err)
	}
}

// newDir returns a path for pins. What is there at the end of the test is removed.
func newDir(t *testing.T) string {
	t.Helper()
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "pins")
	t.Cleanup(func() {
		if err := Remove(dir); err != nil {
			t.Error("clean up:", err)
		}
	})
	return dir
}

func mustLoad(t *testing.T, opts Options) *Datapath {
	t.Helper()
	if opts.MaxConnections == 0 {
		opts.MaxConnections = 2048
	}
	d, err := Load(opts)
	if err != nil {
		t.Fatalf("load: %+v", err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// mustVeth makes a pair of interfaces, both up, and returns the index of the first.
func mustVeth(t *testing.T, name, peer string) int {
	t.Helper()
	pair := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal("make veth:", err)
	}
	for _, end := range []string{name, peer} {
		if err := netlink.LinkSetUp(mustLink(t, end)); err != nil {
			t.Fatal("set up veth:", err)
		}
	}
	return mustLink(t, name).Attrs().Index
}

func mustLink(t *testing.T, name string) netlink.Link {
	t.Helper()
	dev, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatalf("look up %s: %v", name, err)
	}
	return dev
}

func mustAttach(t *testing.T, d *Datapath, name string, mode Mode) Attachment {
	t.Helper()
	a, err := d.Attach(name, mode)
	if err != nil {
		t.Fatalf("attach to %s in mode %s: %v", name, mode, err)
	}
	return a
}

func mustAttachments(t *testing.T, d *Datapath) []Attachment {
	t.Helper()
	list, err := d.Attachments()
	if err != nil {
		t.Fatal("list attachments:", err)
	}
	return list
}

// foreignProgram is somebody else's, of a kind that lets every packet pass.
func foreignProgram(t *testing.T, kind ebpf.ProgramType, verdict int32) *ebpf.Program {
	t.Helper()
	program, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name:         "foreign",
		Type:         kind,
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()},
		License:      "GPL",
	})
	if err != nil {
		t.Fatal("load foreign program:", err)
	}
	t.Cleanup(func() { program.Close() })
	return program
}

// wantError checks that an error says what a user needs.
func wantError(t *testing.T, err error, is error, words ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one with %q", words)
	}
	if is != nil && !errors.Is(err, is) {
		t.Errorf("error %q is not %q", err, is)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("error %q does not say %q", err, word)
		}
	}
}

// failAt makes one step fail until the test, or the returned function, ends it.
func failAt(t *testing.T, step string) (reached func() bool) {
	t.Helper()
	hit := false
	fault = func(at string) error {
		if at == step {
			hit = true
			return fmt.Errorf("%s: %w", step, errFault)
		}
		return nil
	}
	t.Cleanup(noFault)
	return func() bool { return hit }
}

var errFault = errors.New("injected fault")

func noFault() { fault = func(string) error { return nil } }

// tree lists everything below a directory.
func tree(t *testing.T, dir string) []string {
	t.Helper()
	var paths []string
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err == nil && !strings.Contains(entry.Name(), ".") {
			paths = append(paths, strings.TrimPrefix(path, dir))
		}
		return err
	})
	if err != nil {
		t.Fatal("list pins:", err)
	}
	return paths
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}
