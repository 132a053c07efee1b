// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// trial is one run of a scenario. A scenario gives the trial its networks. The trial watches them during the whole scenario, and fails if
// a packet with an inside source leaves by a WAN, if the kernel's log has a warning, or if something leaks.
type trial struct {
	*testing.T
	scale

	log     *lab.KernelLog
	watched []*watched
	parts   verdict // on the routers of watchPart
}

// watched is a router with hairpin, and what it had at the start.
type watched struct {
	*lab.Network
	hp     *lab.Hairpin
	inside *lab.Sieve
	before footprint
}

func newTrial(t *testing.T, s scale) *trial {
	t.Helper()
	return &trial{T: t, scale: s, log: lab.OpenKernelLog(t)}
}

// start runs hairpin on the network's router, and watches both.
func (t *trial) start(n *lab.Network, mode, forwards string) *lab.Hairpin {
	t.Helper()
	hp := home.Start(t.T, n, mode, forwards)
	t.watch(n, hp)
	return hp
}

// watch watches a router whose daemon is idle, from now to the end of the scenario. At the end a daemon must run, too.
func (t *trial) watch(n *lab.Network, hp *lab.Hairpin) {
	t.Helper()
	t.watched = append(t.watched, &watched{n, hp, n.Internet.WatchInside("eth0"), footprintOf(t.T, n, hp)})
}

// watchPart watches a router that exists only in a part of the scenario, from now until the returned function is called. That function
// takes hairpin out of the router.
func (t *trial) watchPart(part *testing.T, n *lab.Network, hp *lab.Hairpin) (end func()) {
	p := &trial{T: part, scale: t.scale}
	p.watch(n, hp)
	return func() { t.parts.add(p.routers()) }
}

// modes returns the modes of hairpin that a scenario goes through.
func (t *trial) modes() []string {
	if t.scale <= short {
		return home.Modes[:1]
	}
	return home.Modes
}

// beside returns the figure of nftables. The short form has none: nobody compares it.
func (t *trial) beside(nftables func() string) string {
	t.Helper()
	if t.scale <= short {
		return ""
	}
	return nftables()
}

// none fails the trial if something happened that must not happen.
func (t *trial) none(happened int, what string) {
	t.Helper()
	if happened != 0 {
		t.Errorf("%d %s, want 0", happened, what)
	}
}

// progress shows how far the scenario is, about ten times.
func (t *trial) progress(done, of int, what string) {
	t.Helper()
	if step := max(1, of/10); t.scale > short && (done%step == 0 || done == of) {
		t.Logf("%d of %d %s", done, of, what)
	}
}

// oracle is the line of the table for what holds in every scenario.
var oracle = scenario{number: 11, name: "Oracle of every scenario",
	demanded: "no packet with a private or inside source leaves by the WAN; no warning in the kernel's log; no leak of maps, programs, links, pins, descriptors, goroutines; nothing left after `detach --all`"}

// verdict is what the oracle of a trial has seen.
type verdict struct{ leaked, complaints, left int }

func (v *verdict) add(other verdict) {
	v.leaked += other.leaked
	v.complaints += other.complaints
	v.left += other.left
}

// String returns the verdict in words for the table.
func (v verdict) String() string {
	return fmt.Sprintf("%d packets, %d warnings, %d left", v.leaked, v.complaints, v.left)
}

// verdict asks the oracle at the end of a scenario. It takes hairpin out of the routers.
func (t *trial) verdict() (v verdict) {
	t.Helper()
	v = t.routers()
	v.add(t.parts)
	for _, complaint := range t.log.Complaints(t) {
		v.complaints++
		t.Errorf("the kernel's log: %s", complaint)
	}
	return v
}

// routers asks the oracle about the watched routers. It takes hairpin out of them.
func (t *trial) routers() (v verdict) {
	t.Helper()
	for _, w := range t.watched {
		v.left += w.before.grown(t.T, w.Network, w.hp)
		inside := w.inside.Stop() // without hairpin, the kernel sends on what still comes
		v.left += removed(t.T, w.hp)
		v.leaked += len(inside)
		for _, packet := range inside[:min(len(inside), 5)] {
			t.Errorf("left by the WAN with an inside source: %s", packet)
		}
	}
	t.none(v.leaked, "packets with an inside source left by the WAN")
	return v
}
