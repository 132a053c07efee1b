// SPDX-License-Identifier: Apache-2.0

// Package home starts the usual network with hairpin on its router, for tests of traffic, the daemon and the command line. It also
// reads hairpin's JSON and metrics. It loads no BPF program itself.
package home

import (
	"encoding/json"
	"fmt"
	"testing"

	"hairpin/test/lab"
)

// Modes are the modes of hairpin in tests: only TC, and XDP before TC.
var Modes = []string{"tc", "xdp"}

// Waiting returns a connection to the external address; the client has sent nothing.
func Waiting(t *testing.T, from *lab.Host) *lab.Conn {
	t.Helper()
	return WaitingAt(t, from, lab.External)
}

// WaitingAt is Waiting for this external address; an IPv6 address is in brackets.
func WaitingAt(t *testing.T, from *lab.Host, external string) *lab.Conn {
	t.Helper()
	c, err := from.DialTCP(external+":80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Echo(1000); err != nil {
		t.Fatal(err)
	}
	return c
}

// Config returns a configuration file for the router of the usual network, with forwards in TOML.
func Config(mode, forwards string) string {
	return fmt.Sprintf(`version = 1

[interfaces]
wan = ["wan0"]
lan = ["lan0", "lan1"]

[datapath]
mode = %q
%s`, lab.DeviceMode(mode), forwards)
}

// OffloadsFor returns the offloads that a mode needs. XDP sends only frames with finished checksums, and only to a veth whose peer
// takes XDP frames.
func OffloadsFor(mode string) lab.Offloads {
	if mode == "xdp" {
		return lab.AllOffGRO
	}
	return lab.AsTheyCome
}

// Start runs hairpin on the network's router until the test ends.
func Start(t *testing.T, n *lab.Network, mode, forwards string) *lab.Hairpin {
	t.Helper()
	hp := lab.NewHairpin(n.Router, Config(mode, forwards))
	hp.Start()
	return hp
}

// Forward has the JSON fields of a forward that other programs may use.
type Forward struct {
	Name        string   `json:"name"`
	Protocol    any      `json:"protocol"`
	External    string   `json:"external"`
	Port        string   `json:"port"`
	Target      string   `json:"target"`
	Reflect     string   `json:"reflect"`
	Clients     string   `json:"clients"`
	From        []string `json:"from"`
	Source      string   `json:"source"`
	Intercept   bool     `json:"intercept"`
	LAN         []string `json:"lan"`
	Except      []string `json:"except"`
	Connections int64    `json:"connections"`
	Packets     int64    `json:"packets"`
	Bytes       int64    `json:"bytes"`
	Refused     int64    `json:"refused"`
	LastHit     *int64   `json:"last_hit_seconds"`
	Listens     []string `json:"external_addresses"`
}

// Connection has the JSON fields of a connection that other programs may use.
type Connection struct {
	Protocol string  `json:"protocol"`
	Path     string  `json:"path"`
	Forward  string  `json:"forward"`
	State    string  `json:"state"`
	Client   string  `json:"client"`
	External string  `json:"external"`
	Source   string  `json:"source"`
	Target   string  `json:"target"`
	Age      float64 `json:"age_seconds"`
	Idle     float64 `json:"idle_seconds"`
	Packets  int64   `json:"packets"`
	Bytes    int64   `json:"bytes"`
}

// Document is the output of a command with --json.
type Document struct {
	Schema      int          `json:"schema"`
	Forwards    []Forward    `json:"forwards"`
	Connections []Connection `json:"connections"`
}

// Show runs a command with --json and returns its output.
func Show(t *testing.T, hp *lab.Hairpin, args ...string) Document {
	t.Helper()
	var d Document
	out := hp.Run(append([]string{"--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("hairpin %v: %v\n%s", args, err, out)
	}
	if d.Schema != 1 {
		t.Errorf("hairpin %v: schema %d, want 1", args, d.Schema)
	}
	return d
}

// ForwardNamed returns a forward with its counters.
func ForwardNamed(t *testing.T, hp *lab.Hairpin, name string) Forward {
	t.Helper()
	d := Show(t, hp, "forward", "show", name, "-s")
	if len(d.Forwards) != 1 || d.Forwards[0].Name != name {
		t.Fatalf("forward show %s: %+v", name, d.Forwards)
	}
	return d.Forwards[0]
}
