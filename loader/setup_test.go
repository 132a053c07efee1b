// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"hairpin/test/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// connections is the table size in most tests; small tables load faster.
const connections = 1024

// newDir returns a path for pins that does not exist yet. Its mount is removed at the end of the test.
func newDir(t *testing.T) string {
	t.Helper()
	lab.NeedRoot(t)
	dir := filepath.Join(t.TempDir(), "pins")
	t.Cleanup(func() {
		for unix.Unmount(dir, unix.MNT_DETACH) == nil {
		}
	})
	return dir
}

// router is a host with interfaces wan0 and lan0, and a directory for pins.
type router struct {
	*lab.Host
	t   *testing.T
	dir string
}

func newRouter(t *testing.T) *router {
	t.Helper()
	r := &router{Host: lab.NewHost(t, "router"), t: t, dir: newDir(t)}
	lab.Cable(r.Host, "wan0", r.Host, "wan1")
	lab.Cable(r.Host, "lan0", r.Host, "lan1")
	return r
}

// do runs fn in the network namespace of the router; the test ends if fn fails.
func (r *router) do(what string, fn func() error) {
	r.t.Helper()
	if err := r.Do(fn); err != nil {
		r.t.Fatalf("%s: %v", what, err)
	}
}

// mustLoad calls Load, with small tables unless opts give a size.
func mustLoad(t *testing.T, opts Options) *Datapath {
	t.Helper()
	if opts.MaxConnections == 0 {
		opts.MaxConnections = connections
	}
	d, err := Load(opts)
	if err != nil {
		t.Fatalf("load: %+v", err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

func (r *router) load(opts Options) (d *Datapath) {
	r.t.Helper()
	opts.Dir = r.dir
	r.do("load", func() error {
		d = mustLoad(r.t, opts)
		return nil
	})
	return d
}

func (r *router) tryAttach(d *Datapath, dev string, mode Mode) (Attachment, error) {
	return r.tryHooks(d, dev, Hooks{Mode: mode})
}

func (r *router) tryHooks(d *Datapath, dev string, want Hooks) (a Attachment, err error) {
	err = r.Do(func() error {
		a, err = d.Attach(dev, want)
		return err
	})
	return a, err
}

// guard attaches to an interface as to a WAN, with the leak guard.
func (r *router) guard(d *Datapath, dev string, mode Mode) Attachment {
	r.t.Helper()
	a, err := r.tryHooks(d, dev, Hooks{mode, true})
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

func (r *router) attach(d *Datapath, dev string, mode Mode) Attachment {
	r.t.Helper()
	a, err := r.tryAttach(d, dev, mode)
	if err != nil {
		r.t.Fatal(err)
	}
	return a
}

func (r *router) attachments(d *Datapath) (list []Attachment) {
	r.t.Helper()
	r.do("list attachments", func() (err error) {
		list, err = d.Attachments()
		return err
	})
	return list
}

func (r *router) upgrade(d *Datapath) error {
	return r.Do(d.Upgrade)
}

func (r *router) remove() {
	r.t.Helper()
	r.do("remove", func() error { return Remove(r.dir) })
}

// hooks are the programs on an interface, of any owner.
type hooks struct {
	TCX     []ebpf.ProgramID
	Egress  []ebpf.ProgramID
	XDP     uint32
	XDPMode uint32
	Filters []string
	Qdiscs  []string
}

// hooks reads the programs on an interface from the kernel, without the loader's code.
func (r *router) hooks(dev string) (h hooks) {
	r.t.Helper()
	r.do("look at "+dev, func() error {
		device, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		for list, side := range map[*[]ebpf.ProgramID]ebpf.AttachType{&h.TCX: ebpf.AttachTCXIngress, &h.Egress: ebpf.AttachTCXEgress} {
			attached, err := link.QueryPrograms(link.QueryOptions{Target: device.Attrs().Index, Attach: side})
			if err != nil {
				return err
			}
			for _, program := range attached.Programs {
				*list = append(*list, program.ID)
			}
		}
		if xdp := device.Attrs().Xdp; xdp != nil && xdp.Attached {
			h.XDP, h.XDPMode = xdp.ProgId, xdp.AttachMode
		}
		qdiscs, err := netlink.QdiscList(device)
		if err != nil {
			return err
		}
		for _, qdisc := range qdiscs {
			h.Qdiscs = append(h.Qdiscs, qdisc.Type())
			if qdisc.Type() == "clsact" {
				h.Filters, err = filters(device)
			}
		}
		return err
	})
	return h
}

func filters(device netlink.Link) (list []string, err error) {
	for _, parent := range []uint32{netlink.HANDLE_MIN_INGRESS, netlink.HANDLE_MIN_EGRESS} {
		found, err := netlink.FilterList(device, parent)
		if err != nil {
			return nil, err
		}
		for _, filter := range found {
			text := fmt.Sprintf("%x priority %d", parent, filter.Attrs().Priority)
			if f, ok := filter.(*netlink.BpfFilter); ok {
				text += fmt.Sprintf(" handle %x %s program %d", f.Handle, f.Name, f.Id)
			}
			list = append(list, text)
		}
	}
	return list, nil
}

func (r *router) want(when, dev string, want hooks) {
	r.t.Helper()
	if got := r.hooks(dev); !reflect.DeepEqual(got, want) {
		r.t.Errorf("%s %s:\n got %+v\nwant %+v", dev, when, got, want)
	}
}

// pinned lists the relative paths of all pins, nil if the directory does not exist. It leaves out the
// kernel's own files.
func (r *router) pinned() (list []string) {
	r.t.Helper()
	return pinnedIn(r.t, r.dir)
}

func pinnedIn(t *testing.T, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && path != dir && !strings.Contains(entry.Name(), ".") {
			list = append(list, strings.TrimPrefix(path, dir+"/"))
		}
		return err
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("list pins: %v", err)
	}
	return list
}

func isBPF(dir string) bool {
	var stat unix.Statfs_t
	return unix.Statfs(dir, &stat) == nil && stat.Type == unix.BPF_FS_MAGIC
}

// nothingLeft fails the test if the mount, pins or the directory exist.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	if isBPF(dir) {
		t.Errorf("left mounted on %s, with %q", dir, pinnedIn(t, dir))
	}
	if _, err := os.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("pin directory left: %v", err)
	}
}

// foreign loads a program of another owner that passes every packet.
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

func mustProgramID(t *testing.T, program *ebpf.Program) ebpf.ProgramID {
	t.Helper()
	info, err := program.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

func mustMapID(t *testing.T, m *ebpf.Map) ebpf.MapID {
	t.Helper()
	info, err := m.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	return id
}

var errInjected = errors.New("injected fault")

// setFault makes fail decide which steps fail, until the test ends.
func setFault(t *testing.T, fail func(step string) error) {
	before := fault
	fault = fail
	t.Cleanup(func() { fault = before })
}

// eachFault runs attempt again and again; each time the next step fails, until no step is left. Every
// failed attempt must return the injected error. Then eachFault calls after with the name of the step.
func eachFault(t *testing.T, attempt func() error, after func(step string)) {
	t.Helper()
	var steps []string
	left := 0
	setFault(t, func(step string) error {
		if left--; left == 0 {
			steps = append(steps, step)
			return errInjected
		}
		return nil
	})
	for at := 1; ; at++ {
		left = at
		known := len(steps)
		err := attempt()
		if len(steps) == known {
			if err != nil {
				t.Errorf("without a fault: %v", err)
			}
			break
		}
		step := steps[known]
		if !errors.Is(err, errInjected) {
			t.Errorf("%s failed: error %v, want the injected one", step, err)
		}
		after(step)
		if t.Failed() {
			break
		}
	}
	left = 0
	if len(steps) == 0 {
		t.Error("no step failed")
	}
	t.Logf("faults at: %s", strings.Join(steps, ", "))
}

// wantError checks that err wraps is, if not nil, and contains the words that a user needs.
func wantError(t *testing.T, err, is error, words ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one with %q", words)
		return
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
