// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Result says what runs after a change, or after Start.
type Result struct {
	// Done says that what was asked for runs, even if an error says that a later step failed. Without it nothing changed.
	Done bool
	// Kept says that Start left the running configuration as it was.
	Kept   bool
	Change config.Change // what was changed; if Kept, what the files would change
	Ports  []Port
}

// String is the result of a start on one line.
func (r Result) String() string {
	attached := 0
	for _, p := range r.Ports {
		if p.Attachment != nil {
			attached++
		}
	}
	text := "attached to " + count(attached, "interface")
	if !r.Kept {
		return text + ", applied: " + r.Summary()
	}
	text += ", kept the running configuration"
	if differ := len(r.Change.Added) + len(r.Change.Removed) + len(r.Change.Changed); differ > 0 {
		text += fmt.Sprintf("; %s not as in the files, see \"hairpin diff\"", count(differ, "forward"))
	}
	return text
}

// Summary is the change on one line.
func (r Result) Summary() string {
	if r.Change.Empty() {
		return count(r.Change.Unchanged, "forward") + ", nothing to do"
	}
	text := fmt.Sprintf("%d added, %d removed, %d changed, %d unchanged",
		len(r.Change.Added), len(r.Change.Removed), len(r.Change.Changed), r.Change.Unchanged)
	if len(r.Change.Settings) > 0 {
		text += "; settings: " + strings.Join(r.Change.Settings, ", ")
	}
	return text
}

// count is a number with its noun: "1 forward", "2 forwards".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Start brings a datapath into service. A datapath that served these very files before keeps what runs, with the
// forwards that were changed at run time; otherwise cfg is applied.
func (r *Router) Start(cfg config.Config) (Result, error) {
	running, err := r.tables.Settings()
	if err != nil && !errors.Is(err, maps.ErrEmpty) {
		return Result{}, fmt.Errorf("read the running configuration: %w", err)
	}
	if err != nil || running.Digest != cfg.Digest {
		return r.Apply(cfg)
	}
	change, err := r.tables.Plan(cfg)
	if err != nil {
		return Result{}, fmt.Errorf("compare with the running configuration: %w", err)
	}
	ports, err := r.align(running)
	return Result{Done: true, Kept: true, Change: change, Ports: ports}, err
}

// Apply makes cfg run as a whole. It changes nothing if an interface refuses the programs or the tables refuse the
// forwards.
func (r *Router) Apply(cfg config.Config) (Result, error) {
	if err := r.Check(cfg); err != nil {
		return Result{}, err
	}
	return r.change(plan{cfg: cfg})
}

// Add makes a forward run beside those that run already. The caller gives the running configuration, with or without
// its forwards. Adding one forward takes the same time however many run, unless it meets another one.
func (r *Router) Add(running config.Config, forward rule.Forward) (Result, error) {
	alone := running
	alone.Forwards = []rule.Forward{forward}
	if err := r.Check(alone); err != nil {
		return Result{}, err
	}
	return r.change(plan{cfg: running, added: &forward})
}

// plan is a change, and what was found out before anything is changed.
type plan struct {
	cfg    config.Config // what is to run
	added  *rule.Forward // what is to run besides; cfg then runs already
	before string        // the mode that runs
	first  bool          // nothing was ever applied
	seen   inventory
}

// prepare does what the tables can refuse, and shows packets nothing of it. swap makes the change run.
func (p *plan) prepare(tables Tables) (swap func() (config.Change, error), err error) {
	if p.added == nil {
		return tables.Prepare(p.cfg)
	}
	return func() (config.Change, error) { return addForward(tables, *p.added) }, nil
}

// addForward adds a forward to the live tables. Where they cannot take it, all forwards are applied again with it.
func addForward(tables Tables, forward rule.Forward) (config.Change, error) {
	done, err := tables.Add(forward)
	if done || err != nil {
		return config.Change{Added: []string{forward.Name}}, err
	}
	wanted, err := tables.Running()
	if err != nil {
		return config.Change{}, fmt.Errorf("read the running configuration: %w", err)
	}
	wanted.Forwards = append(slices.Clip(wanted.Forwards), forward)
	swap, err := tables.Prepare(wanted)
	if err != nil {
		return config.Change{}, err
	}
	return swap()
}

func (r *Router) change(p plan) (Result, error) {
	if err := r.complete(&p); err != nil {
		return Result{}, err
	}
	return r.commit(&p)
}

// complete reads what a plan lacks, and refuses what an interface would refuse. It changes nothing.
func (r *Router) complete(p *plan) error {
	running, err := r.tables.Settings()
	p.before, p.first = running.Mode, errors.Is(err, maps.ErrEmpty)
	if p.first {
		p.before = p.cfg.Mode
	} else if err != nil {
		return fmt.Errorf("read the running configuration: %w", err)
	}
	if p.seen, err = r.inventory(p.cfg); err != nil {
		return err
	}
	return r.probe(p.seen.ports, p.cfg.Mode, p.before)
}

// commit carries a plan out. The tables prepare first, as they may refuse, too. The programs go on next: a mode may
// change under the old tables, as TC does all that XDP does. Until the tables have swapped, every step is taken back if
// one after it fails.
func (r *Router) commit(p *plan) (Result, error) {
	var (
		swap      func() (config.Change, error)
		refused   error
		preparing sync.WaitGroup
	)
	preparing.Go(func() { swap, refused = p.prepare(r.tables) })
	if !p.first {
		preparing.Wait()
	} // Otherwise both go on at once: they wait for the kernel most of the time.
	if !p.first && refused != nil {
		return Result{}, refused
	}
	undo := r.attach(p.seen.ports, p.cfg.Mode, p.before)
	preparing.Wait()
	err := errors.Join(refused, Refusals(p.seen.ports))
	var change config.Change
	if err == nil {
		change, err = swap()
	}
	if err != nil && !errors.Is(err, maps.ErrUnfinished) {
		return Result{}, errors.Join(err, undo())
	}
	err = errors.Join(err, r.settle(&p.seen, p.cfg.Mode))
	return Result{Done: true, Change: change, Ports: p.seen.ports}, err
}

// due are the ports that have to get programs: those that lack some in this mode, and all where the mode before was another.
func due(ports []Port, mode, before string) (list []*Port) {
	for i := range ports {
		p := &ports[i]
		if p.Link != nil && p.Err == nil && (mode != before || p.incomplete(mode)) {
			list = append(list, p)
		}
	}
	return list
}

// probe asks, changing nothing, whether the interfaces would take the programs. A port that would refuse them keeps the
// reason in Err.
func (r *Router) probe(ports []Port, mode, before string) error {
	for _, p := range due(ports, mode, before) {
		if err := r.datapath.Probe(p.Name, p.hooks(mode)); errors.Is(err, loader.ErrNoInterface) {
			p.Link, p.Attachment = nil, nil // went away since it was listed
		} else {
			p.Err = err
		}
	}
	return Refusals(ports)
}

// attach puts the programs on the ports that lack them, or have them in another mode. It also takes XDP off where XDP does
// not see VLAN tags any more. A port that refuses the programs keeps the reason in Err. undo brings the mode before back.
func (r *Router) attach(ports []Port, mode, before string) (undo func() error) {
	var back []func() error
	for _, p := range due(ports, mode, before) {
		back = append(back, r.reversal(*p, before))
		attachment, err := r.datapath.Attach(p.Name, p.hooks(mode))
		switch {
		case errors.Is(err, loader.ErrNoInterface):
			p.Link, p.Attachment = nil, nil
		case err != nil:
			p.Err = err
		default:
			p.Attachment = &attachment
		}
	}
	return func() error {
		var errs []error
		for _, do := range back {
			if err := do(); !errors.Is(err, loader.ErrNoInterface) {
				errs = append(errs, err)
			}
		}
		return errors.Join(errs...)
	}
}

// reversal returns a function that undoes an attach: it restores the programs that the port has now, in the mode before.
// It also serves ports that refuse the programs, because some of the programs may be attached by then.
func (r *Router) reversal(p Port, before string) func() error {
	if p.Attachment == nil {
		index := p.Link.Index
		return func() error { return r.datapath.Detach(index) }
	}
	hooks := loader.Hooks{Mode: loader.Mode(before), Guard: p.Attachment.Guard}
	return func() error {
		_, err := r.datapath.Attach(p.Name, hooks)
		return err
	}
}

// settle tells the tables what is there. The IPsec policies come first: a connection must not open by a new interface
// before they are known. Then it frees interfaces that are no ports, and takes the guard off ports that
// are no WAN any more: in this order, so that no packet is sent by an unwatched interface.
func (r *Router) settle(seen *inventory, mode string) error {
	policies, err := r.listPolicies()
	if err == nil {
		err = r.tables.SetPolicies(policies)
	}
	if err != nil {
		return fmt.Errorf("set IPsec policies: %w", err)
	}
	if err := r.tables.SetInterfaces(seen.interfaces()); err != nil {
		return fmt.Errorf("set interfaces: %w", err)
	}
	var errs []error
	for _, a := range seen.unmanaged {
		errs = append(errs, r.datapath.Detach(a.Index))
	}
	for i := range seen.ports {
		p := &seen.ports[i]
		if p.Attachment == nil || !p.Attachment.Guard || p.needsGuard() {
			continue
		}
		attachment, err := r.datapath.Attach(p.Name, loader.Hooks{Mode: loader.Mode(mode)})
		if err == nil {
			p.Attachment = &attachment
		} else if !errors.Is(err, loader.ErrNoInterface) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Follow brings programs and tables in line with the interfaces that the machine has now. The caller gives the ports
// that it saw before. A port that refuses the programs is left out, and keeps the reason in Err. The ports are nil if
// they could not be looked at.
func (r *Router) Follow(before []Port) ([]Port, error) {
	running, err := r.tables.Settings()
	if err != nil {
		return nil, fmt.Errorf("read the running configuration: %w", err)
	}
	ports, err := r.align(running)
	if ports != nil {
		err = errors.Join(err, r.detachGone(before))
	}
	return ports, err
}

// align is Follow for a configuration that runs.
func (r *Router) align(running config.Config) ([]Port, error) {
	seen, err := r.inventory(running)
	if err != nil {
		return nil, err
	}
	r.attach(seen.ports, running.Mode, running.Mode)
	return seen.ports, r.settle(&seen, running.Mode)
}

// detachGone takes the programs off interfaces that had them before and are not here any more: pins of an interface
// that was deleted go, and an interface that moved to another network namespace does not translate there.
func (r *Router) detachGone(before []Port) error {
	links, err := r.listLinks()
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range before {
		if p.Attachment == nil {
			continue
		}
		index := p.Attachment.Index
		if !slices.ContainsFunc(links, func(link loader.Link) bool { return link.Index == index }) {
			errs = append(errs, r.datapath.Detach(index))
		}
	}
	return errors.Join(errs...)
}
