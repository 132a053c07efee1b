// SPDX-License-Identifier: Apache-2.0

package test

import (
	"encoding/json"
	"fmt"
	"testing"

	"hairpin/test/lab"
)

// forwards that most tests use; the ports differ so that a port left untranslated shows.
const forwards = `
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20:8080"

[[forward]]
name = "dns"
protocol = ["udp"]
port = "53"
to = "192.168.1.20:5353"
`

// config is a configuration file for the lab's router.
func config(mode, forwards string) string {
	return fmt.Sprintf(`version = 1

[interfaces]
wan = ["wan0"]
lan = ["lan0", "lan1"]

[datapath]
mode = %q
%s`, lab.DeviceMode(mode), forwards)
}

// offloadsFor returns offloads that let the mode do its work: XDP sends only finished
// checksums, and to a veth only if its peer accepts XDP frames.
func offloadsFor(mode string) lab.Offloads {
	if mode == "xdp" {
		return lab.AllOffGRO
	}
	return lab.AsTheyCome
}

// start runs hairpin on the network's router until the test ends.
func start(t *testing.T, n *lab.Network, mode, forwards string) *lab.Hairpin {
	t.Helper()
	hp := lab.NewHairpin(n.Router, config(mode, forwards))
	hp.Start()
	return hp
}

// forward and connection are the fields of the JSON output that other programs may rely on.
type forward struct {
	Name        string   `json:"name"`
	Protocol    any      `json:"protocol"`
	External    string   `json:"external"`
	Port        string   `json:"port"`
	Target      string   `json:"target"`
	Reflect     string   `json:"reflect"`
	From        []string `json:"from"`
	Source      string   `json:"source"`
	Intercept   bool     `json:"intercept"`
	LAN         []string `json:"lan"`
	Except      []string `json:"except"`
	Connections int64    `json:"connections"`
	Packets     int64    `json:"packets"`
	Bytes       int64    `json:"bytes"`
}

type connection struct {
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

type document struct {
	Schema      int          `json:"schema"`
	Forwards    []forward    `json:"forwards"`
	Connections []connection `json:"connections"`
}

// show runs a command with JSON output.
func show(t *testing.T, hp *lab.Hairpin, args ...string) document {
	t.Helper()
	var d document
	out := hp.Run(append([]string{"--json"}, args...)...)
	if err := json.Unmarshal([]byte(out), &d); err != nil {
		t.Fatalf("hairpin %v: %v\n%s", args, err, out)
	}
	if d.Schema != 1 {
		t.Errorf("hairpin %v: schema %d, want 1", args, d.Schema)
	}
	return d
}

// forwardNamed returns a forward with its counters.
func forwardNamed(t *testing.T, hp *lab.Hairpin, name string) forward {
	t.Helper()
	d := show(t, hp, "forward", "show", name, "-s")
	if len(d.Forwards) != 1 || d.Forwards[0].Name != name {
		t.Fatalf("forward show %s: %+v", name, d.Forwards)
	}
	return d.Forwards[0]
}
