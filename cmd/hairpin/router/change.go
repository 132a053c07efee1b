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

// Result is what runs after a change or after Start.
type Result struct {
	// Done reports whether the change runs. The error of a change that runs wraps maps.ErrUnfinished. If Done is false,
	// nothing changed.
	Done bool
	// Kept reports whether Start kept the running configuration.
	Kept   bool
	Change config.Change // the change; if Kept, the change that the files would make
	Ports  []Port
}

// String formats the result of a start on one line.
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

// Summary formats the change on one line.
func (r Result) Summary() string { return Summary(r.Change) }

// Summary formats a change on one line.
func Summary(change config.Change) string {
	if change.Empty() {
		return count(change.Unchanged, "forward") + ", nothing to do"
	}
	text := fmt.Sprintf("%d added, %d removed, %d changed, %d unchanged",
		len(change.Added), len(change.Removed), len(change.Changed), change.Unchanged)
	if len(change.Settings) > 0 {
		text += "; settings: " + strings.Join(change.Settings, ", ")
	}
	if ends := change.EndsText(); ends != "" {
		text += "; " + ends
	}
	return text
}

// count formats a number with its noun: "1 forward", "2 forwards".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Start brings a datapath into service. If the running configuration came from the same files, Start keeps
// it, with the forwards that were changed at run time. Otherwise Start applies cfg.
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
	result, err := r.Resume()
	result.Change = change
	return result, err
}

// Resume brings a datapath into service with the configuration that runs already. It fails with maps.ErrEmpty if none runs.
func (r *Router) Resume() (Result, error) {
	running, err := r.tables.Settings()
	if err != nil {
		return Result{}, fmt.Errorf("read the running configuration: %w", err)
	}
	ports, err := r.align(running)
	return Result{Done: true, Kept: true, Ports: ports}, err
}

// Apply makes cfg, which must be valid, the running configuration. It changes nothing if an interface refuses the programs or the
// tables refuse the forwards.
func (r *Router) Apply(cfg config.Config) (Result, error) {
	if err := r.Check(cfg); err != nil {
		return Result{}, err
	}
	return r.change(plan{cfg: cfg})
}

// Add adds a forward to the running forwards. running may be with or without its forwards. The time does
// not depend on the number of forwards, unless the new forward overlaps another forward.
func (r *Router) Add(running config.Config, forward rule.Forward) (Result, error) {
	alone := running
	alone.Forwards = []rule.Forward{forward}
	if err := r.Check(alone); err != nil {
		return Result{}, err
	}
	return r.change(plan{cfg: running, added: &forward})
}

// plan is a change, with the state that was read before anything is changed.
type plan struct {
	cfg    config.Config // the configuration that should run
	added  *rule.Forward // a forward to add; cfg then runs already
	before string        // the running mode
	first  bool          // no configuration was ever applied
	seen   inventory
}

// prepare does the steps that the tables may refuse; no packet sees a change.
func (p *plan) prepare(tables Tables) (config.Change, error) {
	if p.added != nil {
		return config.Change{Added: []string{p.added.Name}}, nil
	}
	return tables.Prepare(p.cfg)
}

// swap makes the prepared change run.
func (p *plan) swap(tables Tables) error {
	if p.added != nil {
		return addForward(tables, *p.added)
	}
	return tables.Swap()
}

// addForward adds a forward to the live tables. If the live tables cannot take it, addForward applies all
// forwards again.
func addForward(tables Tables, forward rule.Forward) error {
	done, err := tables.Add(forward)
	if done || err != nil {
		return err
	}
	wanted, err := tables.Running()
	if err != nil {
		return fmt.Errorf("read the running configuration: %w", err)
	}
	wanted.Forwards = append(slices.Clip(wanted.Forwards), forward)
	if err := wanted.Validate(); err != nil {
		return err
	}
	if _, err := tables.Prepare(wanted); err != nil {
		return err
	}
	return tables.Swap()
}

func (r *Router) change(p plan) (Result, error) {
	if err := r.complete(&p); err != nil {
		return Result{}, err
	}
	return r.commit(&p)
}

// complete reads the rest of the plan. It fails if an interface would refuse the programs. It changes
// nothing.
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
	has := slices.Concat(p.cfg.WAN, p.cfg.LAN)
	p.seen.givenUp = slices.DeleteFunc(slices.Concat(running.WAN, running.LAN), func(name string) bool { return slices.Contains(has, name) })
	return r.probe(p.seen.ports, p.cfg.Mode, p.before)
}

// commit executes a plan. First the tables prepare, because they may refuse. Then the programs are
// attached; the mode may change before the tables do, because TC does all that XDP does. Then the tables
// swap. If a step before the end of the swap fails, the earlier steps are undone.
func (r *Router) commit(p *plan) (Result, error) {
	var (
		change    config.Change
		refused   error
		preparing sync.WaitGroup
	)
	preparing.Go(func() { change, refused = p.prepare(r.tables) })
	if !p.first {
		preparing.Wait()
	} // at the first start both run in parallel, because both mostly wait for the kernel
	if !p.first && refused != nil {
		return Result{}, refused
	}
	undo := r.attach(p.seen.ports, p.cfg.Mode, p.before)
	preparing.Wait()
	err := errors.Join(refused, Refusals(p.seen.ports))
	if err == nil {
		err = p.swap(r.tables)
	}
	if err != nil && !errors.Is(err, maps.ErrUnfinished) {
		return Result{}, errors.Join(err, undo())
	}
	if failed := r.settle(&p.seen, p.cfg.Mode); failed != nil {
		// Whoever reads the error alone must not take the change for refused.
		err = errors.Join(err, fmt.Errorf("%w: %w", maps.ErrUnfinished, failed))
	}
	return Result{Done: true, Change: change, Ports: p.seen.ports}, err
}

// due returns the ports that must get programs: ports that lack a program, and all ports if the mode
// changes.
func due(ports []Port, mode, before string) (list []*Port) {
	for i := range ports {
		p := &ports[i]
		if p.Link != nil && p.Err == nil && (mode != before || p.incomplete(mode)) {
			list = append(list, p)
		}
	}
	return list
}

// probe asks every interface whether it would take the programs, and changes nothing. It stores a refusal
// in Err of the port.
func (r *Router) probe(ports []Port, mode, before string) error {
	for _, p := range due(ports, mode, before) {
		if err := r.datapath.Probe(p.Name, p.hooks(mode)); errors.Is(err, loader.ErrNoInterface) {
			p.Link, p.Attachment = nil, nil // deleted since it was listed
		} else {
			p.Err = err
		}
	}
	return Refusals(ports)
}

// attach puts the programs on the ports that lack them, or have them in another mode. It also removes XDP
// where XDP no longer sees VLAN tags. It stores a refusal in Err of the port. undo restores the mode
// before.
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

// reversal returns a function that undoes an attach: it restores the present programs of the port, in the
// mode before. A port that refuses is also undone, because some of its programs may be attached.
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

// ErrOldPolicies means that the datapath asks the IPsec policies of before, because those of now could not be read or written.
var ErrOldPolicies = errors.New("hairpin asks the IPsec policies of before")

// settle first writes the IPsec policies: a connection must not open by a new interface before they are known. Then it writes the
// present interfaces and their roles to the tables. Then it detaches interfaces that are not ports, unless they are lost and keep their
// role for the grace. It also removes the guard from ports that are no longer WANs. In the other order, an interface would lose its
// programs while the tables still have it as a WAN: packets with a target's private address could leave by it.
func (r *Router) settle(seen *inventory, mode string) error {
	policies := r.settlePolicies()
	if policies != nil && !errors.Is(policies, ErrOldPolicies) {
		return policies
	}
	errs := []error{policies}
	if err := r.tables.SetInterfaces(seen.interfaces()); err != nil {
		return errors.Join(policies, fmt.Errorf("set interfaces: %w", err))
	}
	lost, err := r.tables.LostInterfaces()
	if err != nil {
		return errors.Join(policies, err)
	}
	for _, a := range seen.unmanaged {
		if !slices.Contains(lost, a.Index) {
			errs = append(errs, r.datapath.Detach(a.Index))
		}
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

// settlePolicies writes the IPsec policies. If that fails, the old ones are good enough to go on with: a WAN that is dialled
// again must get its address, and the next look at the interfaces tries again. Then the error wraps ErrOldPolicies. But tables
// that never had an interface may have no policies either, and hairpin would forward in the clear what the kernel encrypts. So
// the first start fails.
func (r *Router) settlePolicies() error {
	policies, err := r.listPolicies()
	if err == nil {
		err = r.tables.SetPolicies(policies)
	}
	if err == nil {
		return nil
	}
	started, failed := r.tables.HasInterfaces()
	if started && failed == nil {
		return fmt.Errorf("%w: %w", ErrOldPolicies, err)
	}
	return errors.Join(fmt.Errorf("set IPsec policies: %w", err), failed)
}

// Follow adapts programs and tables to the present interfaces of the machine. before are the ports of the
// last call. A port that refuses the programs has the reason in Err. The ports are nil if the interfaces
// could not be read.
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

// align does the work of Follow for the running configuration.
func (r *Router) align(running config.Config) ([]Port, error) {
	seen, err := r.inventory(running)
	if err != nil {
		return nil, err
	}
	r.attach(seen.ports, running.Mode, running.Mode)
	return seen.ports, r.settle(&seen, running.Mode)
}

// detachGone detaches interfaces that have disappeared since before. This removes the pins of a deleted
// interface, and stops translation on an interface in another network namespace.
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
