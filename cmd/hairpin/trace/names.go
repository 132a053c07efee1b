// SPDX-License-Identifier: Apache-2.0

package trace

import (
	"fmt"
	"net"
	"net/netip"
	"time"

	"hairpin/bpf"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/layout"
)

// namer turns the numbers of reports into names and times.
type namer struct {
	datapath   *loader.Datapath
	tables     *maps.Tables
	interfaces map[uint32]string
	forwards   map[uint32]string // of forwards that have been removed since their first report
	booted     time.Time         // when CLOCK_MONOTONIC was 0, by the clock of the machine
	compared   time.Time         // when the clocks were compared last
}

// compareEvery is how often the two clocks are compared: somebody may set the clock of the machine.
const compareEvery = time.Second

func newNamer(dir string) (*namer, error) {
	datapath, err := loader.Open(loader.Options{Dir: dir})
	if err != nil {
		return nil, err
	}
	return &namer{
		datapath: datapath, tables: maps.NewIn(datapath.Objects(), datapath.Slots()), interfaces: map[uint32]string{}, forwards: map[uint32]string{},
	}, nil
}

// time returns the time of day for a time of CLOCK_MONOTONIC in ns.
func (n *namer) time(monotonic uint64) time.Time {
	if now := time.Now(); now.Sub(n.compared) > compareEvery {
		n.compared = now
		n.booted = now.Round(0).Add(-time.Duration(layout.Monotonic()))
	}
	return n.booted.Add(time.Duration(monotonic))
}

// forward returns the name of a forward, "" if there is none with this id.
func (n *namer) forward(id uint32) string {
	if id == 0 {
		return ""
	}
	if roster, err := n.tables.Roster(); err == nil && roster.Name(id) != "" {
		n.forwards[id] = roster.Name(id)
	}
	return n.forwards[id]
}

// interfaceName returns the name of an interface, "" for index 0.
func (n *namer) interfaceName(index uint32) string {
	if index == 0 {
		return ""
	}
	if n.interfaces[index] == "" {
		n.interfaces[index] = fmt.Sprintf("interface-%d", index)
		if device, err := net.InterfaceByIndex(int(index)); err == nil {
			n.interfaces[index] = device.Name
		}
	}
	return n.interfaces[index]
}

func (n *namer) Close() error { return n.datapath.Close() }

// ends returns source and destination of a tuple. The zero tuple has none.
func ends(t bpf.TraceTuple) (source, destination netip.AddrPort) {
	if t.Protocol == 0 {
		return source, destination
	}
	return layout.AddrPort(bpf.HairpinAddr(t.Src), t.Sport), layout.AddrPort(bpf.HairpinAddr(t.Dst), t.Dport)
}

// Endpoint formats an address with its port. It leaves out port 0, which stands for a protocol without ports; "-" is no address.
func Endpoint(at netip.AddrPort) string {
	switch {
	case !at.Addr().IsValid():
		return "-"
	case at.Port() == 0:
		return at.Addr().String()
	}
	return at.String()
}
