// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// upnpRules are the rules of a router with miniupnpd: the Internet reaches what miniupnpd lets in, and nothing else.
const upnpRules = `
table inet upnp {
	chain forward {
		type filter hook forward priority 0; policy drop;
		ct state established,related accept
		iifname "lan*" accept
		jump miniupnpd
	}
	chain miniupnpd { }
	chain prerouting { type nat hook prerouting priority -100; jump prerouting_miniupnpd; }
	chain prerouting_miniupnpd { }
	chain postrouting { type nat hook postrouting priority 100; jump postrouting_miniupnpd; oifname "wan0" masquerade; }
	chain postrouting_miniupnpd { }
}
`

// upnpConf is the configuration of miniupnpd. It takes no address of the documentation as an external address, so it is told another one;
// its rules are for everything that comes in by wan0.
const upnpConf = `ext_ifname=wan0
ext_ip=5.6.7.8
listening_ip=lan0
http_port=5000
enable_natpmp=yes
enable_upnp=yes
min_lifetime=1
max_lifetime=86400
secure_mode=yes
upnp_table_name=upnp
upnp_nat_table_name=upnp
upnp_forward_chain=miniupnpd
upnp_nat_chain=prerouting_miniupnpd
upnp_nat_postrouting_chain=postrouting_miniupnpd
lease_file=%s
uuid=78b8b903-83c1-4036-8fcd-f64aee25baca
allow 1024-65535 192.168.1.0/24 1024-65535
deny 0-65535 0.0.0.0/0 0-65535
`

// upnp is a network whose router has miniupnpd, and hairpin that follows its lease file. The server is the console.
type upnp struct {
	*lab.Network
	t    *testing.T
	hp   *lab.Hairpin
	file string
}

func startUPnP(t *testing.T, mode string) *upnp {
	t.Helper()
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor(mode))
	dir := t.TempDir()
	u := &upnp{n, t, nil, filepath.Join(dir, "upnp.leases")}
	conf := filepath.Join(dir, "miniupnpd.conf")
	lab.Must(os.WriteFile(conf, []byte(fmt.Sprintf(upnpConf, u.file)), 0o600))
	n.Router.RunInput(upnpRules, "nft", "-f", "-")
	n.Router.Start("miniupnpd", "-d", "-4", "-f", conf, "-P", filepath.Join(dir, "pid"))
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":8080")
	u.hp = lab.NewHairpin(n.Router, home.Config(mode, fmt.Sprintf("[timeouts]\ntcp_closing = \"1s\"\n[leases]\nfiles = [%q]\n", u.file)))
	u.hp.Start()
	return u
}

// upnpc runs miniupnpc on the console until it succeeds: miniupnpd may just have started.
func (u *upnp) upnpc(args ...string) {
	u.t.Helper()
	lab.Eventually(u.t, lab.Patience, func() error {
		r, err := u.Server.Try(append([]string{"upnpc", "-u", "http://" + lab.RouterLAN + ":5000/rootDesc.xml"}, args...)...)
		if err == nil && (r.Code != 0 || strings.Contains(r.Stdout+r.Stderr, "failed with code")) {
			err = fmt.Errorf("upnpc: %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		return err
	})
}

// reaches waits until a host reaches the console at a port of the external address.
func (u *upnp) reaches(from *lab.Host, port int) *lab.Conn {
	u.t.Helper()
	var c *lab.Conn
	lab.Eventually(u.t, lab.Patience, func() (err error) {
		c, err = from.DialTCP(fmt.Sprintf("%s:%d", lab.External, port), "", time.Second)
		return err
	})
	u.t.Cleanup(func() { c.Close() })
	if err := c.Echo(10000); err != nil {
		u.t.Errorf("from %s: %v", from.Name, err)
	}
	return c
}

// forward waits until the forward of a port has this state: "" is none, "runs", or "drains".
func (u *upnp) forward(port int, want string) {
	u.t.Helper()
	name := fmt.Sprintf("lease-tcp-%d", port)
	lab.Eventually(u.t, lab.Patience, func() error {
		state := ""
		for line := range strings.Lines(u.hp.Run("forward", "show")) {
			if cells := strings.Fields(line); cells[0] == name {
				state = map[bool]string{true: "drains", false: "runs"}[cells[1] == "(drains)"]
			}
		}
		if state != want {
			return fmt.Errorf("%s %q, want %q", name, state, want)
		}
		return nil
	})
}

// refuses checks that a host does not reach the console at a port.
func (u *upnp) refuses(from *lab.Host, port int) {
	u.t.Helper()
	if c, err := from.DialTCP(fmt.Sprintf("%s:%d", lab.External, port), "", time.Second); err == nil {
		c.Close()
		u.t.Errorf("%s reaches port %d", from.Name, port)
	}
}

// TestLeases: what a console maps with UPnP is reached from the LANs by the public address, and from the Internet by miniupnpd's own rules.
func TestLeases(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			u := startUPnP(t, mode)
			u.refuses(u.Client, 3074)
			u.upnpc("-e", "console", "-a", lab.Server, "8080", "3074", "TCP", "600")
			u.forward(3074, "runs")
			fromClient, fromInternet := u.reaches(u.Client, 3074), u.reaches(u.Internet, 3074)
			u.reaches(u.Guest, 3074)
			u.reaches(u.Server, 3074)
			f := home.ForwardNamed(t, u.hp, "lease-tcp-3074")
			if f.Source != "lease" || f.Target != lab.Server+":8080" || f.Connections != 3 {
				t.Errorf("%+v", f)
			}
			for path, want := range map[string]float64{"hairpin": 3, "wan": 0} {
				if got := home.Scrape(t, u.Network, "hairpin_forward_connections_total", `forward="lease-tcp-3074"`, fmt.Sprintf("path=%q", path)); got != want {
					t.Errorf("%v connections by path %s, want %v", got, path, want)
				}
			}
			if got := home.Scrape(t, u.Network, "hairpin_leases"); got != 1 {
				t.Errorf("%v mappings in the metrics", got)
			}
			if out := u.hp.Run("doctor"); !strings.Contains(out, "1 mapping of lease files") || strings.Contains(out, "lease-tcp-3074") {
				t.Errorf("doctor says:\n%s", out)
			}
			explain := func(from string) string {
				command := []string{lab.Binary(t), "--bpffs", u.hp.Dir, "explain", "in"}
				return u.Router.Run(append(append(command, strings.Fields(from)...), "to", lab.External+":3074")...)
			}
			if said := explain("lan0 tcp " + lab.Client + ":4711"); !strings.Contains(said, "lease-tcp-3074") || !strings.Contains(said, lab.Server+":8080") {
				t.Errorf("explain of a LAN client:\n%s", said)
			}
			if said := explain("wan0 tcp " + lab.InternetSource + ":4711"); !strings.Contains(said, "to the kernel: forward lease-tcp-3074 is for clients of the LAN") {
				t.Errorf("explain of a client on the Internet:\n%s", said)
			}
			u.notInTheFiles()

			// Connections live on when the mapping is deleted, both those of hairpin and those of conntrack.
			u.upnpc("-d", "3074", "TCP")
			u.forward(3074, "drains")
			for name, c := range map[string]*lab.Conn{"client": fromClient, "Internet": fromInternet} {
				if err := c.Echo(1000); err != nil {
					t.Errorf("%s, after the deletion: %v", name, err)
				}
			}
			u.refuses(u.Client, 3074)
			u.refuses(u.Internet, 3074)
			u.upnpc("-e", "console", "-a", lab.Server, "8080", "3074", "TCP", "600")
			u.forward(3074, "runs")
			if err := fromClient.Echo(1000); err != nil {
				t.Errorf("after the mapping is back: %v", err)
			}
		})
	}
}

// notInTheFiles: a mapping is no difference to the files, is not saved, and cannot be changed by commands.
func (u *upnp) notInTheFiles() {
	u.t.Helper()
	if out := u.hp.Run("diff"); out != "" {
		u.t.Errorf("diff:\n%s", out)
	}
	if said := u.hp.Run("-j", "save"); !strings.Contains(said, `"written":false`) {
		u.t.Errorf("save: %s", said)
	}
	u.hp.Run("forward", "add", "own", "tcp", "5000", "to", lab.Server)
	u.hp.Run("save")
	saved, err := os.ReadFile(filepath.Join(filepath.Dir(u.hp.File), "forwards.d", "50-cli.toml"))
	if text := string(saved); err != nil || !strings.Contains(text, "own") || strings.Contains(text, "lease-") {
		u.t.Errorf("saved: %v\n%s", err, text)
	}
	for _, command := range [][]string{{"del", "lease-tcp-3074"}, {"disable", "lease-tcp-3074"}, {"replace", "lease-tcp-3074", "tcp", "3074", "to", lab.Server}} {
		if said := u.hp.Fail(1, append([]string{"forward"}, command...)...); !strings.Contains(said, "upnpc -d 3074 TCP") {
			u.t.Errorf("forward %v: %s", command, said)
		}
	}
	u.hp.Run("reload")
	u.forward(3074, "runs")
}

// TestLeaseOfNATPMP: a mapping by NAT-PMP is one, too, and it ends at its time.
func TestLeaseOfNATPMP(t *testing.T) {
	u := startUPnP(t, "tc")
	lab.Eventually(t, lab.Patience, func() error {
		r, err := u.Server.Try("natpmpc", "-g", lab.RouterLAN, "-a", "3075", "8080", "tcp", "6")
		if err == nil && r.Code != 0 {
			err = fmt.Errorf("natpmpc: %d\n%s%s", r.Code, r.Stdout, r.Stderr)
		}
		return err
	})
	c := u.reaches(u.Client, 3075)
	u.forward(3075, "drains")
	u.refuses(u.Client, 3075)
	if err := c.Echo(1000); err != nil {
		t.Errorf("after the end: %v", err)
	}
	c.Close()
	u.forward(3075, "")
}

// TestLeasesWithoutTheDaemon: the mappings of before stay while the daemon is dead, and are compared anew at its start.
func TestLeasesWithoutTheDaemon(t *testing.T) {
	u := startUPnP(t, "tc")
	for _, port := range []string{"3074", "3075"} {
		u.upnpc("-a", lab.Server, "8080", port, "TCP", "600")
	}
	u.forward(3074, "runs")
	u.forward(3075, "runs")
	u.hp.Kill()
	u.upnpc("-d", "3074", "TCP")
	u.upnpc("-a", lab.Server, "8080", "3076", "TCP", "600")
	u.reaches(u.Client, 3074)
	u.refuses(u.Client, 3076)
	u.hp.Start()
	u.forward(3076, "runs")
	u.forward(3075, "runs")
	u.refuses(u.Client, 3074)
	u.reaches(u.Client, 3076)
}

// TestForwardInPlaceOfALease: a forward that is added later has the port, for the Internet, too. When it is deleted, the mapping is back.
func TestForwardInPlaceOfALease(t *testing.T) {
	u := startUPnP(t, "tc")
	u.Client.ServeTCP(":9090")
	u.upnpc("-a", lab.Server, "8080", "3074", "TCP", "600")
	u.forward(3074, "runs")
	u.hp.Run("forward", "add", "own", "tcp", "3070-3079", "to", lab.Client+":9087-9096")
	u.forward(3074, "")
	u.reaches(u.Internet, 3073) // the port that leads to 9090
	if out := u.hp.Run("doctor"); !strings.Contains(out, `lease-tcp-3074 is not reflected: forward "own"`) {
		t.Errorf("doctor says:\n%s", out)
	}
	lab.Eventually(t, lab.Patience, func() error {
		if got := home.Scrape(t, u.Network, "hairpin_leases_refused_total", `reason="taken"`); got != 1 {
			return fmt.Errorf("%v refused mappings in the metrics", got)
		}
		return nil
	})
	u.hp.Run("forward", "del", "own")
	u.forward(3074, "runs")
}
