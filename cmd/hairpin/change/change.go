// SPDX-License-Identifier: Apache-2.0

// Package change applies configurations so that each can be taken back: it keeps those that ran, returns to the one before if a change
// is not confirmed, and lets the connections of a deleted forward end.
//
// Nothing here waits: whoever calls holds the writer lock of the datapath, and each function does what is due at this moment. The
// daemon, the commands and the watcher, a process of its own, call the same functions.
//
// # A change that waits for its confirmation
//
// "hairpin apply --confirm 60s" writes the file of the pending change first, with the deadline and the configuration of before. Then it
// starts the watcher, and then it swaps the tables. All of this is under the writer lock. Any process may be killed at any step:
//
//	the command dies before the file is written     nothing has happened
//	it dies before the swap                         the live generation is still the one in the file, so whoever takes the lock next
//	                                                sees that the change was not made, and ends its wait
//	it dies after the swap                          the daemon and the watcher both wait for the deadline
//	the command and the daemon die                  the watcher has a session of its own, and under systemd a scope of its own, so
//	                                                neither the terminal nor the unit takes it along
//	the watcher dies                                the daemon does its work
//	all die                                         the next command that changes something, or the next start of the daemon, finds the
//	                                                deadline passed
//	the machine boots                               the file is of another boot: the start runs the configuration of before
//
// The daemon and the watcher may both see the deadline pass. The writer lock lets one of them go first: it applies the configuration of
// before, and removes the file. The other one finds no file. "hairpin confirm" takes the same lock and removes the same file, so a
// confirmation at the last moment either comes first, or finds nothing to confirm. A revert that is killed in the middle is repeated:
// each of its steps may be done twice.
//
// The files on disk are still those of the change that nobody confirmed. Their digest is noted, and a start does not run them.
package change

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/history"
	"hairpin/cmd/hairpin/router"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

var (
	// ErrPending means that a change waits for its confirmation, so nothing else may change.
	ErrPending = errors.New("a change waits for its confirmation")
	// ErrNothingPending means that no change waits.
	ErrNothingPending = errors.New("no change waits for its confirmation")
	// ErrNoGeneration means that so many configurations are not kept.
	ErrNoGeneration = errors.New("no such configuration is kept")
)

// Keeper changes what a router runs, and keeps it in the store.
type Keeper struct {
	Router *router.Router
	Store  *history.Store
}

// Outcome is what runs after a change.
type Outcome struct {
	router.Result
	// Unkept is why a change that runs is not among the kept configurations, nil if it is, or if Later is set.
	Unkept error
	// Later reports whether the change is kept only together with the next one.
	Later bool
}

// SinceBoot returns the time since the boot, also while the machine slept.
func SinceBoot() time.Duration {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		panic(err) // clock_gettime(2) fails only for a wrong argument
	}
	return time.Duration(now.Nano())
}

// Boot returns the id of this boot.
func Boot() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(id)), err
}

// Apply makes a configuration that was read from files the running one. Forwards that drain go on to drain. It fails with ErrPending if a
// change waits for its confirmation.
func (k *Keeper) Apply(cfg config.Config, command string) (Outcome, error) {
	cfg, err := k.withTransient(cfg)
	if err != nil {
		return Outcome{}, err
	}
	out, err := k.Edit(cfg, command)
	if out.Done {
		out.Unkept = errors.Join(out.Unkept, k.Store.Allow())
	}
	return out, err
}

// Edit is Apply for a configuration that was made from the running one.
func (k *Keeper) Edit(cfg config.Config, command string) (Outcome, error) {
	return k.do(command, func() (router.Result, error) { return k.Router.Apply(cfg) }, func() (config.Config, error) { return cfg, nil })
}

// Add adds a forward to the running configuration; see router.Router.Add. Beside very many forwards the addition is kept only with the
// next change: writing all forwards would take ten times as long as the addition.
//
// A mapping of a lease file that has the port gives way.
func (k *Keeper) Add(running config.Config, forward rule.Forward, command string) (Outcome, error) {
	leases, err := k.Router.Leases()
	if err != nil {
		return Outcome{}, err
	}
	if slices.ContainsFunc(leases, func(lease rule.Forward) bool { return lease.Meets(&forward) }) {
		return k.addInPlaceOfLease(forward, command)
	}
	if k.Store.Large() {
		if err := k.Guard(); err != nil {
			return Outcome{}, err
		}
		result, err := k.Router.Add(running, forward)
		return Outcome{Result: result, Later: result.Done}, err
	}
	return k.do(command, func() (router.Result, error) { return k.Router.Add(running, forward) }, k.Router.Running)
}

func (k *Keeper) addInPlaceOfLease(forward rule.Forward, command string) (Outcome, error) {
	cfg, err := k.Router.Running()
	if err != nil {
		return Outcome{}, err
	}
	cfg.Forwards = append(slices.Clone(cfg.Forwards), forward)
	DropMet(&cfg)
	if err := cfg.Validate(); err != nil {
		return Outcome{}, err
	}
	return k.Edit(cfg, command)
}

// do makes a change, and keeps what runs then.
func (k *Keeper) do(command string, apply func() (router.Result, error), applied func() (config.Config, error)) (Outcome, error) {
	if err := k.Guard(); err != nil {
		return Outcome{}, err
	}
	unkept := k.keepFirst(command)
	result, err := apply()
	out := Outcome{Result: result}
	if result.Done {
		cfg, failed := applied()
		if failed == nil {
			failed = k.Store.Keep(cfg, command)
		}
		out.Unkept = errors.Join(unkept, failed)
	}
	return out, err
}

// keepFirst keeps the running configuration before the first change that is kept, so that there is something to return to.
func (k *Keeper) keepFirst(command string) error {
	list, err := k.Store.List()
	if len(list) > 0 || err != nil {
		return nil // if the list cannot be read, nothing can be written either, and do says so
	}
	running, err := k.Router.Running()
	if errors.Is(err, maps.ErrEmpty) {
		return nil
	}
	if err != nil {
		return err
	}
	return k.Store.Keep(running, "before: "+command)
}

// Guard fails with ErrPending if a change waits for its confirmation. The wait of a change that was never made is ended.
func (k *Keeper) Guard() error {
	p, err := k.Store.Pending()
	if err != nil {
		return fmt.Errorf("%w; if the change should stay, remove this file", err)
	}
	if p == nil {
		return nil
	}
	made, err := k.made(p)
	if err != nil {
		return err
	}
	if !made {
		return k.forget(p)
	}
	return fmt.Errorf("%w: %s; run \"hairpin confirm\" to keep it, or \"hairpin rollback\" to return to the configuration before it", ErrPending, Describe(p))
}

// Describe says which change waits, and how long it does so.
func Describe(p *history.Pending) string {
	left := Left(p)
	if left <= 0 {
		return fmt.Sprintf("%q was not confirmed in time", p.Command)
	}
	return fmt.Sprintf("%q is taken back in %s", p.Command, left.Round(time.Second))
}

// Left returns how long a change still waits, 0 if its time is over or was counted in another boot.
func Left(p *history.Pending) time.Duration {
	if boot, err := Boot(); err == nil && boot != p.Boot {
		return 0
	}
	return max(0, p.Deadline-SinceBoot())
}

// made reports whether a pending change runs.
func (k *Keeper) made(p *history.Pending) (bool, error) {
	if boot, err := Boot(); err != nil || boot != p.Boot {
		return true, err
	}
	now, err := k.Router.Generation()
	return now != p.Generation, err
}

// Waiting returns the change that runs and waits for its confirmation, nil if there is none. It needs no lock.
func (k *Keeper) Waiting() (*history.Pending, error) {
	p, err := k.Store.Pending()
	if p == nil || err != nil {
		return nil, err
	}
	made, err := k.made(p)
	if !made || err != nil {
		return nil, err
	}
	return p, nil
}

// ApplyUntil is Apply, but the configuration of before runs again after wait unless Confirm is called. watch starts the process that
// watches the deadline; it is called before packets see the change. It fails without a change if the configuration of before cannot be
// kept, or nothing runs yet. waits is false if there was nothing to change.
func (k *Keeper) ApplyUntil(cfg config.Config, command string, wait time.Duration, watch func() error) (out Outcome, waits bool, err error) {
	if err := k.Guard(); err != nil {
		return Outcome{}, false, err
	}
	p, err := k.pending(cfg, command, wait)
	if err != nil {
		return Outcome{}, false, err
	}
	if cfg, err = k.withTransient(cfg); err != nil {
		return Outcome{}, false, err
	}
	if err := k.Router.Check(cfg); err != nil {
		return Outcome{}, false, err
	}
	if err := k.Store.SetPending(p); err != nil {
		return Outcome{}, false, fmt.Errorf("%w; nothing was changed", err)
	}
	if err := watch(); err != nil {
		return Outcome{}, false, errors.Join(fmt.Errorf("start the process that would take the change back: %w; nothing was changed", err), k.Store.ClearPending())
	}
	out.Unkept = k.keepFirst(command)
	out.Result, err = k.Router.Apply(cfg)
	if !out.Done {
		return out, false, errors.Join(err, k.Store.ClearPending())
	}
	if made, failed := k.made(&p); failed == nil && !made {
		return out, false, errors.Join(err, k.Store.ClearPending())
	}
	return out, true, err
}

func (k *Keeper) pending(cfg config.Config, command string, wait time.Duration) (history.Pending, error) {
	before, err := k.Router.Running()
	if errors.Is(err, maps.ErrEmpty) {
		return history.Pending{}, fmt.Errorf("there is no configuration to return to: %w; apply without --confirm", err)
	}
	if err != nil {
		return history.Pending{}, err
	}
	generation, err := k.Router.Generation()
	if err != nil {
		return history.Pending{}, err
	}
	boot, err := Boot()
	if err != nil {
		return history.Pending{}, err
	}
	return history.Pending{
		Command: history.Shorten(command), Boot: boot, Deadline: SinceBoot() + wait, Generation: generation, Digest: cfg.Digest, Before: withoutTransient(before),
	}, nil
}

// Confirm lets the pending change stay, and returns it. It fails with ErrNothingPending if none waits.
func (k *Keeper) Confirm() (p *history.Pending, unkept error, err error) {
	if p, err = k.Store.Pending(); err != nil {
		return nil, nil, err
	}
	if p == nil {
		return nil, nil, ErrNothingPending
	}
	made, err := k.made(p)
	if err != nil {
		return nil, nil, err
	}
	if !made {
		return nil, nil, errors.Join(fmt.Errorf("%w: %q ended before the change was made", ErrNothingPending, p.Command), k.forget(p))
	}
	running, err := k.Router.Running()
	if err != nil {
		return nil, nil, err
	}
	unkept = errors.Join(k.Store.Keep(running, p.Command), k.Store.Allow())
	if err := k.Store.ClearPending(); err != nil {
		return nil, nil, fmt.Errorf("%w; the change still waits for its confirmation", err)
	}
	return p, unkept, nil
}

// Reverted is a change that was taken back.
type Reverted struct {
	Outcome
	Command string
}

// String says what was taken back.
func (r *Reverted) String() string {
	return fmt.Sprintf("%q was not confirmed in time; the configuration before it runs again: %s", r.Command, r.Summary())
}

// Settle takes a pending change back if its time is over. It returns nil if there was nothing to take back.
func (k *Keeper) Settle() (*Reverted, error) {
	p, err := k.Store.Pending()
	if p == nil || err != nil {
		return nil, err
	}
	made, err := k.made(p)
	if err != nil {
		return nil, err
	}
	if !made {
		return nil, k.forget(p)
	}
	if Left(p) > 0 {
		return nil, nil
	}
	return k.revert(p)
}

// revert applies the configuration before a pending change. The file of the pending change is removed last: until then the revert is
// repeated.
func (k *Keeper) revert(p *history.Pending) (*Reverted, error) {
	before, err := k.withTransient(p.Before)
	if err != nil {
		return nil, err
	}
	result, err := k.Router.Apply(before)
	if !result.Done {
		return nil, fmt.Errorf("%q was not confirmed, but the configuration before it cannot be applied: %w", p.Command, err)
	}
	reverted := &Reverted{Outcome{Result: result, Unkept: k.Store.Keep(p.Before, "taken back: "+p.Command)}, p.Command}
	return reverted, errors.Join(err, k.forget(p))
}

// forget ends the wait of a change that does not run. A start must not run its files either: nobody has confirmed them.
func (k *Keeper) forget(p *history.Pending) error {
	if p.Digest != "" && p.Digest != p.Before.Digest {
		return k.Store.RefusePending()
	}
	return k.Store.ClearPending()
}

// Kept is a kept configuration with its number for Rollback.
type Kept struct {
	history.Generation
	Back int // 1: the one before the running configuration
}

// List returns the configurations that Rollback can return to, the last one first. The running configuration is not among them.
// Files that cannot be read are left out, and the error names them.
func (k *Keeper) List() ([]Kept, error) {
	list, err := k.Store.List()
	running, failed := k.Router.Running()
	if failed == nil {
		now, failed := history.SumOf(running)
		if failed == nil && len(list) > 0 && list[0].Sum == now {
			list = list[1:]
		}
	} else if !errors.Is(failed, maps.ErrEmpty) {
		err = errors.Join(err, failed)
	}
	kept := make([]Kept, 0, len(list))
	for i, g := range list {
		kept = append(kept, Kept{g, i + 1})
	}
	return kept, err
}

// Rollback applies the configuration that was back changes before the running one; 1 is the one before it. It ends the wait of a change
// that is not confirmed; then 1 is the configuration before that change. It fails with ErrNoGeneration if so many are not kept.
func (k *Keeper) Rollback(back int) (Outcome, error) {
	p, err := k.Store.Pending()
	if err != nil {
		return Outcome{}, err
	}
	if p != nil && back == 1 {
		reverted, err := k.revert(p)
		if reverted == nil {
			return Outcome{}, err
		}
		return reverted.Outcome, err
	}
	list, err := k.List()
	if back > len(list) {
		return Outcome{}, errors.Join(fmt.Errorf("%w: %d back, but there are %d; see \"hairpin rollback --list\"", ErrNoGeneration, back, len(list)), err)
	}
	cfg, err := k.Store.Config(list[back-1].Generation)
	if err != nil {
		return Outcome{}, err
	}
	if cfg, err = k.withTransient(cfg); err != nil {
		return Outcome{}, err
	}
	result, err := k.Router.Apply(cfg)
	out := Outcome{Result: result}
	if !result.Done {
		return out, err
	}
	out.Unkept = k.Store.Keep(cfg, fmt.Sprintf("rollback to %d, %s", list[back-1].Number, list[back-1].Command))
	if p != nil {
		err = errors.Join(err, k.forget(p))
	}
	return out, err
}

// withTransient adds what runs and no configuration has: forwards that drain, and forwards that stand for mappings in lease files.
func (k *Keeper) withTransient(cfg config.Config) (config.Config, error) {
	with, err := k.withDrains(cfg)
	if err != nil {
		return cfg, err
	}
	return k.WithLeases(with)
}

// withDrains adds the running forwards that drain to a configuration that does not have them, so that their connections live on.
func (k *Keeper) withDrains(cfg config.Config) (config.Config, error) {
	drains, err := k.Router.Drains()
	if err != nil || len(drains) == 0 {
		return cfg, err
	}
	names := config.IndexByName(cfg.All())
	with := cfg
	with.Forwards = slices.Clip(with.Forwards)
	for _, f := range drains {
		if _, there := names[f.Name]; !there && f.DrainUntil > SinceBoot() {
			with.Forwards = append(with.Forwards, f)
		}
	}
	if with.Validate() != nil {
		return cfg, nil // a forward that drains does not fit any more, for example because its WAN is gone
	}
	return with, nil
}

func withoutTransient(cfg config.Config) config.Config {
	cfg.Forwards = slices.DeleteFunc(slices.Clone(cfg.Forwards), func(f rule.Forward) bool { return f.Drains() || f.IsLease() })
	return cfg
}

// DrainsOver reports whether FinishDrains would delete a forward, and whether any forward drains. It needs no lock.
func (k *Keeper) DrainsOver() (over, some bool, err error) {
	drains, err := k.Router.Drains()
	if err != nil || len(drains) == 0 {
		return false, false, err
	}
	names, err := k.drained(drains)
	return len(names) > 0, true, err
}

// drained returns the names of those forwards whose time is over, or that have no connections any more.
func (k *Keeper) drained(drains []rule.Forward) (names []string, err error) {
	connections, err := k.Router.Connections()
	if err != nil {
		return nil, err
	}
	for _, f := range drains {
		if f.DrainUntil <= SinceBoot() || connections[f.Name] == 0 {
			names = append(names, f.Name)
		}
	}
	return names, nil
}

// FinishDrains deletes the forwards that drain and whose time is over, or that have no connections any more. It returns their names.
func (k *Keeper) FinishDrains() ([]string, error) {
	drains, err := k.Router.Drains()
	if err != nil || len(drains) == 0 {
		return nil, err
	}
	over, err := k.drained(drains)
	if err != nil || len(over) == 0 {
		return nil, err
	}
	cfg, err := k.Router.Running()
	if err != nil {
		return nil, err
	}
	cfg.Forwards = slices.DeleteFunc(slices.Clone(cfg.Forwards), func(f rule.Forward) bool { return slices.Contains(over, f.Name) })
	_, err = k.Router.Apply(cfg)
	return over, err
}
