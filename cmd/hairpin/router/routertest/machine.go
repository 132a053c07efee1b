// SPDX-License-Identifier: Apache-2.0

// Package routertest has a machine in memory, for tests of the router and the daemon. It never touches the
// kernel.
package routertest

import (
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Machine is a kernel in memory: interfaces, attachments and tables. It has the methods that a
// router.Router uses of a datapath, of tables and of the system.
type Machine struct {
	List          []loader.Link
	Attached      map[int]loader.Attachment
	Refuse        map[string]error // interfaces whose Probe and Attach fail
	Fail          map[string]error // interfaces whose Attach in mode xdp fails; Probe succeeds
	RouteList     []netip.Prefix
	PolicyList    []loader.Policy
	ForwardingOff map[string]bool // keys: "net.ipv4/IF" and "net.ipv4/all"
	Config        *config.Config  // the running configuration
	ApplyErr      error
	Unfinished    bool           // a step after the swap fails
	InterfacesErr error          // error of SetInterfaces
	Swaps         uint32         // number of configurations that ran
	Connections   map[string]int // present connections, by the forward's name
	Prepared      int            // number of prepared configurations; not all are applied
	Interfaces    []config.Interface
	PoliciesSet   []config.Policy // IPsec policies that the tables have
	PoliciesErr   error           // error of Policies
	Grace         time.Duration   // what is left of the grace of a lost address; 0: no address is lost
	Lost          []int           // interfaces that keep their role though they have lost their name
	Sweep         func() (int, error)
	GraceAsked    int // number of calls of GraceLeft

	prepared *config.Config
	log      []string // the changes, in order
}

// NewMachine makes a machine with interfaces of these names. Each is up and has an IPv4 address.
func NewMachine(names ...string) *Machine {
	m := &Machine{Attached: map[int]loader.Attachment{}, Refuse: map[string]error{}}
	for i, name := range names {
		m.Plug(name, i+2)
	}
	return m
}

// Plug adds an interface.
func (m *Machine) Plug(name string, index int) {
	m.List = append(m.List, loader.Link{
		Name: name, Index: index, Up: true, MTU: 1400 + index, Bare: index == 9, RPFilter: uint8(index % 3), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, byte(index)},
		Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(index), 1}), 24)},
	})
}

// Unplug removes an interface. As in the kernel, its attachment ends.
func (m *Machine) Unplug(name string) {
	m.List = slices.DeleteFunc(m.List, func(l loader.Link) bool {
		if l.Name == name {
			delete(m.Attached, l.Index)
		}
		return l.Name == name
	})
}

// Edit changes an interface, as the kernel would.
func (m *Machine) Edit(name string, edit func(*loader.Link)) {
	i := slices.IndexFunc(m.List, func(l loader.Link) bool { return l.Name == name })
	edit(&m.List[i])
}

// Links replaces loader.Links.
func (m *Machine) Links() ([]loader.Link, error) { return slices.Clone(m.List), nil }

// Routes replaces loader.Routes.
func (m *Machine) Routes() ([]netip.Prefix, error) { return m.RouteList, nil }

// Policies is that of the package loader.
func (m *Machine) Policies() ([]loader.Policy, error) { return m.PolicyList, m.PoliciesErr }

// Conntrack is that of the programs of the package loader.
func (m *Machine) Conntrack() (loader.Conntrack, error) { return loader.ConntrackAsked, nil }

// Forwards replaces router.Options.Forwards.
func (m *Machine) Forwards(sysctl, ifname string) bool { return !m.ForwardingOff[sysctl+"/"+ifname] }

// Probe implements router.Datapath.
func (m *Machine) Probe(name string, _ loader.Hooks) error {
	if !slices.ContainsFunc(m.List, func(l loader.Link) bool { return l.Name == name }) {
		return loader.ErrNoInterface
	}
	return m.Refuse[name]
}

// Attach implements router.Datapath.
func (m *Machine) Attach(name string, want loader.Hooks) (loader.Attachment, error) {
	i := slices.IndexFunc(m.List, func(l loader.Link) bool { return l.Name == name })
	if i < 0 {
		return loader.Attachment{}, loader.ErrNoInterface
	}
	if err := m.Refuse[name]; err != nil {
		return loader.Attachment{}, err
	}
	if err := m.Fail[name]; err != nil && want.Mode == loader.ModeXDP {
		return loader.Attachment{}, err
	}
	m.log = append(m.log, "attach "+name+" "+string(want.Mode))
	a := loader.Attachment{Interface: name, Index: m.List[i].Index, TC: loader.TCX, Guard: want.Guard}
	if want.Mode == loader.ModeXDP {
		a.XDP = loader.XDPNative
	}
	m.Attached[a.Index] = a
	return a, nil
}

// Detach implements router.Datapath.
func (m *Machine) Detach(index int) error {
	name := m.Attached[index].Interface
	if name == "" {
		name = strconv.Itoa(index) // the interface was deleted
	}
	m.log = append(m.log, "detach "+name)
	delete(m.Attached, index)
	return nil
}

// Attachments implements router.Datapath.
func (m *Machine) Attachments() ([]loader.Attachment, error) {
	var list []loader.Attachment
	for _, a := range m.Attached {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b loader.Attachment) int { return a.Index - b.Index })
	return list, nil
}

// Running implements router.Tables.
func (m *Machine) Running() (config.Config, error) {
	if m.Config == nil {
		return config.Default(), maps.ErrEmpty
	}
	return *m.Config, nil
}

// Settings implements router.Tables.
func (m *Machine) Settings() (config.Config, error) {
	c, err := m.Running()
	c.Forwards = nil
	return c, err
}

// Generation implements router.Tables.
func (m *Machine) Generation() (uint32, error) { return m.Swaps, nil }

// Drains implements router.Tables.
func (m *Machine) Drains() (list []rule.Forward, err error) {
	if m.Config == nil {
		return nil, nil
	}
	for _, f := range m.Config.Forwards {
		if f.Drains() {
			list = append(list, f)
		}
	}
	return list, nil
}

// Leases implements router.Tables.
func (m *Machine) Leases() (list []rule.Forward, err error) {
	if m.Config == nil {
		return nil, nil
	}
	for _, f := range m.Config.Forwards {
		if f.IsLease() && !f.Drains() {
			list = append(list, f)
		}
	}
	return list, nil
}

// CountConnections implements router.Tables. It ignores the selector.
func (m *Machine) CountConnections(rule.Selector) (maps.Count, error) {
	return maps.Count{Forwards: m.Connections}, nil
}

// Plan implements router.Tables.
func (m *Machine) Plan(config.Config) (config.Change, error) { return config.Change{}, nil }

// Prepare implements router.Tables.
func (m *Machine) Prepare(c config.Config) (config.Change, error) {
	m.Prepared++
	m.prepared = &c
	return config.Change{}, m.ApplyErr
}

// Swap implements router.Tables.
func (m *Machine) Swap() error {
	m.log = append(m.log, "apply")
	m.Config = m.prepared
	m.Swaps++
	if m.Unfinished {
		return maps.ErrUnfinished
	}
	return nil
}

// Add implements router.Tables. It always returns false, so the router calls Prepare.
func (m *Machine) Add(rule.Forward) (bool, error) { return false, nil }

// SetInterfaces implements router.Tables.
func (m *Machine) SetInterfaces(list []config.Interface) error {
	var names []string
	for _, i := range list {
		if i.Role != 0 {
			names = append(names, i.Name)
		}
	}
	m.Interfaces = list
	m.log = append(m.log, "interfaces "+strings.Join(names, ","))
	return m.InterfacesErr
}

// SetPolicies implements router.Tables. As in the tables, nothing is done if the list is the present one.
func (m *Machine) SetPolicies(list []config.Policy) error {
	if !slices.Equal(m.PoliciesSet, list) {
		m.log = append(m.log, "policies "+strconv.Itoa(len(list)))
	}
	m.PoliciesSet = list
	return nil
}

// HasInterfaces implements router.Tables.
func (m *Machine) HasInterfaces() (bool, error) {
	return slices.ContainsFunc(m.Interfaces, func(i config.Interface) bool { return i.Role != 0 }), nil
}

// LostInterfaces implements router.Tables.
func (m *Machine) LostInterfaces() ([]int, error) { return m.Lost, nil }

// GraceLeft implements router.Tables.
func (m *Machine) GraceLeft() (left time.Duration, away bool, err error) {
	m.GraceAsked++
	return m.Grace, m.Grace != 0, nil
}

// HasIPv6 implements router.Tables.
func (m *Machine) HasIPv6() (bool, error) {
	return m.Config != nil && slices.ContainsFunc(m.Config.Forwards, func(f rule.Forward) bool { return f.Target.Is6() }), nil
}

// SweepDenied is that of tables. A machine without Sweep denies nobody.
func (m *Machine) SweepDenied() (int, error) {
	if m.Sweep == nil {
		return 0, nil
	}
	return m.Sweep()
}

// BumpRoutes implements router.Tables.
func (m *Machine) BumpRoutes() error {
	m.log = append(m.log, "routes")
	return nil
}

// Did returns the changes since the last call.
func (m *Machine) Did() []string {
	log := m.log
	m.log = nil
	return log
}

// WantDone checks the changes since the last call.
func (m *Machine) WantDone(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, m.Did()); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
}

// Config returns a valid configuration of wan0 and lan0 with one forward.
func Config() config.Config {
	cfg := config.Default()
	cfg.WAN, cfg.LAN, cfg.MetricsListen = []string{"wan0"}, []string{"lan0"}, ""
	cfg.Digest = "one"
	cfg.Forwards = []rule.Forward{{
		Name: "web", Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: 80, Last: 80},
		Target: netip.MustParseAddr("10.9.9.9"), Source: "hairpin.toml:9",
	}}
	return cfg
}
