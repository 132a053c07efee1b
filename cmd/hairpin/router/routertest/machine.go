// SPDX-License-Identifier: Apache-2.0

// Package routertest has a machine in memory for tests of a router and of its daemon. It never touches the kernel.
package routertest

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Machine is a kernel in memory: interfaces, what is attached to them, and tables. It has the methods that a router.Router
// wants of a datapath, of tables and of the system.
type Machine struct {
	List          []loader.Link
	Attached      map[int]loader.Attachment
	Refuse        map[string]error // interfaces that refuse the programs, and say so before
	Fail          map[string]error // interfaces that fail to attach in mode xdp, whatever they said before
	RouteList     []netip.Prefix
	ForwardingOff map[string]bool // by "net.ipv4/IF" and "net.ipv4/all"
	Config        *config.Config  // what runs
	ApplyErr      error
	Unfinished    bool // a step after the swap fails
	Prepared      int  // configurations, not all of which are applied
	Interfaces    []config.Interface

	log []string // what was done, in order
}

// NewMachine has interfaces of these names, which are up and have an IPv4 address each.
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
		Name: name, Index: index, Up: true, MTU: 1400 + index, PPP: index == 9, RPFilter: uint8(index % 3), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, byte(index)},
		Addresses: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(index), 1}), 24)},
	})
}

// Unplug removes an interface. It also ends what was attached, as the kernel does.
func (m *Machine) Unplug(name string) {
	m.List = slices.DeleteFunc(m.List, func(l loader.Link) bool {
		if l.Name == name {
			delete(m.Attached, l.Index)
		}
		return l.Name == name
	})
}

// Edit edits an interface as the kernel would.
func (m *Machine) Edit(name string, edit func(*loader.Link)) {
	i := slices.IndexFunc(m.List, func(l loader.Link) bool { return l.Name == name })
	edit(&m.List[i])
}

// Links is that of the package loader.
func (m *Machine) Links() ([]loader.Link, error) { return slices.Clone(m.List), nil }

// Routes is that of the package loader.
func (m *Machine) Routes() ([]netip.Prefix, error) { return m.RouteList, nil }

// Forwards reports whether packets of an interface are forwarded.
func (m *Machine) Forwards(sysctl, ifname string) bool { return !m.ForwardingOff[sysctl+"/"+ifname] }

// Probe is that of a datapath.
func (m *Machine) Probe(name string, _ loader.Hooks) error {
	if !slices.ContainsFunc(m.List, func(l loader.Link) bool { return l.Name == name }) {
		return loader.ErrNoInterface
	}
	return m.Refuse[name]
}

// Attach is that of a datapath.
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

// Detach is that of a datapath.
func (m *Machine) Detach(index int) error {
	name := m.Attached[index].Interface
	if name == "" {
		name = strconv.Itoa(index) // gone
	}
	m.log = append(m.log, "detach "+name)
	delete(m.Attached, index)
	return nil
}

// Attachments is that of a datapath.
func (m *Machine) Attachments() ([]loader.Attachment, error) {
	var list []loader.Attachment
	for _, a := range m.Attached {
		list = append(list, a)
	}
	slices.SortFunc(list, func(a, b loader.Attachment) int { return a.Index - b.Index })
	return list, nil
}

// Running is that of tables.
func (m *Machine) Running() (config.Config, error) {
	if m.Config == nil {
		return config.Default(), maps.ErrEmpty
	}
	return *m.Config, nil
}

// Settings is that of tables.
func (m *Machine) Settings() (config.Config, error) {
	c, err := m.Running()
	c.Forwards = nil
	return c, err
}

// Plan is that of tables.
func (m *Machine) Plan(c config.Config) (config.Change, error) { return config.Change{}, c.Validate() }

// Prepare is that of tables.
func (m *Machine) Prepare(c config.Config) (swap func() (config.Change, error), err error) {
	m.Prepared++
	if err := errors.Join(c.Validate(), m.ApplyErr); err != nil {
		return nil, err
	}
	return func() (config.Change, error) {
		m.log = append(m.log, "apply")
		m.Config = &c
		if m.Unfinished {
			return config.Change{}, maps.ErrUnfinished
		}
		return config.Change{}, nil
	}, nil
}

// Add leaves everything to Prepare.
func (m *Machine) Add(rule.Forward) (bool, error) { return false, nil }

// SetInterfaces is that of tables.
func (m *Machine) SetInterfaces(list []config.Interface) error {
	var names []string
	for _, i := range list {
		if i.Role != 0 {
			names = append(names, i.Name)
		}
	}
	m.Interfaces = list
	m.log = append(m.log, "interfaces "+strings.Join(names, ","))
	return nil
}

// HasIPv6 is that of tables.
func (m *Machine) HasIPv6() (bool, error) {
	return m.Config != nil && slices.ContainsFunc(m.Config.Forwards, func(f rule.Forward) bool { return f.Target.Is6() }), nil
}

// SweepDenied is that of tables, which deny nobody.
func (m *Machine) SweepDenied() (int, error) { return 0, nil }

// BumpRoutes is that of tables.
func (m *Machine) BumpRoutes() error {
	m.log = append(m.log, "routes")
	return nil
}

// Did returns what was done since it was asked last.
func (m *Machine) Did() []string {
	log := m.log
	m.log = nil
	return log
}

// WantDone wants what was done since it was asked last.
func (m *Machine) WantDone(t *testing.T, want ...string) {
	t.Helper()
	if diff := cmp.Diff(want, m.Did()); diff != "" {
		t.Errorf("done (-want +got):\n%s", diff)
	}
}

// Config is a valid configuration of wan0 and lan0 with one forward.
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
