// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/test/lab"
)

func TestLoadCreatesThenAdopts(t *testing.T) {
	dir := newDir(t)
	first := mustLoad(t, Options{Dir: dir})
	if first.Adopted() {
		t.Error("the first load says that it adopted")
	}
	if err := first.Objects().Routes.Put(uint32(0), bpf.HairpinRoutes{Generation: 7}); err != nil {
		t.Fatal(err)
	}
	first.Close()

	second := mustLoad(t, Options{Dir: dir})
	if !second.Adopted() {
		t.Error("the second load says that it made the datapath")
	}
	var routes bpf.HairpinRoutes
	if err := second.Objects().Routes.Lookup(uint32(0), &routes); err != nil || routes.Generation != 7 {
		t.Errorf("adopted map holds %d (%v), want 7", routes.Generation, err)
	}
	if left := slices.DeleteFunc(pinnedIn(t, dir), func(p string) bool { return !strings.Contains(p, asidePrefix) }); len(left) > 0 {
		t.Errorf("leftovers: %q", left)
	}
}

func TestLoadFillsTheSlots(t *testing.T) {
	spec, err := newSpec(0)
	if err != nil {
		t.Fatal(err)
	}
	d := mustLoad(t, Options{Dir: newDir(t)})
	filled := 0
	for name, m := range each[ebpf.Map](&d.Objects().HairpinMaps) {
		if spec.Maps[name].Type != ebpf.ArrayOfMaps {
			continue
		}
		for _, entry := range spec.Maps[name].Contents {
			var inner *ebpf.Map
			if err := (*m).Lookup(entry.Key, &inner); err != nil {
				t.Errorf("slot %v of %s: %v", entry.Key, name, err)
				continue
			}
			filled++
			inner.Close()
		}
	}
	if filled < 4 {
		t.Errorf("only %d slots are filled", filled)
	}
}

func TestTakeSlotsTakesAll(t *testing.T) {
	spec, err := newSpec(0)
	if err != nil {
		t.Fatal(err)
	}
	slots := takeSlots(spec.Maps)
	for _, name := range []string{bpf.HairpinMapForwards, bpf.HairpinMapAllow} {
		for key := range uint32(2) {
			if !slices.ContainsFunc(slots, func(s slot) bool { return s.outer == name && s.key == key && spec.Maps[s.inner] != nil }) {
				t.Errorf("slot %d of %s is not among %v", key, name, slots)
			}
		}
		if left := spec.Maps[name].Contents; len(left) > 0 {
			t.Errorf("%s is left with %v", name, left)
		}
	}
	if err := fillSlots(nil, slots[:1]); err == nil {
		t.Error("filled a slot with a map that is not there")
	}
}

func TestPinsAreForRootAlone(t *testing.T) {
	dir := newDir(t)
	mustLoad(t, Options{Dir: dir})
	for _, path := range append(pinnedIn(t, dir), "") {
		info, err := os.Lstat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s has mode %v", path, info.Mode())
		}
	}
}

func TestLoadSizesTheTables(t *testing.T) {
	type family struct {
		entries, places uint32                             // entries: for how many there must be room
		limits          [bpf.HairpinPlaceKindPLACES]uint32 // limits by kind: half-open TCP, proven, other; established TCP, other; closing
	}
	for _, test := range []struct {
		connections uint32
		v4, v6      family
	}{
		// Even this small size leaves room for half-open and closing connections. A ring has at least one
		// place.
		{1, family{2*(512+1024+512+1+1+256) + 256, 512 + 1024 + 512 + (1 + 16) + 1 + 256, [...]uint32{512, 1024, 512, 1, 0, 256}},
			family{2*(512+1024+512+1+1+256) + 256, 512 + 1024 + 512 + (1 + 16) + 1 + 256, [...]uint32{512, 1024, 512, 1, 0, 256}}},
		{16_000, family{2*(2000+1024+1000+12000+4000+750) + 256, 2000 + 1024 + 1000 + (12000 + 2250 + 16) + 4000 + 750, [...]uint32{2000, 1024, 1000, 12000, 4000, 750}},
			family{2*(512+1024+512+3000+1000+256) + 256, 512 + 1024 + 512 + (3000 + 561 + 16) + 1000 + 256, [...]uint32{512, 1024, 512, 3000, 1000, 256}}},
	} {
		d := mustLoad(t, Options{Dir: newDir(t), MaxConnections: test.connections})
		o := d.Objects()
		var got [2]family
		for v6, m := range []*ebpf.Map{o.Conns4, o.Conns6} {
			got[v6].entries = [2]family{test.v4, test.v6}[v6].entries
			// Three slots a bucket, and at least four ninths of them free; few more buckets than that.
			if buckets, room := m.MaxEntries(), got[v6].entries/5*3; !big.NewInt(int64(buckets)).ProbablyPrime(0) || buckets < room || buckets > room+200 {
				t.Errorf("%d connections: %s has %d buckets", test.connections, m, buckets)
			}
		}
		var table bpf.HairpinTable
		if err := o.Tables.Lookup(uint32(0), &table); err != nil || table.Buckets != [2]uint32{o.Conns4.MaxEntries(), o.Conns6.MaxEntries()} || table.Random[0] == table.Random[9] {
			t.Errorf("%d connections: the datapath is told %+v, %v", test.connections, table, err)
		}
		next := uint32(0)
		for i := range 2 * uint32(bpf.HairpinPlaceKindPLACES) {
			index := i%uint32(bpf.HairpinPlaceKindPLACES)*2 + i/uint32(bpf.HairpinPlaceKindPLACES) // IPv4's come first
			var ring bpf.HairpinRing
			if err := o.Rings.Lookup(index, &ring); err != nil {
				t.Fatal(err)
			}
			kind, v6 := index/2, index%2
			got[v6].limits[kind] = ring.Limit
			if ring.Base != next || ring.Size < max(ring.Limit, 1) || ring.Count != 0 {
				t.Errorf("%d connections: ring %d is %+v, want it to begin at %d", test.connections, index, ring, next)
			}
			got[v6].places += ring.Size
			next += ring.Size
		}
		if want := [2]family{test.v4, test.v6}; got != want {
			t.Errorf("%d connections: got %+v, want %+v", test.connections, got, want)
		}
		if next != o.Places.MaxEntries() {
			t.Errorf("%d connections: the rings end at %v of %d places", test.connections, next, o.Places.MaxEntries())
		}
		if connections, err := connectionsOf(&o.HairpinMaps); err != nil || connections != test.connections {
			t.Errorf("%d connections: read back as %d, %v", test.connections, connections, err)
		}
	}
	_, err := Load(Options{Dir: newDir(t), MaxConnections: maxConnections + 1})
	wantError(t, err, nil, "268435457", "268435456")
}

func TestAdoptKeepsTheSize(t *testing.T) {
	dir := newDir(t)
	mustLoad(t, Options{Dir: dir, MaxConnections: 4096}).Close()

	_, err := Load(Options{Dir: dir, MaxConnections: 8192})
	wantError(t, err, nil, "4096", "8192", "detach --all")

	d, err := Load(Options{Dir: dir})
	if err != nil {
		t.Fatal("load at any size:", err)
	}
	defer d.Close()
	if got, err := connectionsOf(&d.Objects().HairpinMaps); err != nil || got != 4096 {
		t.Errorf("room for %d connections, want 4096 (%v)", got, err)
	}
}

func TestOpenHasEveryObject(t *testing.T) {
	dir := newDir(t)
	mustLoad(t, Options{Dir: dir}).Close()
	d, err := Open(Options{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	o := d.Objects()
	if o.Forwards == nil || o.Allow == nil || o.StandIns == nil || o.Conns4 == nil || o.Conns6 == nil || o.HairpinXdp == nil || o.HairpinTc == nil {
		t.Fatalf("objects missing: %+v", o)
	}
	// The pinned program still runs after every process has closed its descriptors.
	request := bpf.HairpinEndRequest{Found: 9}
	var answer bpf.HairpinEndRequest
	if _, err := o.HairpinEnd.Run(&ebpf.RunOptions{Context: &request, ContextOut: &answer}); err != nil {
		t.Fatal("run hairpin_end:", err)
	}
	if answer.Found != 0 {
		t.Errorf("an empty table has %d connections to end", answer.Found)
	}
}

func TestOpenWithoutDatapath(t *testing.T) {
	dir := newDir(t)
	_, err := Open(Options{Dir: dir})
	wantError(t, err, ErrNotLoaded, dir)
	if exists(dir) {
		t.Error("Open made the directory")
	}
	if err := mountDir(dir); err != nil {
		t.Fatal(err)
	}
	_, err = Open(Options{Dir: dir})
	wantError(t, err, ErrNotLoaded, dir)
}

func TestOtherSchemaIsRefused(t *testing.T) {
	dir := newDir(t)
	d := mustLoad(t, Options{Dir: dir})
	if err := d.Objects().Schema.Put(uint32(0), uint32(99)); err != nil {
		t.Fatal(err)
	}
	before := pinnedIn(t, dir)
	_, err := Load(Options{Dir: dir})
	wantError(t, err, ErrSchema, "99", "detach --all")
	_, err = Open(Options{Dir: dir})
	wantError(t, err, ErrSchema, "99")
	if diff := cmp.Diff(before, pinnedIn(t, dir)); diff != "" {
		t.Errorf("pins changed: %s", diff)
	}
}

// TestPinsOfSchema1AreRefused: schema 1 lacks maps and has smaller values. The error must name the schema,
// not the maps.
func TestPinsOfSchema1AreRefused(t *testing.T) {
	dir := newDir(t)
	d := mustLoad(t, Options{Dir: dir})
	if err := d.Objects().Schema.Put(uint32(0), uint32(1)); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{bpf.HairpinMapTargets, bpf.HairpinMapHeldFragments, bpf.HairpinMapIcmpBudgets} {
		if err := os.Remove(pins(dir).mapPin(name)); err != nil {
			t.Fatal(err)
		}
	}
	want := fmt.Sprintf("schema 1 in %s, but this version needs %d; use the version that created it, or run \"hairpin detach --all\" (this ends every connection), then start hairpin again", dir, bpf.HairpinSchemaSCHEMA)
	_, err := Load(Options{Dir: dir})
	wantError(t, err, ErrSchema, want)
	_, err = Open(Options{Dir: dir})
	wantError(t, err, ErrSchema, want)
	if err := Remove(dir); err != nil {
		t.Error("remove:", err)
	}
}

func TestOtherMapLayoutIsRefused(t *testing.T) {
	dir := newDir(t)
	mustLoad(t, Options{Dir: dir}).Close()
	pin := pins(dir).mapPin(bpf.HairpinMapInterfaces)
	if err := os.Remove(pin); err != nil {
		t.Fatal(err)
	}
	other, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Hash, KeySize: 4, ValueSize: 12, MaxEntries: 10})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := other.Pin(pin); err != nil {
		t.Fatal(err)
	}
	_, err = Load(Options{Dir: dir})
	wantError(t, err, ErrSchema, "interfaces", "ValueSize", "detach --all")
}

// TestMissingPin: each pin is removed in turn: the error names the pin, and Remove works. The verifier takes nearly
// all the time of a Load, so each turn pins one set of maps and programs again.
func TestMissingPin(t *testing.T) {
	dir := newDir(t)
	p := pins(dir)
	coll := newPinnable(t)
	p.put(t, coll)
	var files []string
	for _, path := range pinnedIn(t, p.datapath()) {
		if info, err := os.Lstat(filepath.Join(p.datapath(), path)); err == nil && !info.IsDir() {
			files = append(files, path)
		}
	}
	if len(files) < 20 {
		t.Fatalf("found %d pins only: %q", len(files), files)
	}
	d, err := Load(Options{Dir: dir})
	if err != nil {
		t.Fatalf("load with every pin: %v", err)
	}
	d.Close()
	for _, file := range files {
		if err := os.Remove(filepath.Join(p.datapath(), file)); err != nil {
			t.Fatal(err)
		}
		_, err := Load(Options{Dir: dir})
		wantError(t, err, nil, file, "missing", "detach --all")
		if err := Remove(dir); err != nil {
			t.Fatalf("remove without %s: %v", file, err)
		}
		nothingLeft(t, dir)
		p.put(t, coll)
	}
	if err := Remove(dir); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, Options{Dir: dir}).Close()
}

// newPinnable loads the maps and programs of a datapath without pinning them.
func newPinnable(t *testing.T) *ebpf.Collection {
	t.Helper()
	spec, err := newSpec(connections)
	if err != nil {
		t.Fatal(err)
	}
	coll, _, err := newCollection(spec, new(fit))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(coll.Close)
	if err := coll.Maps[bpf.HairpinMapSchema].Put(uint32(0), uint32(bpf.HairpinSchemaSCHEMA)); err != nil {
		t.Fatal(err)
	}
	return coll
}

// put mounts a bpffs on the directory and pins coll there.
func (p pins) put(t *testing.T, coll *ebpf.Collection) {
	t.Helper()
	err := mountDir(string(p))
	// The library remembers the path of a pin, and would not pin at that path again.
	for _, m := range coll.Maps {
		err = errors.Join(err, m.Unpin())
	}
	for _, program := range coll.Programs {
		err = errors.Join(err, program.Unpin())
	}
	if err := errors.Join(err, p.pinAside(coll, nil), os.Rename(p.aside(), p.datapath())); err != nil {
		t.Fatal(err)
	}
}

func TestAllPinsGone(t *testing.T) {
	dir := newDir(t)
	d := mustLoad(t, Options{Dir: dir})
	for _, sub := range []string{pins(dir).maps(), pins(dir).programs()} {
		if err := os.RemoveAll(sub); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(sub, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	again := mustLoad(t, Options{Dir: dir})
	if again.Adopted() {
		t.Error("adopted what is not there")
	}
	wantError(t, d.Detach(1), ErrNotLoaded, "removed")
}

// TestFailedCreation: a creator that fails or is killed leaves nothing that disturbs the next creator.
func TestFailedCreation(t *testing.T) {
	dir := newDir(t)
	for _, step := range []string{"pin conns4", "pin hairpin_tc", "rename"} {
		reached := false
		setFault(t, func(at string) error {
			if at != step {
				return nil
			}
			reached = true
			return errInjected
		})
		_, err := Load(Options{Dir: dir, MaxConnections: connections})
		wantError(t, err, errInjected)
		if !reached {
			t.Errorf("step %q does not exist", step)
		}
		if left := pinnedIn(t, dir); len(left) > 0 {
			t.Errorf("after failed %q: %q", step, left)
		}
	}
	setFault(t, func(string) error { return nil })
	// The next process removes what a killed process left.
	killed := filepath.Join(dir, asidePrefix+"1", "maps")
	if err := os.MkdirAll(killed, 0o700); err != nil {
		t.Fatal(err)
	}
	mustLoad(t, Options{Dir: dir})
	if exists(filepath.Dir(killed)) {
		t.Error("the leftover of a killed creator is still there")
	}
}

func TestUntrustedPinsAreRefused(t *testing.T) {
	dir := newDir(t)
	mustLoad(t, Options{Dir: dir}).Close()
	program := filepath.Join(pins(dir).programs(), bpf.HairpinProgHairpinTc)

	for _, c := range []struct {
		name string
		do   func() error
		undo func() error
		want []string
	}{
		{"a pin of somebody else", func() error { return os.Chown(program, 65534, 0) }, func() error { return os.Chown(program, 0, 0) }, []string{program, "not owned by root"}},
		{"a pin that others write", func() error { return os.Chmod(program, 0o620) }, func() error { return os.Chmod(program, 0o600) }, []string{program, "written by others"}},
		{"a directory of somebody else", func() error { return os.Chown(dir, 65534, 0) }, func() error { return os.Chown(dir, 0, 0) }, []string{dir, "not owned by root"}},
		{"a directory that others write", func() error { return os.Chmod(dir, 0o777) }, func() error { return os.Chmod(dir, 0o700) }, []string{dir, "written by others"}},
	} {
		if err := c.do(); err != nil {
			t.Fatal(err)
		}
		_, err := Load(Options{Dir: dir})
		wantError(t, err, nil, c.want...)
		_, err = Open(Options{Dir: dir})
		wantError(t, err, nil, c.want...)
		if err := c.undo(); err != nil {
			t.Fatal(err)
		}
	}
	mustLoad(t, Options{Dir: dir})
}

func TestMissingPrivilege(t *testing.T) {
	for _, c := range []struct {
		drop []int
		want []string
	}{
		{[]int{unix.CAP_BPF, unix.CAP_SYS_ADMIN}, []string{"CAP_BPF"}},
		{[]int{unix.CAP_PERFMON, unix.CAP_SYS_ADMIN}, []string{"CAP_PERFMON"}},
		{[]int{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}, []string{"CAP_NET_ADMIN"}},
	} {
		dir := newDir(t)
		if err := mountDir(dir); err != nil {
			t.Fatal(err)
		}
		err := without(c.drop, func() error {
			d, err := Load(Options{Dir: dir, MaxConnections: connections})
			if err == nil {
				d.Close()
			}
			return err
		})
		wantError(t, err, ErrPermission, c.want...)
		if left := pinnedIn(t, dir); len(left) > 0 {
			t.Errorf("left behind: %q", left)
		}
	}

	dir := newDir(t)
	err := without([]int{unix.CAP_SYS_ADMIN}, func() error {
		_, err := Load(Options{Dir: dir})
		return err
	})
	wantError(t, err, ErrPermission, "CAP_SYS_ADMIN", "mount -t bpf")
	if exists(dir) {
		t.Error("the directory that could not be mounted on stays")
	}
}

// TestUnprivilegedLeavesNoDirectory: a user who may make a directory but may not mount must not leave the
// directory. A bpffs without a mode lets everybody write, and the directory would keep root from using its
// name.
func TestUnprivilegedLeavesNoDirectory(t *testing.T) {
	dir := newDir(t)
	parent := filepath.Dir(dir)
	// Other users must be able to enter the parent directories.
	for _, path := range []string{parent, filepath.Dir(parent)} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount("none", parent, "bpf", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Unmount(parent, unix.MNT_DETACH) })
	ctx := within(t, 10*time.Second)
	err := aside(become(65534), func() error {
		_, err := Lock(ctx, dir)
		return err
	})
	wantError(t, err, ErrPermission, "CAP_SYS_ADMIN")
	if exists(dir) {
		t.Error("the directory stays")
	}
	release, err := Lock(ctx, dir)
	if err != nil {
		t.Fatal("root after that:", err)
	}
	mustLoad(t, Options{Dir: dir})
	release()
}

// become changes the user of the thread, which also drops all capabilities.
func become(user uintptr) func() error {
	return func() error {
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, user, user, user); errno != 0 {
			return fmt.Errorf("change user: %w", errno)
		}
		return nil
	}
}

// TestFewPrivilegesAreEnough: the daemon needs only these capabilities if the bpffs is already mounted.
func TestFewPrivilegesAreEnough(t *testing.T) {
	r := newRouter(t)
	if err := mountDir(r.dir); err != nil {
		t.Fatal(err)
	}
	var rest []int
	for c := range unix.CAP_LAST_CAP + 1 {
		if !slices.Contains([]int{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON}, c) {
			rest = append(rest, c)
		}
	}
	index := r.Index("wan0")
	done := make(chan error)
	// A separate thread: it cannot regain its capabilities or leave the namespace.
	go func() {
		done <- r.Do(func() error {
			if err := drop(rest); err != nil {
				return err
			}
			return serve(r.dir, index, within(t, 1))
		})
	}()
	if err := <-done; err != nil {
		t.Error(err)
	}
	r.remove()
}

// serve does the work of the daemon once.
func serve(dir string, index int, ctx context.Context) error {
	d, err := Load(Options{Dir: dir, MaxConnections: connections})
	if err != nil {
		return fmt.Errorf("load: %w", err)
	}
	defer d.Close()
	if _, err := d.Attach("wan0", Hooks{ModeXDPUntagged, true}); err != nil {
		return err
	}
	if err := d.Upgrade(); err != nil {
		return err
	}
	if _, err := Links(); err != nil {
		return err
	}
	if _, err := Follow(ctx); err != nil {
		return err
	}
	list, err := d.Attachments()
	if err != nil || len(list) != 1 {
		return fmt.Errorf("attached: %+v, %w", list, err)
	}
	return d.Detach(index)
}

// without runs f in a thread that lacks capabilities.
func without(capabilities []int, f func() error) error {
	return aside(func() error { return drop(capabilities) }, f)
}

// aside runs change and then f in a separate thread, because change cannot be undone.
func aside(change, f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its goroutine
		if err := change(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func drop(capabilities []int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return fmt.Errorf("read capabilities: %w", err)
	}
	for _, c := range capabilities {
		data[c/32].Effective &^= 1 << (c % 32)
		data[c/32].Permitted &^= 1 << (c % 32)
	}
	if err := unix.Capset(&header, &data[0]); err != nil {
		return fmt.Errorf("drop capabilities: %w", err)
	}
	return nil
}

func TestKernelFloor(t *testing.T) {
	for code, old := range map[uint32]bool{
		5<<16 | 19<<8 | 255: true,
		6<<16 | 0<<8 | 255:  true,
		6<<16 | 1<<8:        false,
		7 << 16:             false,
	} {
		err := checkVersion(code)
		if errors.Is(err, ErrKernel) != old || old != (err != nil) {
			t.Errorf("version %#x: %v", code, err)
		}
	}
	wantError(t, checkVersion(5<<16|15<<8|3), ErrKernel, "5.15", "6.1")
}

// TestVerifierErrorIsNoPermissionError: the verifier returns EACCES for a program that it rejects; no
// privilege is missing.
func TestVerifierErrorIsNoPermissionError(t *testing.T) {
	lab.NeedRoot(t)
	_, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL"})
	if err == nil {
		t.Fatal("an empty program loads")
	}
	verifier := &ebpf.VerifierError{Cause: unix.EACCES}
	if got := explain(verifier); errors.Is(got, ErrPermission) {
		t.Errorf("explained as %v", got)
	}
	if got := explain(unix.EPERM); !errors.Is(got, ErrPermission) {
		t.Errorf("EPERM explained as %v", got)
	}
}

// TestUpgradeKeepsForwards: the running forwards are in inner maps; the contents of the embedded object
// must not replace them.
func TestUpgradeKeepsForwards(t *testing.T) {
	d := mustLoad(t, Options{Dir: newDir(t)})
	o := d.Objects()
	spec, err := newSpec(0)
	if err != nil {
		t.Fatal(err)
	}
	for outer, template := range map[*ebpf.Map]string{o.Forwards: bpf.HairpinMapForwardsEmpty, o.Allow: bpf.HairpinMapAllowEmpty} {
		inner, err := ebpf.NewMap(spec.Maps[template])
		if err != nil {
			t.Fatal(err)
		}
		defer inner.Close()
		if err := outer.Put(uint32(1), inner); err != nil {
			t.Fatal(err)
		}
		want, err := mapID(inner)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.Upgrade(); err != nil {
			t.Fatal(err)
		}
		var id uint32
		if err := outer.Lookup(uint32(1), &id); err != nil || id != uint32(want) {
			t.Errorf("%s holds map %d (%v), want %d", outer, id, err, want)
		}
	}
}
