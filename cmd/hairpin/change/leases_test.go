// SPDX-License-Identifier: Apache-2.0

package change

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// lease is a mapping of a port to a host of lan0, whose network is 10.0.3.0/24.
func lease(port uint16, target string) rule.Forward {
	return rule.Forward{
		Name: fmt.Sprintf("lease-tcp-%d", port), Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: port, Last: port},
		Target: netip.MustParseAddr(target), TargetPort: port, LANOnly: true, Source: rule.SourceLease,
	}
}

func following(digest string) config.Config {
	cfg := files(digest)
	cfg.Leases.Files = []string{"/run/leases"}
	return cfg
}

// follows runs a configuration with a lease file, and mappings of these ports.
func follows(t *testing.T, ports ...uint16) *fake {
	t.Helper()
	f := newFake(t)
	if _, err := f.Apply(following("one"), "apply one"); err != nil {
		t.Fatal(err)
	}
	f.set(t, ports...)
	return f
}

func (f *fake) set(t *testing.T, ports ...uint16) Leased {
	t.Helper()
	var list []rule.Forward
	for _, port := range ports {
		list = append(list, lease(port, "10.0.3.50"))
	}
	done, err := f.SetLeases(list)
	if err != nil {
		t.Fatal(err)
	}
	return done
}

// names of the running leases; those that drain have a star.
func (f *fake) leases() string {
	var names []string
	for _, g := range f.machine.Config.Forwards {
		if g.IsLease() {
			names = append(names, strings.TrimPrefix(g.Name, "lease-tcp-")+map[bool]string{true: "*"}[g.Drains()])
		}
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func (f *fake) wantLeases(t *testing.T, when, want string) {
	t.Helper()
	if got := f.leases(); got != want {
		t.Errorf("%s: %q, want %q", when, got, want)
	}
}

// TestSetLeases: only a difference is a change; what has ended drains, and goes on if it is back.
func TestSetLeases(t *testing.T) {
	f := follows(t, 3074, 3075)
	f.wantLeases(t, "two mappings", "3074 3075")
	swaps := f.machine.Swaps
	if done := f.set(t, 3075, 3074); done.Added+done.Removed != 0 || done.Running != 2 || f.machine.Swaps != swaps {
		t.Errorf("nothing new: %+v, %d changes", done, f.machine.Swaps-swaps)
	}
	if done := f.set(t, 3075, 3076); done.Added != 1 || done.Removed != 1 || f.machine.Swaps != swaps+1 {
		t.Errorf("one of two: %+v, %d changes", done, f.machine.Swaps-swaps)
	}
	f.wantLeases(t, "one of two is another", "3074* 3075 3076")
	f.machine.Connections = map[string]int{"lease-tcp-3074": 1}
	if over, err := f.FinishDrains(); len(over) > 0 || err != nil {
		t.Errorf("a mapping with a connection is over: %v, %v", over, err)
	}
	f.set(t, 3074, 3075)
	f.wantLeases(t, "it is back", "3074 3075 3076*")
	f.machine.Connections = nil
	if over, err := f.FinishDrains(); !slices.Equal(over, []string{"lease-tcp-3076"}) || err != nil {
		t.Errorf("%v, %v", over, err)
	}
	f.wantLeases(t, "drained", "3074 3075")
	f.set(t)
	f.wantLeases(t, "none", "3074* 3075*")
}

// TestLeaseDrainsAreFew: a program that makes and deletes mappings all the time does not fill the tables.
func TestLeaseDrainsAreFew(t *testing.T) {
	f := newFake(t)
	cfg := following("one")
	cfg.Leases.Max = 2
	if _, err := f.Apply(cfg, "apply one"); err != nil {
		t.Fatal(err)
	}
	for port := uint16(5000); port < 5010; port++ {
		f.set(t, port)
	}
	f.wantLeases(t, "after ten", "5007* 5008* 5009")
}

// TestRefusedLeases: a mapping never meets a forward of the configuration, and its target is a host of a LAN.
func TestRefusedLeases(t *testing.T) {
	f := newFake(t)
	cfg := following("one") // a forward of port 80
	for _, words := range []string{"range udp,tcp 4000-4010 to 10.0.3.9", "own tcp 10.0.3.60:81 to 10.0.3.9", "lease-tcp-82 udp 9 to 10.0.3.9"} {
		g, err := rule.ParseForward(strings.Fields(words))
		if err != nil {
			t.Fatal(err)
		}
		cfg.Forwards = append(cfg.Forwards, g)
	}
	off, err := rule.ParseForward(strings.Fields("off tcp 83 to 10.0.3.9"))
	if err != nil {
		t.Fatal(err)
	}
	off.Disabled = true
	cfg.Disabled = []rule.Forward{off}
	if _, err := f.Apply(cfg, "apply one"); err != nil {
		t.Fatal(err)
	}
	done, err := f.SetLeases([]rule.Forward{
		lease(80, "10.0.3.50"), lease(4005, "10.0.3.50"), lease(82, "10.0.3.50"), lease(83, "10.0.3.50"), lease(84, "10.0.3.50"),
		lease(85, "10.0.3.1"), lease(86, "10.0.2.50"), lease(87, "198.51.100.7"), lease(88, "10.0.3.255"), lease(89, "10.0.3.60"), lease(81, "10.0.3.50"),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.wantLeases(t, "refused", "81 83 84") // the forward of port 81 is at another address, that of 83 is disabled
	var refused []string
	for _, r := range done.Refused {
		refused = append(refused, strings.TrimPrefix(r.Name, "lease-tcp-")+" "+r.Reason)
	}
	if want := []string{"80 taken", "4005 taken", "82 taken", "85 target", "86 target", "87 target", "88 target", "89 target"}; !slices.Equal(refused, want) {
		t.Errorf("%q, want %q", refused, want)
	}
}

// TestConfiguredForwardWins: a forward that comes later has the port, and the mapping goes.
func TestConfiguredForwardWins(t *testing.T) {
	later, err := rule.ParseForward(strings.Fields("later tcp 3070-3079 to 10.0.3.9"))
	if err != nil {
		t.Fatal(err)
	}
	t.Run("apply", func(t *testing.T) {
		f := follows(t, 3074, 5000)
		cfg := following("two")
		cfg.Forwards = append(cfg.Forwards, later)
		if _, err := f.Apply(cfg, "apply"); err != nil {
			t.Fatal(err)
		}
		f.wantLeases(t, "applied", "5000")
	})
	t.Run("forward add", func(t *testing.T) {
		f := follows(t, 3074, 5000)
		cfg := *f.machine.Config
		if _, err := f.Add(cfg, later, "forward add later"); err != nil {
			t.Fatal(err)
		}
		f.wantLeases(t, "added", "5000")
		if !slices.ContainsFunc(f.machine.Config.Forwards, func(g rule.Forward) bool { return g.Name == "later" }) {
			t.Error("the forward does not run")
		}
	})
}

// TestLeasesAreNeverKept: no kept configuration has them. They go on beside whatever runs, as long as it follows the files.
func TestLeasesAreNeverKept(t *testing.T) {
	f := follows(t, 3074)
	wait := func(digest string) {
		t.Helper()
		if _, waits, err := f.ApplyUntil(following(digest), "apply "+digest, time.Hour, noWatch); err != nil || !waits {
			t.Fatalf("waits %v, %v", waits, err)
		}
	}
	wait("two")
	f.wantLeases(t, "a change that waits", "3074")
	if p, err := f.Store.Pending(); err != nil || slices.ContainsFunc(p.Before.Forwards, func(f rule.Forward) bool { return f.IsLease() }) {
		t.Errorf("the configuration to return to: %+v, %v", p, err)
	}
	f.set(t, 3074, 3075) // while the change waits
	if p, err := f.Waiting(); p == nil || err != nil {
		t.Errorf("the change waits no more: %v, %v", p, err)
	}
	f.overdue(t)
	if _, err := f.Settle(); err != nil {
		t.Fatal(err)
	}
	f.want(t, "taken back", "one")
	f.wantLeases(t, "taken back", "3074 3075")
	if _, err := f.Apply(following("three"), "apply three"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Rollback(1); err != nil {
		t.Fatal(err)
	}
	f.want(t, "rolled back", "one")
	f.wantLeases(t, "rolled back", "3074 3075")
	started, err := f.Start(following("four"), nil)
	if err != nil || started.Apart != nil {
		t.Fatalf("%+v, %v", started, err)
	}
	f.wantLeases(t, "another start", "3074 3075")
	list, err := f.Store.List()
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range list {
		cfg, err := f.Store.Config(g)
		if err != nil || slices.ContainsFunc(cfg.Forwards, func(f rule.Forward) bool { return f.IsLease() }) {
			t.Errorf("kept: %+v, %v", cfg.Forwards, err)
		}
	}
	if _, err := f.Apply(files("five"), "apply five"); err != nil {
		t.Fatal(err)
	}
	f.wantLeases(t, "no file is followed", "")
}

// TestTargetThatIsOursNow: a mapping whose target has become an address of the router does not keep a configuration from running.
func TestTargetThatIsOursNow(t *testing.T) {
	f := follows(t, 3074)
	f.machine.Plug("dmz0", 9)
	f.machine.List[len(f.machine.List)-1].Addresses = []netip.Prefix{netip.MustParsePrefix("10.0.3.50/32")}
	if _, err := f.Apply(following("two"), "apply two"); err != nil {
		t.Fatal(err)
	}
	f.wantLeases(t, "applied", "")
	f.want(t, "applied", "two")
}

// TestRefusedApplyOfLeases: what the tables refuse changes nothing.
func TestRefusedApplyOfLeases(t *testing.T) {
	f := follows(t, 3074)
	f.machine.ApplyErr = errors.New("no memory")
	if done, err := f.SetLeases([]rule.Forward{lease(3074, "10.0.3.50"), lease(3075, "10.0.3.50")}); err == nil || done.Running != 0 {
		t.Errorf("%+v, %v", done, err)
	}
	f.wantLeases(t, "refused", "3074")
}

// TestLeasesWithReflectionOff: whoever follows lease files wants them to be reflected.
func TestLeasesWithReflectionOff(t *testing.T) {
	f := newFake(t)
	cfg := following("one")
	cfg.Reflection = rule.ReflectOff
	if _, err := f.Apply(cfg, "apply one"); err != nil {
		t.Fatal(err)
	}
	f.set(t, 3074)
	if mode := f.machine.Config.ReflectOf(f.machine.Config.Forwards[1]); mode != rule.ReflectAuto {
		t.Errorf("reflect %s", mode)
	}
	if done := f.set(t, 3074); done.Added != 0 {
		t.Errorf("again: %+v", done)
	}
}
