// SPDX-License-Identifier: Apache-2.0

// Package config has the configuration as a value: its defaults, what is wrong with it, and how two of them differ. It reads no file,
// looks at no machine and knows nothing of how the kernel's maps hold it.
package config

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	"hairpin/maps/rule"
)

// Timeouts are how long a connection may be idle. Each is from 1 s to 720 h; the
// two for TCP that may be absent, as zero, are TCPTransitory then.
type Timeouts struct {
	TCPEstablished time.Duration `json:"tcp_established"`       // RFC 5382 REQ-5
	TCPTransitory  time.Duration `json:"tcp_transitory"`        // half-open or closing; RFC 5382 REQ-5
	TCPOpening     time.Duration `json:"tcp_opening,omitempty"` // half-open alone; RFC 7857 2.1
	TCPClosing     time.Duration `json:"tcp_closing,omitempty"` // closing alone; RFC 7857 2.1
	UDP            time.Duration `json:"udp"`                   // and of every protocol without one here; RFC 4787 REQ-5
	ICMP           time.Duration `json:"icmp"`                  // RFC 5508 REQ-2
	// PortHold is how long another client does not get the source port that a
	// reflected connection, not of TCP, has had; RFC 6888 REQ-8.
	PortHold time.Duration `json:"port_hold"`
}

// Opening is how long a half-open TCP connection may be idle.
func (t Timeouts) Opening() time.Duration { return cmp.Or(t.TCPOpening, t.TCPTransitory) }

// Closing is how long a TCP connection that ends, or has ended, may be idle.
func (t Timeouts) Closing() time.Duration { return cmp.Or(t.TCPClosing, t.TCPTransitory) }

// The sides of the router, as roles of its interfaces.
const (
	SideLAN = "lan"
	SideWAN = "wan"
)

// ICMPErrors says which ICMP errors of its own the router sends.
type ICMPErrors struct {
	// Refuse lists the sides that are told when an opening is
	// refused (ICMP 3/13, RFC 5508 REQ-8); the others meet silence.
	Refuse []string `json:"refuse"`
	// Rate is how many errors a second each side gets at most, 1 to 1,000,000
	// (RFC 5508 REQ-10f). Those about the MTU are not limited.
	Rate uint32 `json:"rate"`
}

// The device modes.
const (
	ModeAuto = "auto"
	ModeXDP  = "xdp"
	ModeTC   = "tc"
	// ModeXDPUntagged is ModeXDP also on devices where XDP may not see VLAN tags.
	ModeXDPUntagged = "xdp-untagged"
)

var modes = []string{ModeAuto, ModeXDP, ModeXDPUntagged, ModeTC}

// Config is everything a configuration file says.
type Config struct {
	WAN            []string       `json:"wan"`
	LAN            []string       `json:"lan"`
	Mode           string         `json:"mode"`
	MaxConnections uint32         `json:"max_connections"`
	MaxPerSource   uint32         `json:"max_per_source,omitempty"` // established connections of one client (RFC 6888 REQ-4): an IPv4 address, an IPv6 /64 of a WAN, an address of a LAN; 0: an eighth of all
	MSSClamp       []string       `json:"mss_clamp"`                // WAN interfaces whose MTU the MSS of SYNs has to suit; nil: those that are PPP devices
	Timeouts       Timeouts       `json:"timeouts"`
	ICMP           ICMPErrors     `json:"icmp"`
	Reflection     rule.Reflect   `json:"reflection"` // of forwards that say nothing
	StandIns       []rule.StandIn `json:"stand_ins,omitempty"`
	Deny           []netip.Prefix `json:"deny,omitempty"` // sources that open no connection, of any forward
	MetricsListen  string         `json:"metrics_listen"` // ADDR:PORT; "" means no metrics
	DNS            []DNSFile      `json:"dns,omitempty"`  // files that tell inside clients of hosts, by format
	Forwards       []rule.Forward `json:"forwards"`
	Digest         string         `json:"digest,omitempty"` // of the files it was read from
}

// Default is what a file that says nothing means: mode auto, 131072
// connections, the MSS clamped to PPP devices, the timeouts of the RFCs (RFC
// 5382 REQ-5 for TCP, RFC 4787 REQ-5c for UDP, RFC 5508 REQ-2 for ICMP), refused
// LAN clients told and at most 1000 ICMP errors a second, reflection auto,
// metrics on loopback port 9845; no interfaces, no forwards.
func Default() Config {
	return Config{
		Mode:           ModeAuto,
		MaxConnections: 131072,
		Timeouts: Timeouts{
			TCPEstablished: 2*time.Hour + 4*time.Minute,
			TCPTransitory:  4 * time.Minute,
			UDP:            5 * time.Minute,
			ICMP:           time.Minute,
			PortHold:       2 * time.Minute,
		},
		ICMP:          ICMPErrors{Refuse: []string{SideLAN}, Rate: 1000},
		Reflection:    rule.ReflectAuto,
		MetricsListen: "127.0.0.1:9845",
	}
}

// PerSource is how many established connections one client may have.
func (c Config) PerSource() uint32 { return cmp.Or(c.MaxPerSource, max(1, c.MaxConnections/8)) }

// PerInterface is how many all clients behind one LAN interface may have together.
func (c Config) PerInterface() uint32 { return max(c.PerSource(), c.MaxConnections/2) }

// ReflectOf is the mode a forward has, its own or the default; that of intercepts
// is auto.
func (c Config) ReflectOf(f rule.Forward) rule.Reflect {
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

// ClampsMSS reports whether the MSS of SYNs has to suit the interface's MTU.
func (c Config) ClampsMSS(link Interface) bool {
	if link.Role != RoleWAN {
		return false
	}
	if c.MSSClamp == nil {
		return link.PPP
	}
	return slices.Contains(c.MSSClamp, link.Name)
}

// HasIntercepts reports whether there are any.
func (c Config) HasIntercepts() bool {
	for i := range c.Forwards {
		if c.Forwards[i].Intercept {
			return true
		}
	}
	return false
}

// ListensAt are the LAN interfaces of an intercept.
func (c Config) ListensAt(f rule.Forward) []string {
	if len(f.LAN) > 0 {
		return f.LAN
	}
	return c.LAN
}

// InterceptSpan is from the lowest to the highest port of all intercepts; first
// is above last if there are none.
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
