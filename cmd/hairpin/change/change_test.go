// SPDX-License-Identifier: Apache-2.0

package change

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hairpin/cmd/hairpin/history"
	"hairpin/cmd/hairpin/router"
	"hairpin/cmd/hairpin/router/routertest"
	"hairpin/maps/config"
	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

// fake is a keeper on a machine in memory.
type fake struct {
	*Keeper
	machine *routertest.Machine
}

func newFake(t *testing.T) *fake {
	t.Helper()
	m := routertest.NewMachine("wan0", "lan0")
	return &fake{
		&Keeper{
			Router: router.New(router.Options{Datapath: m, Tables: m, Links: m.Links, Routes: m.Routes, Policies: m.Policies, Forwards: m.Forwards, Conntrack: m.Conntrack}),
			Store:  history.New(filepath.Join(t.TempDir(), "state")),
		},
		m,
	}
}

// files returns a configuration of files with this digest, whose only forward has it as its name.
func files(digest string) config.Config {
	cfg := routertest.Config()
	cfg.Digest, cfg.Forwards[0].Name = digest, digest
	return cfg
}

func noWatch() error { return nil }

// run applies files.
func (f *fake) run(t *testing.T, digest string) {
	t.Helper()
	out, err := f.Apply(files(digest), "apply "+digest)
	if err = errors.Join(err, out.Unkept); err != nil {
		t.Fatal(err)
	}
}

func (f *fake) want(t *testing.T, when, digest string) {
	t.Helper()
	if got := f.machine.Config.Forwards[0].Name; got != digest {
		t.Errorf("%s: %q runs, want %q", when, got, digest)
	}
}

// wait applies files that must be confirmed.
func (f *fake) wait(t *testing.T, digest string) {
	t.Helper()
	if _, waits, err := f.ApplyUntil(files(digest), "apply "+digest, time.Hour, noWatch); err != nil || !waits {
		t.Fatalf("waits %v, %v", waits, err)
	}
}

// overdue makes the time of the pending change pass.
func (f *fake) overdue(t *testing.T) {
	t.Helper()
	p, err := f.Store.Pending()
	if err != nil || p == nil {
		t.Fatalf("%+v, %v", p, err)
	}
	p.Deadline = SinceBoot()
	if err := f.Store.SetPending(*p); err != nil {
		t.Fatal(err)
	}
}

func TestUnconfirmedChangeIsSettled(t *testing.T) {
	f := newFake(t)
	f.run(t, "one")
	f.wait(t, "two")
	if reverted, err := f.Settle(); reverted != nil || err != nil {
		t.Errorf("within the time: %v, %v", reverted, err)
	}
	if err := f.Guard(); !errors.Is(err, ErrPending) {
		t.Error(err)
	}
	f.want(t, "within the time", "two")
	f.overdue(t)
	if p, err := f.Waiting(); p == nil || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
	reverted, err := f.Settle()
	if err != nil || reverted == nil || reverted.Unkept != nil || !strings.Contains(reverted.String(), `"apply two" was not confirmed in time`) {
		t.Errorf("%v, %v", reverted, err)
	}
	f.want(t, "after the time", "one")
	// Whoever comes second finds it done.
	if reverted, err := f.Settle(); reverted != nil || err != nil {
		t.Errorf("again: %v, %v", reverted, err)
	}
	if _, _, err := f.Confirm(); !errors.Is(err, ErrNothingPending) {
		t.Error(err)
	}
	if list, err := f.Store.List(); err != nil || len(list) != 1 {
		t.Errorf("an unconfirmed configuration is kept: %+v, %v", list, err)
	}
}

func TestConfirmAtTheLastMoment(t *testing.T) {
	f := newFake(t)
	f.run(t, "one")
	f.wait(t, "two")
	f.overdue(t)
	if p, unkept, err := f.Confirm(); err != nil || unkept != nil || p.Command != "apply two" {
		t.Errorf("%+v, %v, %v", p, unkept, err)
	}
	if reverted, err := f.Settle(); reverted != nil || err != nil {
		t.Errorf("%v, %v", reverted, err)
	}
	f.want(t, "confirmed", "two")
	if list, err := f.List(); err != nil || len(list) != 1 || list[0].Command != "apply one" {
		t.Errorf("%+v, %v", list, err)
	}
}

// die applies files that must be confirmed, and is killed before the swap.
func (f *fake) die(t *testing.T, digest string) {
	t.Helper()
	func() {
		defer func() { _ = recover() }()
		f.ApplyUntil(files(digest), "apply "+digest, time.Hour, func() error { panic("killed") })
	}()
	if p, err := f.Store.Pending(); p == nil || err != nil {
		t.Fatalf("%+v, %v", p, err)
	}
}

// A writer that is killed leaves what the next one finishes.
func TestKilledBeforeTheSwap(t *testing.T) {
	f := newFake(t)
	f.run(t, "one")
	f.die(t, "two")
	if p, err := f.Waiting(); p != nil || err != nil {
		t.Errorf("a change that was not made waits: %+v, %v", p, err)
	}
	if _, _, err := f.Confirm(); !errors.Is(err, ErrNothingPending) {
		t.Error(err)
	}
	f.run(t, "three")
	f.want(t, "after the next command", "three")
}

func TestRevertIsRepeated(t *testing.T) {
	f := newFake(t)
	f.run(t, "one")
	f.wait(t, "two")
	f.overdue(t)
	// A directory in the way: the swap is done, and the step after it fails, as if the process had been killed between the two.
	obstacle := filepath.Join(f.Store.Dir(), "unconfirmed.json", "x")
	if err := os.MkdirAll(obstacle, 0o700); err != nil {
		t.Fatal(err)
	}
	if reverted, err := f.Settle(); reverted == nil || err == nil {
		t.Errorf("%v, %v", reverted, err)
	}
	f.want(t, "after the first half", "one")
	if err := os.RemoveAll(filepath.Dir(obstacle)); err != nil {
		t.Fatal(err)
	}
	if reverted, err := f.Settle(); reverted == nil || err != nil {
		t.Errorf("%v, %v", reverted, err)
	}
	if p, err := f.Store.Pending(); p != nil || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestRevertThatIsRefusedIsTriedAgain(t *testing.T) {
	f := newFake(t)
	f.run(t, "one")
	f.wait(t, "two")
	f.overdue(t)
	f.machine.ApplyErr = errors.New("no memory")
	if reverted, err := f.Settle(); reverted != nil || !mapstest.Contains(err, "cannot be applied: no memory") {
		t.Errorf("%v, %v", reverted, err)
	}
	f.want(t, "refused", "two")
	f.machine.ApplyErr = nil
	if _, err := f.Settle(); err != nil {
		t.Error(err)
	}
	f.want(t, "tried again", "one")
}

func TestRefusedChangeLeavesNothing(t *testing.T) {
	f := newFake(t)
	if _, _, err := f.ApplyUntil(files("one"), "x", time.Hour, noWatch); !mapstest.Contains(err, "there is no configuration to return to") {
		t.Error(err)
	}
	f.run(t, "one")
	no := errors.New("no")
	if _, waits, err := f.ApplyUntil(files("two"), "x", time.Hour, func() error { return no }); waits || !errors.Is(err, no) {
		t.Errorf("waits %v, %v", waits, err)
	}
	f.machine.ApplyErr = no
	if _, waits, err := f.ApplyUntil(files("two"), "x", time.Hour, noWatch); waits || !errors.Is(err, no) {
		t.Errorf("waits %v, %v", waits, err)
	}
	if p, err := f.Store.Pending(); p != nil || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
	f.want(t, "refused", "one")
}

func TestRollbackEndsTheWait(t *testing.T) {
	for back, want := range map[int]string{1: "two", 2: "one"} {
		f := newFake(t)
		f.run(t, "one")
		f.run(t, "two")
		f.wait(t, "three")
		if _, err := f.Rollback(back); err != nil {
			t.Error(err)
		}
		f.want(t, "rolled back", want)
		if p, err := f.Store.Pending(); p != nil || err != nil {
			t.Errorf("%+v, %v", p, err)
		}
		if p, err := f.Store.Refused(); err != nil || p == nil || p.Digest != "three" {
			t.Errorf("%+v, %v", p, err)
		}
	}
}

func TestRollbackCountsFromWhatRuns(t *testing.T) {
	f := newFake(t)
	if _, err := f.Rollback(1); !errors.Is(err, ErrNoGeneration) {
		t.Error(err)
	}
	for _, digest := range []string{"one", "two", "three"} {
		f.run(t, digest)
	}
	for _, want := range []string{"two", "three", "two"} {
		if _, err := f.Rollback(1); err != nil {
			t.Error(err)
		}
		f.want(t, "1 back", want)
	}
	if _, err := f.Rollback(6); !errors.Is(err, ErrNoGeneration) {
		t.Error(err)
	}
	// A change that could not be kept is not among them, so 1 back is the newest kept one.
	f.machine.Config = ptr(files("four"))
	if _, err := f.Rollback(1); err != nil {
		t.Error(err)
	}
	f.want(t, "from an unkept one", "two")
}

func ptr[T any](v T) *T { return &v }

func TestStart(t *testing.T) {
	broken := errors.New("line 7")
	for name, test := range map[string]struct {
		before func(*testing.T, *fake)
		boot   bool // nothing runs any more
		files  string
		broken error
		want   string
		apart  string
	}{
		"first start":                      {func(*testing.T, *fake) {}, true, "one", nil, "one", ""},
		"the same files":                   {func(t *testing.T, f *fake) { f.run(t, "one") }, false, "one", nil, "one", ""},
		"other files":                      {func(t *testing.T, f *fake) { f.run(t, "one") }, false, "two", nil, "two", ""},
		"broken files, attached":           {func(t *testing.T, f *fake) { f.run(t, "one") }, false, "two", broken, "one", "line 7"},
		"broken files, boot":               {func(t *testing.T, f *fake) { f.run(t, "one"); f.run(t, "three") }, true, "two", broken, "three", "line 7"},
		"pending, restart within the time": {func(t *testing.T, f *fake) { f.run(t, "one"); f.wait(t, "two") }, false, "two", nil, "two", "waits for its confirmation"},
		"pending, restart after the time":  {func(t *testing.T, f *fake) { f.run(t, "one"); f.wait(t, "two"); f.overdue(t) }, false, "two", nil, "one", `"apply two" was not confirmed`},
		"pending, boot":                    {func(t *testing.T, f *fake) { f.run(t, "one"); f.wait(t, "two") }, true, "two", nil, "one", `"apply two" was not confirmed`},
		"pending, boot with other files":   {func(t *testing.T, f *fake) { f.run(t, "one"); f.wait(t, "two") }, true, "three", nil, "one", `"apply two" was not confirmed`},
		"unconfirmed files, restart":       {func(t *testing.T, f *fake) { f.run(t, "one"); f.wait(t, "two"); f.overdue(t); f.Settle() }, false, "two", nil, "one", "not confirmed"},
		"unconfirmed files, boot":          {func(t *testing.T, f *fake) { f.run(t, "one"); f.wait(t, "two"); f.overdue(t); f.Settle() }, true, "two", nil, "one", "not confirmed"},
		"unconfirmed files, corrected":     {func(t *testing.T, f *fake) { f.run(t, "one"); f.wait(t, "two"); f.overdue(t); f.Settle() }, true, "three", nil, "three", ""},
		"unconfirmed files, applied again": {func(t *testing.T, f *fake) {
			f.run(t, "one")
			f.wait(t, "two")
			f.overdue(t)
			f.Settle()
			f.run(t, "two")
		}, true, "two", nil, "two", ""},
		"killed before the swap, restart":         {func(t *testing.T, f *fake) { f.run(t, "one"); f.die(t, "two") }, false, "two", nil, "one", "not confirmed"},
		"killed before the swap, settled, boot":   {func(t *testing.T, f *fake) { f.run(t, "one"); f.die(t, "two"); f.Settle() }, true, "two", nil, "one", "not confirmed"},
		"killed before the swap, confirmed, boot": {func(t *testing.T, f *fake) { f.run(t, "one"); f.die(t, "two"); f.Confirm() }, true, "two", nil, "one", "not confirmed"},
		"killed before the swap, other files":     {func(t *testing.T, f *fake) { f.run(t, "one"); f.die(t, "two") }, false, "three", nil, "three", ""},
		"killed before the swap, applied again": {func(t *testing.T, f *fake) {
			f.run(t, "one")
			f.die(t, "two")
			f.run(t, "two")
		}, true, "two", nil, "two", ""},
		"confirmed files":                   {func(t *testing.T, f *fake) { f.run(t, "one"); f.wait(t, "two"); f.Confirm() }, true, "two", nil, "two", ""},
		"unconfirmed, then a forward added": {func(t *testing.T, f *fake) { f.run(t, "one"); f.wait(t, "two"); f.overdue(t); f.Settle(); f.add(t) }, false, "two", nil, "one", "not confirmed"},
	} {
		f := newFake(t)
		test.before(t, f)
		if test.boot {
			f.machine.Config = nil
		}
		started, err := f.Start(files(test.files), test.broken)
		if err = errors.Join(err, started.Unkept); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		f.want(t, name, test.want)
		if p, err := f.Store.Pending(); p != nil && err == nil && test.apart == "not confirmed" {
			t.Errorf("%s: %q still waits", name, p.Command)
		}
		if (started.Apart != nil) != (test.apart != "") || test.apart != "" && !mapstest.Contains(started.Apart, test.apart) {
			t.Errorf("%s: apart %v, want %q", name, started.Apart, test.apart)
		}
	}
	f := newFake(t)
	if _, err := f.Start(config.Config{}, broken); !errors.Is(err, broken) {
		t.Errorf("broken files, and nothing is kept: %v", err)
	}
}

// add adds a forward to the running ones.
func (f *fake) add(t *testing.T) {
	t.Helper()
	cfg := *f.machine.Config
	cfg.Forwards = append([]rule.Forward{}, cfg.Forwards...)
	if _, err := f.Edit(cfg, "forward add"); err != nil {
		t.Fatal(err)
	}
}

// Files do not end a drain, whoever applies them. It ends with its time, or with its last connection.
func TestDrains(t *testing.T) {
	f := newFake(t)
	f.run(t, "one")
	cfg := *f.machine.Config
	cfg.Forwards = append([]rule.Forward{}, cfg.Forwards...)
	cfg.Forwards[0].DrainUntil = SinceBoot() + time.Hour
	f.machine.Connections = map[string]int{"one": 2}
	if _, err := f.Edit(cfg, "forward del one"); err != nil {
		t.Fatal(err)
	}
	f.run(t, "two")
	if gone, err := f.FinishDrains(); len(gone) > 0 || err != nil {
		t.Errorf("deleted %v, %v", gone, err)
	}
	if over, some, err := f.DrainsOver(); over || !some || err != nil {
		t.Errorf("over %v, some %v, %v", over, some, err)
	}
	if names := config.IndexByName(f.machine.Config.Forwards); len(names) != 2 {
		t.Errorf("forwards %v", names)
	}
	f.machine.Connections = nil
	if gone, err := f.FinishDrains(); len(gone) != 1 || gone[0] != "one" || err != nil {
		t.Errorf("deleted %v, %v", gone, err)
	}
	if over, some, err := f.DrainsOver(); over || some || err != nil {
		t.Errorf("over %v, some %v, %v", over, some, err)
	}
	f.want(t, "afterwards", "two")

	// The files name the forward again: it does not drain any more.
	cfg = *f.machine.Config
	cfg.Forwards = append([]rule.Forward{}, cfg.Forwards...)
	cfg.Forwards[0].DrainUntil = SinceBoot() + time.Hour
	if _, err := f.Edit(cfg, "forward del two"); err != nil {
		t.Fatal(err)
	}
	f.run(t, "two")
	if f.machine.Config.Forwards[0].Drains() || len(f.machine.Config.Forwards) != 1 {
		t.Errorf("forwards %v", f.machine.Config.Forwards)
	}
}

// TestAddBesideManyForwards: an addition beside very many forwards is not kept at once, and rollback returns to the configuration before
// the addition.
func TestAddBesideManyForwards(t *testing.T) {
	f := newFake(t)
	cfg := files("many")
	cfg.Forwards = mapstest.ManyForwards(20000).Forwards
	if out, err := f.Apply(cfg, "apply"); err != nil || out.Unkept != nil || !f.Store.Large() {
		t.Fatalf("apply: %v, %v, large %t", err, out.Unkept, f.Store.Large())
	}
	before, err := f.Store.List()
	if err != nil {
		t.Fatal(err)
	}
	added, err := rule.ParseForward([]string{"added", "udp", "9", "to", "192.168.1.99"})
	if err != nil {
		t.Fatal(err)
	}
	out, err := f.Add(cfg, added, "forward add added")
	if err != nil || !out.Done || !out.Later || out.Unkept != nil {
		t.Fatalf("add: %v, %+v", err, out)
	}
	if after, err := f.Store.List(); err != nil || len(after) != len(before) {
		t.Errorf("%d kept configurations after the addition, %v, want %d", len(after), err, len(before))
	}
	if _, err := f.Rollback(1); err != nil {
		t.Fatal(err)
	}
	if slices.ContainsFunc(f.machine.Config.Forwards, func(f rule.Forward) bool { return f.Name == "added" }) {
		t.Error("the added forward runs after the rollback")
	}
}
