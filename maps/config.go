// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"time"
)

// Timeouts are how long a connection may be idle. Each is from 1 s to 720 h.
type Timeouts struct {
	TCPEstablished time.Duration `json:"tcp_established"` // RFC 5382 REQ-5
	TCPTransitory  time.Duration `json:"tcp_transitory"`  // half-open or closing; RFC 5382 REQ-5, RFC 7857 2.1
	UDP            time.Duration `json:"udp"`             // RFC 4787 REQ-5
	ICMP           time.Duration `json:"icmp"`            // RFC 5508 REQ-2
}

// The device modes.
const (
	ModeAuto = "auto"
	ModeXDP  = "xdp"
	ModeTC   = "tc"
)

var modes = []string{ModeAuto, ModeXDP, ModeTC}

// Config is everything a configuration file says.
type Config struct {
	WAN            []string  `json:"wan"`
	LAN            []string  `json:"lan"`
	Mode           string    `json:"mode"`
	MaxConnections uint32    `json:"max_connections"`
	Timeouts       Timeouts  `json:"timeouts"`
	Reflection     Reflect   `json:"reflection"`     // of forwards that say nothing
	MetricsListen  string    `json:"metrics_listen"` // ADDR:PORT; "" means no metrics
	Forwards       []Forward `json:"forwards"`
	Digest         string    `json:"digest,omitempty"` // of the files it was read from
}

// DefaultConfig is what a file that says nothing means: mode auto, 131072
// connections, the timeouts of the RFCs (RFC 5382 REQ-5 for TCP, RFC 4787
// REQ-5c for UDP, RFC 5508 REQ-2 for ICMP), reflection auto, metrics on
// loopback port 9845; no interfaces, no forwards.
func DefaultConfig() Config {
	return Config{
		Mode:           ModeAuto,
		MaxConnections: 131072,
		Timeouts: Timeouts{
			TCPEstablished: 2*time.Hour + 4*time.Minute,
			TCPTransitory:  4 * time.Minute,
			UDP:            5 * time.Minute,
			ICMP:           time.Minute,
		},
		Reflection:    ReflectAuto,
		MetricsListen: "127.0.0.1:9845",
	}
}

// reflectOf is the mode a forward has, its own or the default.
func (c Config) reflectOf(f Forward) Reflect {
	switch {
	case f.Reflect != "":
		return f.Reflect
	case c.Reflection != "":
		return c.Reflection
	}
	return ReflectAuto
}
