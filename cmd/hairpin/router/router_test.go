// SPDX-License-Identifier: Apache-2.0

package router

import (
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/cmd/hairpin/router/routertest"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

func routerOf(m *routertest.Machine) *Router {
	return New(Options{Datapath: m, Tables: m, Links: m.Links, Routes: m.Routes, Policies: m.Policies, Forwards: m.Forwards, Conntrack: m.Conntrack})
}

// isProblem reports whether an error is about the configuration.
func isProblem(err error) bool { return errors.As(err, new(*rule.Problem)) }

func TestApplyAttachesFirstAndDetachesLast(t *testing.T) {
	m := routertest.NewMachine("wan0", "lan0", "old0")
	m.Attached[4] = loader.Attachment{Interface: "old0", Index: 4, TC: loader.TCX}
	result, err := routerOf(m).Apply(routertest.Config())
	if err != nil || !result.Done {
		t.Fatalf("apply: %v, done %v", err, result.Done)
	}
	m.WantDone(t, "attach wan0 auto", "attach lan0 auto", "apply", "interfaces wan0,lan0", "detach old0")
	if m.Interfaces[0].Role != config.RoleWAN || m.Interfaces[1].Role != config.RoleLAN {
		t.Errorf("roles: %+v", m.Interfaces)
	}
	// Addresses of unmanaged interfaces are addresses of the router, too.
	if len(m.Interfaces) != 3 || m.Interfaces[2].Name != "old0" || m.Interfaces[2].Role != 0 || len(m.Interfaces[2].Addresses) != 1 {
		t.Errorf("others: %+v", m.Interfaces)
	}
	// The tables get every field of a Link.
	want := config.Interface{
		Name: "wan0", Index: 2, Role: config.RoleWAN, MTU: 1402, RPFilter: 2, HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 2},
		Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.2.1/24")},
	}
	if diff := cmp.Diff(want, m.Interfaces[0], cmpopts.EquateComparable(netip.Prefix{})); diff != "" {
		t.Errorf("wan0 (-want +got):\n%s", diff)
	}
}

// TestInterfaceGivenUp: an interface that a change takes out of the configuration is not lost, even while another one is missing. A
// renamed interface may be lost.
func TestInterfaceGivenUp(t *testing.T) {
	m := routertest.NewMachine("wan0", "lan1", "else0")
	for index := 2; index <= 4; index++ {
		m.Attached[index] = loader.Attachment{Index: index, TC: loader.TCX}
	}
	cfg := routertest.Config() // wan0, lan0
	before := cfg
	before.LAN = []string{"lan0", "lan1"}
	m.Config = &before
	if _, err := routerOf(m).Apply(cfg); err != nil {
		t.Fatal(err)
	}
	attached := map[string]bool{}
	for _, i := range m.Interfaces {
		attached[i.Name] = i.Attached
	}
	if want := map[string]bool{"wan0": false, "lan1": false, "else0": true}; !cmp.Equal(attached, want) {
		t.Errorf("may be lost: %v, want %v", attached, want)
	}
}

// TestApplyIsAllOrNothing: if an interface or a table refuses, nothing changes.
func TestApplyIsAllOrNothing(t *testing.T) {
	t.Run("interface refuses", func(t *testing.T) {
		m := routertest.NewMachine("wan0", "lan0")
		m.Refuse["lan0"] = errors.New("somebody else's XDP program")
		if result, err := routerOf(m).Apply(routertest.Config()); err == nil || result.Done {
			t.Errorf("apply: %v, done %v", err, result.Done)
		}
		m.WantDone(t)
	})
	t.Run("interface refuses while something runs", func(t *testing.T) {
		m := routertest.NewMachine("wan0", "lan0")
		m.Refuse["lan0"] = errors.New("somebody else's XDP program")
		cfg := routertest.Config()
		m.Config = &cfg
		if result, err := routerOf(m).Apply(routertest.Config()); err == nil || result.Done || m.Prepared > 0 {
			t.Errorf("apply: %v, done %v, %d prepared", err, result.Done, m.Prepared)
		}
		m.WantDone(t)
	})
	t.Run("tables refuse", func(t *testing.T) {
		m := routertest.NewMachine("wan0", "lan0")
		m.ApplyErr = errors.New("no memory")
		if result, err := routerOf(m).Apply(routertest.Config()); err == nil || result.Done {
			t.Errorf("apply: %v, done %v", err, result.Done)
		}
		m.WantDone(t, "attach wan0 auto", "attach lan0 auto", "detach wan0", "detach lan0")
	})
	t.Run("stand-ins are somebody's", func(t *testing.T) {
		m := routertest.NewMachine("wan0", "lan0")
		m.RouteList = []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15")}
		cfg := routertest.Config()
		cfg.StandIns = []rule.StandIn{
			{Clients: netip.MustParsePrefix("192.168.1.0/24"), Network: netip.MustParsePrefix("198.18.1.0/24")},
			{Clients: netip.MustParsePrefix("192.168.2.0/24"), Network: netip.MustParsePrefix("10.0.3.0/24")},
		}
		_, err := routerOf(m).Apply(cfg)
		if !isProblem(err) || strings.Count(err.Error(), "overlaps") != 2 {
			t.Errorf("apply: %v, want problems of the configuration", err)
		}
		m.WantDone(t)
	})
	t.Run("target is the router", func(t *testing.T) {
		m := routertest.NewMachine("wan0", "lan0")
		cfg := routertest.Config()
		cfg.Forwards[0].Target = netip.MustParseAddr("10.0.3.1")
		_, err := routerOf(m).Apply(cfg)
		if !isProblem(err) {
			t.Errorf("apply: %v, want problems of the configuration", err)
		}
		m.WantDone(t)
	})
}

func TestApplyOfAnotherModeReattaches(t *testing.T) {
	m := routertest.NewMachine("wan0", "lan0")
	cfg := routertest.Config()
	if _, err := routerOf(m).Apply(cfg); err != nil {
		t.Fatal(err)
	}
	m.Did()
	cfg.Mode = config.ModeXDP
	result, err := routerOf(m).Apply(cfg)
	if err != nil {
		t.Fatal(err)
	}
	m.WantDone(t, "attach wan0 xdp", "attach lan0 xdp", "apply", "interfaces wan0,lan0")
	if got := result.Ports[0].Mode(); got != "xdp+tcx" {
		t.Errorf("mode %q, want xdp+tcx", got)
	}
}

// TestRefusedModeChangesNothing: if one interface refuses a new mode, all interfaces and the tables stay as
// they were.
func TestRefusedModeChangesNothing(t *testing.T) {
	refusal := errors.New("somebody else's XDP program")
	running := func(t *testing.T) (*routertest.Machine, config.Config) {
		m, cfg := routertest.NewMachine("wan0", "lan0"), routertest.Config()
		cfg.Mode = config.ModeTC
		if _, err := routerOf(m).Apply(cfg); err != nil {
			t.Fatal(err)
		}
		m.Did()
		cfg.Mode = config.ModeXDP
		return m, cfg
	}
	unchanged := func(t *testing.T, m *routertest.Machine, cfg config.Config) {
		t.Helper()
		result, err := routerOf(m).Apply(cfg)
		if !errors.Is(err, refusal) || result.Done || m.Config.Mode != config.ModeTC {
			t.Errorf("apply: %v, done %v, mode %s", err, result.Done, m.Config.Mode)
		}
	}
	t.Run("when asked", func(t *testing.T) {
		m, cfg := running(t)
		m.Refuse = map[string]error{"lan0": refusal}
		unchanged(t, m, cfg)
		m.WantDone(t)
	})
	t.Run("when attached", func(t *testing.T) {
		m, cfg := running(t)
		m.Fail = map[string]error{"lan0": refusal}
		unchanged(t, m, cfg)
		m.WantDone(t, "attach wan0 xdp", "attach wan0 tc", "attach lan0 tc")
	})
	t.Run("by the tables", func(t *testing.T) {
		m, cfg := running(t)
		m.ApplyErr = refusal
		unchanged(t, m, cfg)
		m.WantDone(t)
	})
}

// TestUnfinishedChangeStays: a change that runs is not undone if a later step fails.
func TestUnfinishedChangeStays(t *testing.T) {
	for name, fail := range map[string]func(*routertest.Machine){
		"tables":     func(m *routertest.Machine) { m.Unfinished = true },
		"interfaces": func(m *routertest.Machine) { m.InterfacesErr = errors.New("no memory") },
	} {
		t.Run(name, func(t *testing.T) {
			m, cfg := routertest.NewMachine("wan0", "lan0"), routertest.Config()
			fail(m)
			result, err := routerOf(m).Apply(cfg)
			if !errors.Is(err, maps.ErrUnfinished) || !result.Done {
				t.Errorf("apply: %v, done %v", err, result.Done)
			}
			m.WantDone(t, "attach wan0 auto", "attach lan0 auto", "apply", "interfaces wan0,lan0")
		})
	}
}

// TestStart: Start keeps the running configuration only if it came from the same files.
func TestStart(t *testing.T) {
	m := routertest.NewMachine("wan0", "lan0")
	cfg := routertest.Config()
	if _, err := routerOf(m).Start(cfg); err != nil {
		t.Fatal(err)
	}
	m.WantDone(t, "attach wan0 auto", "attach lan0 auto", "apply", "interfaces wan0,lan0")

	m.Config.Forwards = append(m.Config.Forwards, rule.Forward{
		Name: "late", Protocols: []rule.Protocol{rule.UDP}, Ports: rule.Ports{First: 53, Last: 53},
		Target: netip.MustParseAddr("10.9.9.9"),
	})
	again, err := routerOf(m).Start(cfg)
	if err != nil || !again.Kept {
		t.Fatalf("start with the same files: %v, kept %v", err, again.Kept)
	}
	m.WantDone(t, "interfaces wan0,lan0")
	if len(m.Config.Forwards) != 2 {
		t.Error("the forward added at run time is gone")
	}

	cfg.Digest = "two"
	edited, err := routerOf(m).Start(cfg)
	if err != nil || edited.Kept {
		t.Fatalf("start with edited files: %v, kept %v", err, edited.Kept)
	}
	m.WantDone(t, "apply", "interfaces wan0,lan0")
}

func TestAttachRefusesAPortOfABridge(t *testing.T) {
	m := routertest.NewMachine("wan0", "lan0", "br0")
	m.Edit("lan0", func(l *loader.Link) { l.PortOf = "br0" })
	result, err := routerOf(m).Apply(routertest.Config())
	if err == nil || result.Done || !strings.Contains(err.Error(), "lan0 is a port of br0") {
		t.Errorf("apply: %v, done %v", err, result.Done)
	}
	m.WantDone(t)
}

func TestSummary(t *testing.T) {
	for want, change := range map[string]config.Change{
		"1 forward, nothing to do":  {Unchanged: 1},
		"2 forwards, nothing to do": {Unchanged: 2},
		"1 added, 2 removed, 1 changed, 3 unchanged; settings: timeouts.udp": {
			Added: []string{"a"}, Removed: []string{"b", "c"}, Changed: []string{"d"}, Unchanged: 3, Settings: []string{"timeouts.udp"},
		},
	} {
		if got := (Result{Change: change}).Summary(); got != want {
			t.Errorf("Summary = %q, want %q", got, want)
		}
	}
}

// IPsec policies are written before the interfaces by which a connection could open. Policies that cannot be read keep a
// router from its first start, but not from following its interfaces later.
func TestPoliciesBeforeInterfaces(t *testing.T) {
	m := routertest.NewMachine("wan0", "lan0")
	r := routerOf(m)
	broken := errors.New("no memory")
	m.PolicyList = []loader.Policy{{Protocol: 6, Protects: true}}
	m.PoliciesErr = broken
	for range 2 { // the second start finds the configuration of the first
		result, err := r.Start(routertest.Config())
		if !errors.Is(err, broken) || errors.Is(err, ErrOldPolicies) || len(m.Interfaces) > 0 {
			t.Errorf("first start: %+v, %v, interfaces %v", result, err, m.Interfaces)
		}
	}
	m.WantDone(t, "attach wan0 auto", "attach lan0 auto", "apply")

	m.PoliciesErr = nil
	if _, err := r.Start(routertest.Config()); err != nil {
		t.Error(err)
	}
	m.WantDone(t, "policies 1", "interfaces wan0,lan0")
	if got := m.PoliciesSet; len(got) != 1 || got[0] != (config.Policy{Protocol: 6, Protects: true}) {
		t.Errorf("the tables have the policies %+v", got)
	}

	m.PoliciesErr = broken
	m.Plug("wan1", 9)
	m.Attached[9] = loader.Attachment{Interface: "wan1", Index: 9, TC: loader.TCX}
	ports, err := r.Follow(nil)
	if !errors.Is(err, broken) || !errors.Is(err, ErrOldPolicies) || ports == nil {
		t.Errorf("follow: %v, %v", ports, err)
	}
	m.WantDone(t, "interfaces wan0,lan0", "detach wan1")
}
