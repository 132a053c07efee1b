// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"hairpin/cmd/hairpin/change"
	"hairpin/cmd/hairpin/control"
	"hairpin/maps/rule"
)

// ready is what /-/ready says.
func (d *daemonFake) ready() string {
	d.state.ready.Store(true)
	if err := d.state.Ready(); err != nil {
		return err.Error()
	}
	return ""
}

// A failed reload is seen until a good one, or until a command has made the files run.
func TestFailedReloadIsSeen(t *testing.T) {
	d := newDaemonFake(t)
	ctx := context.Background()
	d.exitCode = func(err error) int { return map[bool]int{true: 7}[err != nil] }
	d.fileErr = errors.New("line 7")
	answer := d.reload(ctx)
	if answer.Done || answer.Code != 7 || len(answer.Errors) != 1 || answer.Errors[0] != "line 7" {
		t.Errorf("%+v", answer)
	}
	const apart = "the last reload failed: line 7"
	if d.ready() != apart || d.state.Status().Apart != apart {
		t.Errorf("ready: %q", d.ready())
	}
	d.seeFiles()
	if d.ready() != apart {
		t.Errorf("nothing has changed, but ready: %q", d.ready())
	}
	d.fileErr = nil
	d.file.Digest = "two"
	if answer := d.reload(ctx); !answer.Done || answer.Code != 0 || len(answer.Errors) > 0 || answer.Summary == "" {
		t.Errorf("%+v", answer)
	}
	if d.ready() != "" {
		t.Errorf("after a good reload: %q", d.ready())
	}

	d.fileErr = errors.New("line 8")
	d.reload(ctx)
	d.fileErr = nil
	d.file.Digest = "three"
	if _, err := d.keeper.Apply(d.file, "apply"); err != nil {
		t.Fatal(err)
	}
	d.taken = nil
	d.seeFiles()
	if d.ready() != "" || len(d.taken) != 1 || !d.taken[0] {
		t.Errorf("after a command applied the files: %q, %v", d.ready(), d.taken)
	}
}

// The loop answers "hairpin reload", and a command that is gone does not stop it.
func TestReloadIsAnswered(t *testing.T) {
	d := newDaemonFake(t)
	d.asked = make(chan chan control.Reload)
	socket := filepath.Join(t.TempDir(), "control")
	stop := d.answer(socket)
	defer stop()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error)
	go func() { ended <- d.loop(ctx, nil) }()

	gone, leave := context.WithCancel(ctx)
	leave()
	if _, err := control.AskReload(gone, socket); err == nil {
		t.Error("answered to nobody")
	}
	answer, err := control.AskReload(ctx, socket)
	if err != nil || !answer.Done {
		t.Errorf("%+v, %v", answer, err)
	}
	if status, err := control.AskStatus(ctx, socket); err != nil || status.Apart != "" {
		t.Errorf("%+v, %v", status, err)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	stop()
	if _, err := control.AskReload(context.Background(), socket); !errors.Is(err, control.ErrNoDaemon) {
		t.Error(err)
	}
}

// The loop takes a change back when its time is over, though nothing else happens.
func TestDaemonTakesAnUnconfirmedChangeBack(t *testing.T) {
	d := newDaemonFake(t)
	one, two := d.file, d.file
	two.Digest, two.MetricsListen = "two", "127.0.0.1:0"
	if _, err := d.keeper.Apply(one, "apply"); err != nil {
		t.Fatal(err)
	}
	if _, waits, err := d.keeper.ApplyUntil(two, "apply two", 50*time.Millisecond, func() error { return nil }); err != nil || !waits {
		t.Fatalf("waits %v, %v", waits, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	reverted := make(chan struct{})
	d.lock = func(context.Context) (func(), error) {
		return func() {
			if d.machine.Config.Digest == "one" {
				close(reverted)
				d.lock = func(context.Context) (func(), error) { return func() {}, nil }
			}
		}, nil
	}
	ended := make(chan error)
	go func() { ended <- d.loop(ctx, nil) }()
	select {
	case <-reverted:
	case <-ctx.Done():
		t.Error("the change was not taken back")
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if p, err := d.keeper.Store.Pending(); p != nil || err != nil {
		t.Errorf("%+v, %v", p, err)
	}
	if !strings.Contains(d.output.String(), `was not confirmed in time`) {
		t.Errorf("log:\n%s", &d.output)
	}
}

// After a change was taken back, the files are still those of the change: everybody says that they do not run, until they are corrected.
func TestFilesOfAChangeThatWasTakenBack(t *testing.T) {
	d := newDaemonFake(t)
	if _, err := d.keeper.Apply(d.file, "apply"); err != nil {
		t.Fatal(err)
	}
	d.seeFiles()
	d.file.Digest, d.file.MetricsListen = "two", "127.0.0.1:0"
	if _, waits, err := d.keeper.ApplyUntil(d.file, "apply two", time.Hour, func() error { return nil }); err != nil || !waits {
		t.Fatalf("waits %v, %v", waits, err)
	}
	d.seeFiles()
	if d.ready() != "" {
		t.Errorf("while the change runs: ready: %q", d.ready())
	}
	if _, err := d.keeper.Rollback(1); err != nil {
		t.Fatal(err)
	}
	d.taken = nil
	d.seeFiles()
	if !strings.Contains(d.ready(), `not confirmed, "apply two"`) || len(d.taken) != 1 || d.taken[0] {
		t.Errorf("after the change was taken back: ready %q, %v", d.ready(), d.taken)
	}
	if answer := d.reload(context.Background()); !answer.Done || d.ready() != "" {
		t.Errorf("after a reload: %+v, ready %q", answer, d.ready())
	}
}

// A daemon that starts while a change waits tells how the wait has ended.
func TestStartWhileAChangeWaits(t *testing.T) {
	for name, test := range map[string]struct {
		files string // the digest of the files meanwhile
		end   func(*change.Keeper) error
		want  string
	}{
		"confirmed":           {"two", func(k *change.Keeper) error { _, _, err := k.Confirm(); return err }, ""},
		"another, confirmed":  {"one", func(k *change.Keeper) error { _, _, err := k.Confirm(); return err }, "what was confirmed is another configuration"},
		"taken back":          {"two", func(k *change.Keeper) error { _, err := k.Rollback(1); return err }, "not confirmed"},
		"another, taken back": {"one", func(k *change.Keeper) error { _, err := k.Rollback(1); return err }, ""},
	} {
		d := newDaemonFake(t)
		d.file.Digest = "one"
		if _, err := d.keeper.Apply(d.file, "apply"); err != nil {
			t.Fatal(err)
		}
		two := d.file
		two.Digest, two.MetricsListen = "two", "127.0.0.1:0"
		if _, waits, err := d.keeper.ApplyUntil(two, "apply two", time.Hour, func() error { return nil }); err != nil || !waits {
			t.Fatalf("waits %v, %v", waits, err)
		}
		d.file.Digest = test.files
		d.sayApart(change.ErrPending) // as start does
		d.waits = true
		if err := test.end(d.keeper); err != nil {
			t.Fatal(err)
		}
		d.seeFiles()
		if got := d.ready(); (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: ready %q, want %q", name, got, test.want)
		}
	}
}

// A change that was never made is not taken for one that runs because a forward has drained meanwhile.
func TestDrainBesideAChangeThatWasNotMade(t *testing.T) {
	d := newDaemonFake(t)
	one := d.file
	one.Forwards = slices.Clone(one.Forwards)
	drains := one.Forwards[0]
	drains.Name, drains.Ports, drains.DrainUntil = "drains", rule.Ports{First: 99, Last: 99}, change.SinceBoot()
	one.Forwards = append(one.Forwards, drains)
	if _, err := d.keeper.Edit(one, "forward del drains --drain 0s"); err != nil {
		t.Fatal(err)
	}
	func() {
		defer func() { _ = recover() }()
		two := d.file
		two.Digest = "two"
		_, _, err := d.keeper.ApplyUntil(two, "apply two", time.Hour, func() error { panic("killed") })
		t.Error(err)
	}()
	d.finishChanges(context.Background())
	if len(d.machine.Config.Forwards) != len(d.file.Forwards) {
		t.Errorf("%+v run", d.machine.Config.Forwards)
	}
	if p, err := d.keeper.Store.Pending(); p != nil || err != nil {
		t.Errorf("a change that was not made waits: %+v, %v", p, err)
	}
}

// While a change waits, a reload is refused, and says why.
func TestReloadWhileAChangeWaits(t *testing.T) {
	d := newDaemonFake(t)
	two := d.file
	two.Digest = "two"
	if _, _, err := d.keeper.ApplyUntil(two, "apply two", time.Hour, func() error { return nil }); err != nil {
		t.Fatal(err)
	}
	if answer := d.reload(context.Background()); answer.Done || len(answer.Errors) != 1 || !strings.Contains(answer.Errors[0], change.ErrPending.Error()) {
		t.Errorf("%+v", answer)
	}
	if d.machine.Config.Digest != "two" {
		t.Errorf("%q runs", d.machine.Config.Digest)
	}
}
