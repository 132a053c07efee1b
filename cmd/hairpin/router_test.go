// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/loader"
	"hairpin/maps"
)

// machineFake is a kernel in memory: interfaces, what is attached to them, and tables.
type machineFake struct {
	list       []loader.Link
	attached   map[int]loader.Attachment
	refuse     map[string]error // interfaces that refuse the programs, and say so before
	fail       map[string]error // interfaces that fail to attach in mode xdp, whatever they said before
	routes     []netip.Prefix
	running    *maps.Config
	applyErr   error
	unfinished bool // a step after the swap fails
	prepared   int  // configurations, not all of which are applied

	log        []string // what was done, in order
	interfaces []maps.Interface
}

func newMachine(names ...string) *machineFake {
	m := &machineFake{attached: map[int]loader.Attachment{}, refuse: map[string]error{}}
	for i, name := range names {
		m.plug(name, i+2)
	}
	return m
}

func (m *machineFake) router() *router {
	return &router{attacher: m, tables: m, links: func() ([]loader.Link, error) { return slices.Clone(m.list), nil },
		routes: func() ([]netip.Prefix, error) { return m.routes, nil }}
}

func (m *machineFake) plug(name string, index int) {
	m.list = append(m.list, loader.Link{
		Name: name, Index: index, Up: true, MTU: 1400 + index, PPP: index == 9, RPFilter: uint8(index % 3), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, byte(index)},
		Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(index), 1}), 24)},
	})
}

// unplug also ends what was attached, as the kernel does.
func (m *machineFake) unplug(name string) {
	m.list = slices.DeleteFunc(m.list, func(l loader.Link) bool {
		if l.Name == name {
			delete(m.attached, l.Index)
		}
		return l.Name == name
	})
}

func (m *machineFake) Probe(name string, _ loader.Hooks) error {
	if !slices.ContainsFunc(m.list, func(l loader.Link) bool { return l.Name == name }) {
		return loader.ErrNoInterface
	}
	return m.refuse[name]
}

func (m *machineFake) Attach(name string, want loader.Hooks) (loader.Attachment, error) {
	i := slices.IndexFunc(m.list, func(l loader.Link) bool { return l.Name == name })
	if i < 0 {
		return loader.Attachment{}, loader.ErrNoInterface
	}
	if err := m.refuse[name]; err != nil {
		return loader.Attachment{}, err
	}
	if err := m.fail[name]; err != nil && want.Mode == loader.ModeXDP {
		return loader.Attachment{}, err
	}
	m.log = append(m.log, "attach "+name+" "+string(want.Mode))
	a := loader.Attachment{Interface: name, Index: m.list[i].Index, TC: loader.TCX, Guard: want.Guard}
	if want.Mode == loader.ModeXDP {
		a.XDP = loader.XDPNative
	}
	m.attached[a.Index] = a
	return a, nil
}

func (m *machineFake) Detach(index int) error {
	name := m.attached[index].Interface
	if name == "" {
		name = strconv.Itoa(index) // gone
	}
	m.log = append(m.log, "detach "+name)
	delete(m.attached, index)
	return nil
}

func (m *machineFake) Attachments() ([]loader.Attachment, error) {
	var list []loader.Attachment
	for _, a := range m.attached {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b loader.Attachment) int { return a.Index - b.Index })
	return list, nil
}

func (m *machineFake) Running() (maps.Config, error) {
	if m.running == nil {
		return maps.DefaultConfig(), maps.ErrEmpty
	}
	return *m.running, nil
}

func (m *machineFake) Settings() (maps.Config, error) {
	c, err := m.Running()
	c.Forwards = nil
	return c, err
}

func (m *machineFake) Plan(c maps.Config) (maps.Change, error) { return maps.Change{}, c.Validate() }

func (m *machineFake) Prepare(c maps.Config) (swap func() (maps.Change, error), err error) {
	m.prepared++
	if err := errors.Join(c.Validate(), m.applyErr); err != nil {
		return nil, err
	}
	return func() (maps.Change, error) {
		m.log = append(m.log, "apply")
		m.running = &c
		if m.unfinished {
			return maps.Change{}, maps.ErrUnfinished
		}
		return maps.Change{}, nil
	}, nil
}

// Add leaves everything to Apply.
func (m *machineFake) Add(maps.Forward) (bool, error) { return false, nil }

func (m *machineFake) SetInterfaces(list []maps.Interface) error {
	var names []string
	for _, i := range list {
		if i.Role != 0 {
			names = append(names, i.Name)
		}
	}
	m.interfaces = list
	m.log = append(m.log, "interfaces "+strings.Join(names, ","))
	return nil
}

func (m *machineFake) HasIPv6() (bool, error) { return m.running != nil && serves6(*m.running), nil }

func (m *machineFake) BumpRoutes() error {
	m.log = append(m.log, "routes")
	return nil
}

// did returns what was done since it was asked last.
func (m *machineFake) did() []string {
	log := m.log
	m.log = nil
	return log
}

func wantDone(t *testing.T, m *machineFake, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, m.did()); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
}

func testConfig() maps.Config {
	cfg := maps.DefaultConfig()
	cfg.WAN, cfg.LAN, cfg.MetricsListen = []string{"wan0"}, []string{"lan0"}, ""
	cfg.Digest = "one"
	cfg.Forwards = []maps.Forward{{
		Name: "web", Protocols: []maps.Protocol{maps.TCP}, Ports: maps.Ports{First: 80, Last: 80},
		Target: netip.MustParseAddr("10.9.9.9"), Source: "hairpin.toml:9",
	}}
	return cfg
}

func TestApplyAttachesFirstAndDetachesLast(t *testing.T) {
	m := newMachine("wan0", "lan0", "old0")
	m.attached[4] = loader.Attachment{Interface: "old0", Index: 4, TC: loader.TCX}
	result, err := m.router().apply(testConfig())
	if err != nil || !result.done {
		t.Fatalf("apply: %v, done %v", err, result.done)
	}
	wantDone(t, m, "attach wan0 auto", "attach lan0 auto", "apply", "interfaces wan0,lan0", "detach old0")
	if m.interfaces[0].Role != maps.RoleWAN || m.interfaces[1].Role != maps.RoleLAN {
		t.Errorf("roles: %+v", m.interfaces)
	}
	// The addresses of others are the router's own, too.
	if len(m.interfaces) != 3 || m.interfaces[2].Name != "old0" || m.interfaces[2].Role != 0 || len(m.interfaces[2].Addresses) != 1 {
		t.Errorf("others: %+v", m.interfaces)
	}
	// All of what a link is gets to the tables.
	want := maps.Interface{
		Name: "wan0", Index: 2, Role: maps.RoleWAN, MTU: 1402, RPFilter: 2, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.1/24")},
	}
	if diff := cmp.Diff(want, m.interfaces[0], cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("wan0 (-want +got):\n%s", diff)
	}
}

// An interface or a table that refuses leaves everything as it was.
func TestApplyIsAllOrNothing(t *testing.T) {
	t.Run("interface refuses", func(t *testing.T) {
		m := newMachine("wan0", "lan0")
		m.refuse["lan0"] = errors.New("somebody else's XDP program")
		if result, err := m.router().apply(testConfig()); err == nil || result.done {
			t.Errorf("apply: %v, done %v", err, result.done)
		}
		wantDone(t, m)
	})
	t.Run("interface refuses while something runs", func(t *testing.T) {
		m := newMachine("wan0", "lan0")
		m.refuse["lan0"] = errors.New("somebody else's XDP program")
		cfg := testConfig()
		m.running = &cfg
		if result, err := m.router().apply(testConfig()); err == nil || result.done || m.prepared > 0 {
			t.Errorf("apply: %v, done %v, %d prepared", err, result.done, m.prepared)
		}
		wantDone(t, m)
	})
	t.Run("tables refuse", func(t *testing.T) {
		m := newMachine("wan0", "lan0")
		m.applyErr = errors.New("no memory")
		if result, err := m.router().apply(testConfig()); err == nil || result.done {
			t.Errorf("apply: %v, done %v", err, result.done)
		}
		wantDone(t, m, "attach wan0 auto", "attach lan0 auto", "detach wan0", "detach lan0")
	})
	t.Run("stand-ins are somebody's", func(t *testing.T) {
		m := newMachine("wan0", "lan0")
		m.routes = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}
		cfg := testConfig()
		cfg.StandIns = []maps.StandIn{
			{Clients: netip.MustParsePrefix("192.168.1.0/24"), Network: netip.MustParsePrefix("198.18.1.0/24")},
			{Clients: netip.MustParsePrefix("192.168.2.0/24"), Network: netip.MustParsePrefix("10.0.3.0/24")},
		}
		_, err := m.router().apply(cfg)
		if exitCode(err) != exitInvalid || strings.Count(err.Error(), "overlaps") != 2 {
			t.Errorf("apply: %v, exit code %d", err, exitCode(err))
		}
		wantDone(t, m)
	})
	t.Run("target is the router", func(t *testing.T) {
		m := newMachine("wan0", "lan0")
		cfg := testConfig()
		cfg.Forwards[0].Target = netip.MustParseAddr("10.0.3.1")
		_, err := m.router().apply(cfg)
		if exitCode(err) != exitInvalid {
			t.Errorf("apply: %v, exit code %d", err, exitCode(err))
		}
		wantDone(t, m)
	})
}

func TestApplyOfAnotherModeReattaches(t *testing.T) {
	m := newMachine("wan0", "lan0")
	cfg := testConfig()
	if _, err := m.router().apply(cfg); err != nil {
		t.Fatal(err)
	}
	m.did()
	cfg.Mode = maps.ModeXDP
	result, err := m.router().apply(cfg)
	if err != nil {
		t.Fatal(err)
	}
	wantDone(t, m, "attach wan0 xdp", "attach lan0 xdp", "apply", "interfaces wan0,lan0")
	if got := result.ports[0].mode(); got != "xdp+tcx" {
		t.Errorf("mode %q, want xdp+tcx", got)
	}
}

// An interface that refuses another mode leaves all of them, and the tables, as they were.
func TestRefusedModeChangesNothing(t *testing.T) {
	refusal := errors.New("somebody else's XDP program")
	running := func(t *testing.T) (*machineFake, maps.Config) {
		m, cfg := newMachine("wan0", "lan0"), testConfig()
		cfg.Mode = maps.ModeTC
		if _, err := m.router().apply(cfg); err != nil {
			t.Fatal(err)
		}
		m.did()
		cfg.Mode = maps.ModeXDP
		return m, cfg
	}
	unchanged := func(t *testing.T, m *machineFake, cfg maps.Config) {
		t.Helper()
		result, err := m.router().apply(cfg)
		if !errors.Is(err, refusal) || result.done || m.running.Mode != maps.ModeTC {
			t.Errorf("apply: %v, done %v, mode %s", err, result.done, m.running.Mode)
		}
	}
	t.Run("when asked", func(t *testing.T) {
		m, cfg := running(t)
		m.refuse = map[string]error{"lan0": refusal}
		unchanged(t, m, cfg)
		wantDone(t, m)
	})
	t.Run("when attached", func(t *testing.T) {
		m, cfg := running(t)
		m.fail = map[string]error{"lan0": refusal}
		unchanged(t, m, cfg)
		wantDone(t, m, "attach wan0 xdp", "attach wan0 tc", "attach lan0 tc")
	})
	t.Run("by the tables", func(t *testing.T) {
		m, cfg := running(t)
		m.applyErr = refusal
		unchanged(t, m, cfg)
		wantDone(t, m)
	})
}

// A change that runs, although a step after it failed, is not taken back.
func TestUnfinishedChangeStays(t *testing.T) {
	m, cfg := newMachine("wan0", "lan0"), testConfig()
	m.unfinished = true
	result, err := m.router().apply(cfg)
	if !errors.Is(err, maps.ErrUnfinished) || !result.done {
		t.Errorf("apply: %v, done %v", err, result.done)
	}
	wantDone(t, m, "attach wan0 auto", "attach lan0 auto", "apply", "interfaces wan0,lan0")
}

// What runs over a live datapath depends on whether the files are those that it was served with.
func TestStart(t *testing.T) {
	m := newMachine("wan0", "lan0")
	cfg := testConfig()
	if _, err := m.router().start(cfg); err != nil {
		t.Fatal(err)
	}
	wantDone(t, m, "attach wan0 auto", "attach lan0 auto", "apply", "interfaces wan0,lan0")

	m.running.Forwards = append(m.running.Forwards, maps.Forward{
		Name: "late", Protocols: []maps.Protocol{maps.UDP}, Ports: maps.Ports{First: 53, Last: 53},
		Target: netip.MustParseAddr("10.9.9.9"),
	})
	again, err := m.router().start(cfg)
	if err != nil || !again.kept {
		t.Fatalf("start with the same files: %v, kept %v", err, again.kept)
	}
	wantDone(t, m, "interfaces wan0,lan0")
	if len(m.running.Forwards) != 2 {
		t.Error("the forward added at run time is gone")
	}

	cfg.Digest = "two"
	edited, err := m.router().start(cfg)
	if err != nil || edited.kept {
		t.Fatalf("start with edited files: %v, kept %v", err, edited.kept)
	}
	wantDone(t, m, "apply", "interfaces wan0,lan0")
}

func TestUnsaved(t *testing.T) {
	forward := func(name, source string) maps.Forward {
		f, err := maps.ParseForward([]string{name, "tcp", "80", "to", "192.168.1.20"})
		if err != nil {
			t.Fatal(err)
		}
		f.Source = source
		return f
	}
	const own = "/etc/hairpin/forwards.d/50-cli.toml"
	names := func(list []maps.Forward) (names []string) {
		for _, f := range list {
			names = append(names, f.Name)
		}
		return names
	}
	running := maps.Config{Forwards: []maps.Forward{forward("web", "/etc/hairpin/hairpin.toml:9"), forward("kept", own+":4"), forward("new", sourceCLI)}}

	t.Run("what no other file defines", func(t *testing.T) {
		files := maps.Config{Forwards: []maps.Forward{running.Forwards[0], running.Forwards[1], forward("dropped", own+":9")}}
		list, err := unsaved(running, files, maps.Change{Added: []string{"dropped"}, Removed: []string{"new"}}, own)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"kept", "new"}, names(list)); diff != "" {
			t.Errorf("saved (-want +got):\n%s", diff)
		}
	})
	t.Run("what somebody wrote", func(t *testing.T) {
		files := maps.Config{Forwards: []maps.Forward{running.Forwards[0], forward("gone", "/etc/hairpin/forwards.d/10-a.toml:3")}}
		_, err := unsaved(running, files, maps.Change{Added: []string{"gone"}, Changed: []string{"web"}}, own)
		if exitCode(err) != exitInvalid {
			t.Fatalf("unsaved: %v, exit code %d", err, exitCode(err))
		}
		for _, want := range []string{`/etc/hairpin/hairpin.toml:9: forward "web" was changed`, `/etc/hairpin/forwards.d/10-a.toml:3: forward "gone" was deleted`} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error lacks %q:\n%v", want, err)
			}
		}
	})
}
