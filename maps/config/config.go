// SPDX-License-Identifier: Apache-2.0

// Package config has the type Config, a whole configuration. It has the defaults, finds mistakes, and compares two
// configurations. It does not read files or the state of the machine, and does not depend on the kernel's maps.
package config

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"hairpin/maps/rule"
)

// Timeouts holds how long a connection may be idle, and other times. Each timeout but AddressGrace is from 1 s to 720 h.
// TCPOpening and TCPClosing may be 0: TCPTransitory is used instead.
type Timeouts struct {
	TCPEstablished time.Duration `json:"tcp_established"`       // RFC 5382 REQ-5
	TCPTransitory  time.Duration `json:"tcp_transitory"`        // half-open and closing; RFC 5382 REQ-5
	TCPOpening     time.Duration `json:"tcp_opening,omitempty"` // half-open; RFC 7857 2.1
	TCPClosing     time.Duration `json:"tcp_closing,omitempty"` // closing; RFC 7857 2.1
	UDP            time.Duration `json:"udp"`                   // UDP and all protocols that are not listed here; RFC 4787 REQ-5
	ICMP           time.Duration `json:"icmp"`                  // RFC 5508 REQ-2
	// PortHold is how long the source port of an ended reflected connection is kept from other clients, except for TCP
	// (RFC 6888 REQ-8).
	PortHold time.Duration `json:"port_hold"`
	// AddressGrace is how long the connections of an address that the router has lost wait for its return, 0 to 1 h.
	AddressGrace time.Duration `json:"address_grace"`
}

// Opening returns how long a half-open TCP connection may be idle.
func (t Timeouts) Opening() time.Duration { return cmp.Or(t.TCPOpening, t.TCPTransitory) }

// Closing returns how long a closing or ended TCP connection may be idle.
func (t Timeouts) Closing() time.Duration { return cmp.Or(t.TCPClosing, t.TCPTransitory) }

// The sides of the router, in the words of the configuration.
const (
	SideLAN = "lan"
	SideWAN = "wan"
)

// ICMPErrors says which ICMP errors hairpin sends.
type ICMPErrors struct {
	// Refuse lists the sides whose clients get an ICMP error (3/13, RFC 5508 REQ-8) for a refused opening. For
	// clients of other sides the packet is dropped silently.
	Refuse []string `json:"refuse"`
	// Rate limits the errors per second to each side, 1 to 1,000,000 (RFC 5508 REQ-10f). Errors about the MTU are not
	// limited.
	Rate uint32 `json:"rate"`
}

// The modes of attaching to an interface.
const (
	ModeAuto = "auto"
	ModeXDP  = "xdp"
	ModeTC   = "tc"
	// ModeXDPUntagged is like ModeXDP, but also uses XDP on devices where XDP cannot see VLAN tags.
	ModeXDPUntagged = "xdp-untagged"
)

var modes = []string{ModeAuto, ModeXDP, ModeXDPUntagged, ModeTC}

// Values of Config.XDPTx: on which interfaces XDP sends frames with XDP_TX that leave by the interface that they came in by. On all
// others it redirects these frames.
const (
	XDPTxAuto = "auto" // physical NICs with native XDP
	XDPTxOn   = "on"   // every interface with native XDP
	XDPTxOff  = "off"  // none
)

var xdpTxs = []string{XDPTxAuto, XDPTxOn, XDPTxOff}

// Values of Config.LogConnections: how the daemon writes what happens to connections.
const (
	LogOff  = "off"
	LogText = "text"
	LogJSON = "json"
)

var logs = []string{LogOff, LogText, LogJSON}

// Config is the whole content of a configuration file.
type Config struct {
	WAN            []string       `json:"wan"`
	LAN            []string       `json:"lan"`
	PrivateSources []string       `json:"private_sources,omitempty"` // WAN interfaces with a public address that accept private sources
	Mode           string         `json:"mode"`
	XDPTx          string         `json:"xdp_tx"`
	MaxConnections uint32         `json:"max_connections"`
	MaxPerSource   uint32         `json:"max_per_source,omitempty"` // established connections of one client (RFC 6888 REQ-4): an address, but on a WAN an IPv6 /64; 0: MaxConnections / 8
	MSSClamp       []string       `json:"mss_clamp"`                // interfaces whose MTU limits the MSS of SYNs; nil: those whose packets have no link-layer header
	Timeouts       Timeouts       `json:"timeouts"`
	ICMP           ICMPErrors     `json:"icmp"`
	Reflection     rule.Reflect   `json:"reflection"`    // reflect mode of forwards without a mode
	ReflectPorts   rule.Ports     `json:"reflect_ports"` // source ports of connections for which the server sees the router's address
	StandIns       []rule.StandIn `json:"stand_ins,omitempty"`
	Deny           []netip.Prefix `json:"deny,omitempty"`            // sources that open no connection, of any forward
	MetricsListen  string         `json:"metrics_listen"`            // ADDR:PORT; "": no metrics
	MetricsWeb     string         `json:"metrics_web,omitempty"`     // path of a file about TLS and passwords; "": there are none
	LogConnections string         `json:"log_connections,omitempty"` // LogOff, LogText or LogJSON; "": LogOff
	DNS            []DNSFile      `json:"dns,omitempty"`             // split DNS files, at most one per format
	Leases         Leases         `json:"leases,omitzero"`
	Forwards       []rule.Forward `json:"forwards"`
	Disabled       []rule.Forward `json:"disabled,omitempty"` // forwards and intercepts that match no packet; each has Disabled set
	Digest         string         `json:"digest,omitempty"`   // hash of the files that the configuration was read from
}

// Default returns the configuration of an empty file: no interfaces and no forwards. The timeouts are from the RFCs: RFC
// 5382 REQ-5 for TCP, RFC 4787 REQ-5c for UDP, RFC 5508 REQ-2 for ICMP.
func Default() Config {
	return Config{
		Mode:           ModeAuto,
		XDPTx:          XDPTxAuto,
		MaxConnections: 131072,
		Timeouts: Timeouts{
			TCPEstablished: 2*time.Hour + 4*time.Minute,
			TCPTransitory:  4 * time.Minute,
			UDP:            5 * time.Minute,
			ICMP:           time.Minute,
			PortHold:       2 * time.Minute,
			AddressGrace:   2 * time.Second,
		},
		ICMP:           ICMPErrors{Refuse: []string{SideLAN}, Rate: 1000},
		Reflection:     rule.ReflectAuto,
		ReflectPorts:   rule.Ports{First: 61000, Last: 65535}, // above the kernel's default ip_local_port_range
		MetricsListen:  "127.0.0.1:9845",
		LogConnections: LogOff,
	}
}

// All returns all forwards and intercepts, the disabled ones last.
func (c Config) All() []rule.Forward {
	if len(c.Disabled) == 0 {
		return c.Forwards
	}
	return slices.Concat(c.Forwards, c.Disabled)
}

// Split moves the disabled forwards of Forwards to Disabled.
func (c *Config) Split() {
	isDisabled := func(f rule.Forward) bool { return f.Disabled }
	if !slices.ContainsFunc(c.Forwards, isDisabled) {
		return
	}
	for _, f := range c.Forwards {
		if f.Disabled {
			c.Disabled = append(c.Disabled, f)
		}
	}
	c.Forwards = slices.DeleteFunc(slices.Clone(c.Forwards), isDisabled)
}

// PerSource returns how many established connections one client may have.
func (c Config) PerSource() uint32 { return cmp.Or(c.MaxPerSource, max(1, c.MaxConnections/8)) }

// PerInterface returns how many established connections all clients of one LAN interface may have together.
func (c Config) PerInterface() uint32 { return max(c.PerSource(), c.MaxConnections/2) }

// ReflectOf returns the reflect mode of f: its own mode, or else the configured default. Intercepts do not use the
// configured default: without a mode they have auto. A forward that hides its clients hides LAN clients, too.
func (c Config) ReflectOf(f rule.Forward) rule.Reflect {
	mode := c.configuredReflect(f)
	if f.HidesClients() && mode != rule.ReflectOff {
		return rule.ReflectRouter
	}
	return mode
}

func (c Config) configuredReflect(f rule.Forward) rule.Reflect {
	switch {
	case f.Reflect != "":
		return f.Reflect
	case f.Intercept:
		return rule.ReflectAuto
	case c.Reflection != "":
		return c.Reflection
	}
	return rule.ReflectAuto
}

// ClampsMSS reports whether the datapath limits the MSS of SYNs to the interface's MTU.
func (c Config) ClampsMSS(link Interface) bool {
	if link.Role != RoleWAN && link.Role != RoleLAN {
		return false
	}
	if c.MSSClamp == nil {
		return link.Bare
	}
	return slices.Contains(c.MSSClamp, link.Name)
}

// HasIntercepts reports whether c has an intercept.
func (c Config) HasIntercepts() bool {
	for i := range c.Forwards {
		if c.Forwards[i].Intercept {
			return true
		}
	}
	return false
}

// ListensAt returns the names of the LAN interfaces of an intercept.
func (c Config) ListensAt(f rule.Forward) []string {
	if len(f.LAN) > 0 {
		return f.LAN
	}
	return c.LAN
}

// InterceptSpan returns the lowest and the highest port of all intercepts. first is greater than last if there are no
// intercepts.
func (c Config) InterceptSpan() (first, last uint16) {
	first = 1
	for _, f := range c.Forwards {
		switch {
		case !f.Intercept:
		case last == 0:
			first, last = f.Ports.First, f.Ports.Last
		default:
			first, last = min(first, f.Ports.First), max(last, f.Ports.Last)
		}
	}
	return first, last
}
