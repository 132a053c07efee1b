// SPDX-License-Identifier: Apache-2.0

package setups

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// host is the usual network, whose router also runs containers: two on a bridge. The first one has a web server.
//
//	Router docker0 --- eth0 Web
//	               \-- eth0 Other
type host struct {
	*lab.Network
	Web, Other *lab.Host
	engine
}

// engine is a container engine: its bridge, and its rules with the published ports 8081 and 8082 of the first container.
type engine struct {
	name, bridge string
	network      string // the first 3 bytes of the addresses
	rules        string // file with the rules
	load         []string
}

var engines = []engine{
	{"Docker", "docker0", "172.17.0", "docker.iptables", []string{"iptables-nft-restore"}},
	{"podman", "podman0", "10.88.0", "podman.nft", []string{"nft", "-f", "-"}},
}

func (e engine) gateway() string { return e.network + ".1" }
func (e engine) web() string     { return e.network + ".2" }
func (e engine) other() string   { return e.network + ".3" }

func newHost(t *testing.T, e engine) *host {
	t.Helper()
	h := &host{Network: lab.NewNetwork(t), Web: lab.NewHost(t, "web"), Other: lab.NewHost(t, "other"), engine: e}
	lab.Cable(h.Router, "veth0", h.Web, "eth0")
	lab.Cable(h.Router, "veth1", h.Other, "eth0")
	h.Router.Bridge(e.bridge, "veth0", "veth1")
	h.Router.Address(e.bridge, e.gateway()+"/16")
	for container, address := range map[*lab.Host]string{h.Web: e.web(), h.Other: e.other()} {
		container.Address("eth0", address+"/16")
		container.Route("eth0", "0.0.0.0/0", e.gateway(), "")
	}
	// Docker does so with userland-proxy = false, and netavark always.
	h.Router.Run("bridge", "link", "set", "dev", "veth0", "hairpin", "on")
	h.Router.Run("bridge", "link", "set", "dev", "veth1", "hairpin", "on")
	rules, err := os.ReadFile(filepath.Join("testdata", e.rules))
	if err != nil {
		t.Fatal(err)
	}
	h.Router.RunInput(string(rules), e.load...)
	if e.name == "Docker" {
		h.allowLAN(t)
	}
	// The router gives clients of its LANs the Internet.
	h.Router.RunInput("table ip home { chain c { type nat hook postrouting priority srcnat; oifname wan0 ip saddr 192.168.0.0/16 masquerade; }; }", "nft", "-f", "-")
	serveWeb(t, h.Web, ":8080", "forward")
	serveWeb(t, h.Web, ":9090", "published")
	serveWeb(t, h.Internet, ":80", "internet")
	return h
}

// configuration is the page's, whose port 80 nobody publishes, with this engine's bridge, the second LAN, and port 8081, which is published, too.
func (h *host) configuration(t *testing.T, mode string) string {
	t.Helper()
	page := ""
	for _, b := range blocksOf(t, "containers.md") {
		if b.language == "toml" {
			page += b.text
		}
	}
	return strings.NewReplacer(`"docker0"`, fmt.Sprintf(`"lan1", %q`, h.bridge), "172.17.0.2", h.web()).Replace(fmt.Sprintf(`version = 1

[datapath]
mode = %q

%s
[[forward]]
name = "both"
protocol = ["tcp"]
port = "8081"
to = "172.17.0.2:8080"
`, lab.DeviceMode(mode), page))
}

// allowLAN runs the page's commands that let the LAN reach the Internet beside Docker.
func (h *host) allowLAN(t *testing.T) {
	t.Helper()
	found := false
	for _, b := range blocksOf(t, "containers.md") {
		if strings.Contains(b.text, "DOCKER-USER") {
			h.Router.Run("sh", "-e", "-c", b.text)
			found = true
		}
	}
	if !found {
		t.Fatal("the page has no commands for DOCKER-USER")
	}
}

// bridgeFilter says whether the rules of netfilter see the frames of bridges. The kernel's default is that they do.
func (h *host) bridgeFilter(on bool) {
	h.Router.Sysctl("net/bridge/bridge-nf-call-iptables", map[bool]string{true: "1", false: "0"}[on])
}

// TestContainerHost: a container that is a target serves the Internet, LANs, the host itself, another container of the bridge and itself by
// the public address. Published ports work beside. Of a port that is published and forwarded, hairpin serves what arrives on an interface.
func TestContainerHost(t *testing.T) {
	for _, e := range engines {
		for _, mode := range home.Modes {
			for _, filter := range []bool{false, true} {
				t.Run(fmt.Sprintf("%s, %s, bridge-nf %v", e.name, mode, filter), func(t *testing.T) {
					t.Parallel()
					h := newHost(t, e)
					h.SetOffloads(home.OffloadsFor(mode))
					h.bridgeFilter(filter)
					lab.NewHairpin(h.Router, h.configuration(t, mode)).Start()
					h.serves(t, filter)
				})
			}
		}
	}
}

func (h *host) serves(t *testing.T, filter bool) {
	t.Helper()
	const address = lab.External
	// The rules see the frames of containers before hairpin does.
	container := "forward"
	if filter {
		container = "published"
	}
	for _, c := range []struct {
		from *lab.Host
		sees string
		both string // the server that answers at the port that is published and forwarded
	}{
		{h.Internet, lab.InternetSource, "forward"},
		{h.Client, lab.Client, "forward"},
		{h.Guest, lab.Guest, "forward"},
		{h.Router, h.gateway(), "published"},
		{h.Other, h.gateway(), container},
		{h.Web, h.gateway(), container},
	} {
		wantAnswer(t, c.from, address+":80", saysTo("forward", c.sees))
		if got, err := answer(c.from, address+":8081"); err != nil || !strings.HasPrefix(got, c.both+" ") {
			t.Errorf("%s asks the port that is published and forwarded: %q, %v, want %s", c.from.Name, got, err, c.both)
		}
	}
	for from, sees := range map[*lab.Host]string{h.Internet: lab.InternetSource, h.Client: lab.Client, h.Guest: lab.Guest} {
		wantAnswer(t, from, address+":8082", saysTo("published", sees))
	}
	// Which of the host's addresses the container sees is the engine's affair.
	if got, err := answer(h.Router, address+":8082"); err != nil || !strings.HasPrefix(got, "published ") {
		t.Errorf("the host asks the published port: %q, %v", got, err)
	}
	// The ways of containers and of the LAN to the Internet.
	wantAnswer(t, h.Other, lab.Gateway, saysTo("internet", lab.External))
	wantAnswer(t, h.Client, lab.Gateway, saysTo("internet", lab.External))
}
