// SPDX-License-Identifier: Apache-2.0

package diagnose

import (
	"net/netip"
	"slices"
	"time"

	"hairpin/loader"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// Facts are what the checks judge: the configuration and the state of the machine at one moment. A function that is nil, or an
// error, means that the fact is not known.
type Facts struct {
	Config config.Config // its forwards are not used: Diagnosis.Add takes them one by one
	// Added is the forward that a command adds. The findings are then about this forward alone. nil: they are about everything.
	Added *rule.Forward
	// Datapath is what is known of the running datapath. It is nil for commands other than "hairpin doctor".
	Datapath *Datapath

	Links         []loader.Link
	Ports         []Port
	Forwarding    Families // of the whole router
	DefaultRoutes Families // families for which a default route exists
	// Route asks the kernel for the route to an address.
	Route func(netip.Addr) Route
	// Neighbour says what the kernel knows of a host on a network of the router.
	Neighbour func(netip.Addr) Neighbour

	Policies    []config.Policy // of IPsec
	PoliciesErr error           // why Policies is not known

	Rules     *Ruleset
	RulesErr  error    // why Rules is not known
	Legacy    []string // tables of iptables-legacy whose rules are not in Rules
	LegacyErr error    // why they are not, or why Legacy is not known

	Sockets    []Socket // those that take packets of anybody
	SocketsErr error    // why Sockets is not known
	// Owner returns the program of a socket, such as "sshd (pid 812)", or "".
	Owner func(Socket) string

	Conntrack  loader.Conntrack
	Ephemeral  rule.Ports // that the kernel gives to sockets
	Reserved   string     // net.ipv4.ip_local_reserved_ports, such as "8080,61000-65535"
	BridgeCall bool       // net.bridge.bridge-nf-call-iptables or -ip6tables is on

	// Probe connects to a target by TCP. nil: nobody asked for it.
	Probe func([]netip.AddrPort) map[netip.AddrPort]Answer
}

// Datapath is what only "hairpin doctor" looks at.
type Datapath struct {
	Kernel  string   // release
	TooOld  error    // why the kernel cannot run hairpin
	Missing []string // names of the capabilities that the command lacks
	// Stopped is why no datapath could be opened; nil: one runs. Unseen says that one may run, but this user may not look.
	Stopped error
	Unseen  bool
	Foreign bool // one runs, but of a version with another table layout
	// File is the configuration file that was read in place of the running configuration, or "". Invalid are its problems.
	// FileUnseen is why this user could not read it; nil: it was read.
	File       string
	FileUnseen error
	Invalid    []string

	Daemon      bool
	Outdated    string       // what has changed since the programs were loaded, or ""
	Away        []netip.Addr // addresses that were lost, and whose connections still wait for them
	Resize      string       // how the size of the connection table differs from the configuration, or ""
	Connections int
	Limit       uint32 // of Connections; 0: not known
	// PrivateDropped is the number of packets that were dropped because their sources are private, by the names of WANs.
	PrivateDropped map[string]uint64
	// Traffic is that of the forwards that had any, by name.
	Traffic map[string]Traffic
	// Leases are the lease files that the daemon follows; nil: none.
	Leases *Leases
}

// Leases is what lease files say.
type Leases struct {
	Files   []LeaseFile
	Running int // forwards that stand for mappings
	Refused []RefusedLease
}

// LeaseFile is a lease file.
type LeaseFile struct {
	Path    string
	Err     error // why it could not be read
	Unseen  bool  // this user may not read it
	Missing bool
	Bad     int    // lines that could not be read
	First   string // what is wrong with the first of them
}

// RefusedLease is a mapping that becomes no forward.
type RefusedLease struct{ Name, Text string }

// Traffic is what a forward has carried, and what it carries.
type Traffic struct {
	ToTarget, FromTarget uint64 // packets since the forward was added
	// Waiting is the number of connections that have been open for a second or more without an answer.
	Waiting int
	// Answered is the number of connections that the target has answered.
	Answered int
}

// Families is a fact for each address family.
type Families struct{ IPv4, IPv6 bool }

// Of returns the fact of the family of addr.
func (f Families) Of(addr netip.Addr) bool {
	if addr.Is6() {
		return f.IPv6
	}
	return f.IPv4
}

// Port is one interface of the configuration, or lo.
type Port struct {
	Name       string
	Role       config.Role
	Link       *loader.Link       // nil if no interface has this name yet
	Attachment *loader.Attachment // nil if the programs are not on the interface
	Err        error              // why the programs cannot be on the interface
	Addresses  []netip.Addr       // that forwards can listen on
	LacksGuard bool               // the leak guard is needed, and is not attached
	MissesTags bool               // XDP runs although it does not see VLAN tags
	Forwarding Families           // the kernel forwards packets that arrive here
	AcceptRA   int                // net.ipv6.conf.IF.accept_ra

	Shaping    loader.Shaping
	ShapingErr error // why Shaping is not known
}

func (p *Port) isUp() bool { return p.Role != config.RoleLocal && p.Link != nil && p.Link.Up }

// hasFamily reports whether the port has an address that forwards to target can listen on.
func (p *Port) hasFamily(target netip.Addr) bool {
	return slices.ContainsFunc(p.Addresses, func(addr netip.Addr) bool { return addr.Is6() == target.Is6() })
}

// Route is how the router sends packets to an address.
type Route struct {
	Interface string     // "" if the kernel sends nothing there
	Gateway   netip.Addr // invalid if the address is on a network of the router
	Err       error      // why there is no route
}

// Neighbour is what the kernel knows of a host on a network of the router.
type Neighbour uint8

// The states of a neighbour.
const (
	NeighbourUnknown Neighbour = iota
	NeighbourSeen              // the host has answered
	NeighbourSilent            // the host did not answer ARP or neighbour discovery
)

// Socket is a socket that takes packets of anybody: a TCP socket that listens, or a UDP socket that is not connected.
type Socket struct {
	Protocol rule.Protocol
	Address  netip.Addr // the unspecified address: every address
	Port     uint16
	Inode    uint64
}

// Answer is what a target did when the router connected to it.
type Answer uint8

// The answers.
const (
	NotAsked Answer = iota // the time was over before it was asked
	Connected
	Refused
	Silent
	Unreachable
)

// ProbeTime bounds the time of all connects of a probe together.
const ProbeTime = 2 * time.Second

// isUp reports whether other machines may send packets to the router.
func (f *Facts) isUp() bool {
	return slices.ContainsFunc(f.Ports, func(p Port) bool { return p.isUp() })
}

// port returns the port of an interface, or nil.
func (f *Facts) port(name string) *Port {
	for i := range f.Ports {
		if f.Ports[i].Name == name {
			return &f.Ports[i]
		}
	}
	return nil
}

// of returns the ports of a role that exist.
func (f *Facts) of(role config.Role) (list []*Port) {
	for i := range f.Ports {
		if f.Ports[i].Role == role && f.Ports[i].Link != nil {
			list = append(list, &f.Ports[i])
		}
	}
	return list
}

// externalOf returns the WAN ports and the addresses that a forward listens on.
func (f *Facts) externalOf(forward *rule.Forward) (ports []*Port, addresses []netip.Addr) {
	for _, p := range f.of(config.RoleWAN) {
		if at := forward.External.Interface; at != "" && at != p.Name {
			continue
		}
		ports = append(ports, p)
		for _, addr := range p.Addresses {
			if addr.Is6() == forward.Target.Is6() {
				addresses = append(addresses, addr)
			}
		}
	}
	if addr := forward.External.Address; addr.IsValid() {
		return ports, []netip.Addr{addr}
	}
	return ports, addresses
}

// asks reports whether a forward takes packets of a protocol.
func asks(forward *rule.Forward, protocol rule.Protocol) bool {
	return slices.Contains(forward.Protocols, protocol) || slices.Contains(forward.Protocols, rule.Any)
}

func names(ports []*Port) (list []string) {
	for _, p := range ports {
		list = append(list, p.Name)
	}
	return list
}
