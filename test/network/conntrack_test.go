// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// masquerading is what the router's kernel does for clients; connections are tracked by that.
const masquerading = `
table inet masquerading {
	chain postrouting {
		type nat hook postrouting priority srcnat
		oifname "wan0" masquerade
	}
}`

// untracked is what the router asks with no entry in conntrack.
const untracked = `
table inet untracked {
	chain output {
		type filter hook output priority raw
		udp dport 7001 notrack
	}
}`

// wideAndSingle lead every port from 50000 to 60000, the ports of FTP, and two single ports to the server.
const wideAndSingle = `
[[forward]]
name = "wide"
protocol = ["tcp", "udp"]
port = "50000-60000"
to = "192.168.1.20"

[[forward]]
name = "wide6"
protocol = ["tcp", "udp"]
port = "50000-60000"
to = "fd00:1::20"

[[forward]]
name = "one"
protocol = ["tcp", "udp"]
port = "123"
to = "192.168.1.20"

[[forward]]
name = "one6"
protocol = ["tcp", "udp"]
port = "123"
to = "fd00:1::20"

[[forward]]
name = "both"
protocol = ["tcp"]
port = "124"
to = "192.168.1.20"

[[forward]]
name = "both6"
protocol = ["tcp"]
port = "124"
to = "fd00:1::20"

[[forward]]
name = "ftp"
protocol = ["tcp"]
port = "20-21"
to = "192.168.1.20"
`

// oneToOne leads every port of the WAN's own address to the server.
const oneToOne = `
[[forward]]
name = "dmz"
protocol = ["tcp", "udp", "icmp"]
to = "192.168.1.20"

[[forward]]
name = "dmz6"
protocol = ["tcp", "udp", "icmp"]
to = "fd00:1::20"
`

// party is the addresses of one family.
type party struct {
	name, internet, external, client, any string
}

var parties = []party{
	{"IPv4", lab.InternetSource, lab.External, lab.Client, "0.0.0.0"},
	{"IPv6", "[" + lab.InternetSource6 + "]", "[" + lab.External6 + "]", "[" + lab.Client6 + "]", "[::]"},
}

// TestAnswersToForwardedPorts: what a masqueraded client or the router has asked for from a forwarded port comes to who asked
// (RFC 4787 REQ-1). All else comes to the forward's server.
func TestAnswersToForwardedPorts(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Router.RunInput(masquerading+untracked, "nft", "-f", "-")
			for _, p := range parties {
				n.Internet.ServeTCP(p.internet + ":7000")
				n.Internet.ServeUDP(p.internet + ":7000")
				n.Internet.ServeUDP(p.internet + ":7001")
				n.Server.ServeTCP(p.any + ":50010")
				n.Server.ServeUDP(p.any + ":50010")
				n.Server.ServeUDP(p.any + ":50006")
			}
			lab.Binary(t) // built first: conntrack forgets a question after 30 s
			// Something is tracked before the programs are loaded.
			askFrom(t, n.Client, parties[0], 40000, 7000)
			hp := home.Start(t, n, mode, wideAndSingle)
			if said := hp.Run("status"); !strings.Contains(said, "conntrack:   asked\n") {
				t.Errorf("status does not say that conntrack is asked:\n%s", said)
			}
			for _, p := range parties {
				t.Run(p.name, func(t *testing.T) { answersToForwardedPorts(t, n.For(t), p) })
				t.Run(p.name+", forged", func(t *testing.T) { answersAfterForgeries(t, n.For(t), hp, p) })
			}
			t.Run("FTP", func(t *testing.T) { activeFTP(t, n.For(t)) })
		})
	}
}

func answersToForwardedPorts(t *testing.T, n *lab.Network, p party) {
	for _, port := range []string{":50001", ":123"} {
		c, err := n.Client.DialTCP(p.internet+":7000", p.client+port, lab.Patience)
		if err != nil {
			t.Errorf("a client's connection from the forwarded port %s: %v", port, err)
			continue
		}
		if err := c.Echo(400_000); err != nil {
			t.Errorf("a client's connection from the forwarded port %s: %v", port, err)
		}
		c.Close()
	}
	d, err := n.Client.DialUDP(p.internet+":7000", p.client+":50002")
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	// Some answers come in fragments.
	if _, err := lab.Exchange(d, 3, 3); err != nil {
		t.Errorf("a client's datagrams from a forwarded port: %v", err)
	}
	for _, port := range []string{":50008", ":123"} {
		d, err := n.Router.DialUDP(p.internet+":7001", p.external+port)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lab.Exchange(d, 3, 100); err != nil {
			t.Errorf("the router's connected socket at the forwarded port %s, untracked: %v", port, err)
		}
		d.Close()
	}
	for _, port := range []int{50009, 124} {
		opensFromBothSides(t, n, p, port)
	}
	askFrom(t, n.Client, p, 50003, 7000, 8000)
	askFrom(t, n.Router, p, 50005, 7000, 8000)
	askFrom(t, n.Client, p, 123, 7000, 8000)
	askFrom(t, n.Router, p, 123, 7000, 8000)
	refusedAt(t, n.Client, p, p.client+":50004")
	refusedAt(t, n.Router, p, p.external+":50007")

	// The forward goes on, also where a socket of the router only listens.
	listening := listenUDP(t, n.Router, p.any+":50006")
	for _, port := range []string{":50010", ":50006"} {
		d, err := n.Internet.DialUDP(p.external+port, "")
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		if _, err := lab.Exchange(d, 20, 1000); err != nil {
			t.Errorf("the forward's UDP%s: %v", port, err)
		}
	}
	listening.Close()
	c, err := n.Internet.DialTCP(p.external+":50010", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Echo(10_000); err != nil {
		t.Error(err)
	}
}

// answersAfterForgeries: whoever sends packets with the source of a host that will be asked takes no answers of this host.
func answersAfterForgeries(t *testing.T, n *lab.Network, hp *lab.Hairpin, p party) {
	const peer, refused = 7100, 7101
	n.Server.RunInput(`
table inet silent {
	chain input {
		type filter hook input priority filter
		meta l4proto { tcp, udp } th dport 50020-50029 drop
	}
}`, "nft", "-f", "-")
	defer n.Server.Run("nft", "delete", "table", "inet", "silent")
	known := func(protocol string, port, from int) {
		t.Helper()
		lab.Eventually(t, lab.Patience, func() error {
			for line := range strings.Lines(hp.Run("conn", "show")) {
				if strings.HasPrefix(line, protocol) && strings.Contains(line, fmt.Sprintf(":%d ", from)) && strings.Contains(line, fmt.Sprintf(":%d ", port)) {
					return nil
				}
			}
			return fmt.Errorf("no connection of %s port %d with %d", protocol, port, from)
		})
	}
	forger := listenUDP(t, n.Internet, fmt.Sprintf("%s:%d", p.internet, peer))
	for _, port := range []int{50020, 50021} {
		if _, err := forger.WriteToUDPAddrPort([]byte("forged"), netip.MustParseAddrPort(fmt.Sprintf("%s:%d", p.external, port))); err != nil {
			t.Fatal(err)
		}
		known("udp", port, peer)
	}
	forger.Close()
	tcpPorts := map[int]int{50022: peer, 50023: peer, 50024: refused, 50025: refused}
	for port, from := range tcpPorts {
		if c, err := n.Internet.DialTCP(fmt.Sprintf("%s:%d", p.external, port), fmt.Sprintf("%s:%d", p.internet, from), 100*time.Millisecond); err == nil {
			c.Close()
			t.Fatalf("the silent server answers at port %d", port)
		}
		known("tcp", port, from)
	}

	n.Internet.ServeUDP(fmt.Sprintf("%s:%d", p.internet, peer))
	n.Internet.ServeTCP(fmt.Sprintf("%s:%d", p.internet, peer))
	askFrom(t, n.Router, p, 50020, peer, 8000)
	askFrom(t, n.Client, p, 50021, peer, 8000)
	for _, source := range []struct {
		host    *lab.Host
		address string
		peer    int
	}{
		{n.Client, p.client + ":50022", peer},
		{n.Router, p.external + ":50023", peer},
		{n.Client, p.client + ":50024", refused},
		{n.Router, p.external + ":50025", refused},
	} {
		c, err := source.host.DialTCP(fmt.Sprintf("%s:%d", p.internet, source.peer), source.address, lab.Patience)
		if source.peer == refused {
			if !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("%s asks a closed port from %s: %v, want a refusal", source.host.Name, source.address, err)
			}
			continue
		}
		if err == nil {
			err = errors.Join(c.Echo(10_000), c.Close())
		}
		if err != nil {
			t.Errorf("%s connects from %s: %v", source.host.Name, source.address, err)
		}
	}
}

// opensFromBothSides has a masqueraded client and an Internet host send a SYN to each other (RFC 5382 REQ-2).
func opensFromBothSides(t *testing.T, n *lab.Network, p party, port int) {
	t.Helper()
	peer := 8000 + port%1000
	// The client's SYN gets lost, and is counted.
	n.Internet.RunInput(fmt.Sprintf(`
table inet lost {
	chain input {
		type filter hook input priority filter
		tcp dport %d tcp flags & (syn | ack) == syn counter drop
	}
}`, peer), "nft", "-f", "-")
	defer n.Internet.Run("nft", "delete", "table", "inet", "lost")
	inside := make(chan error, 1)
	go func() {
		c, err := n.Client.DialTCP(fmt.Sprintf("%s:%d", p.internet, peer), fmt.Sprintf("%s:%d", p.client, port), lab.Patience)
		if err == nil {
			err = c.Close()
		}
		inside <- err
	}()
	lab.Eventually(t, lab.Patience, func() error {
		r, err := n.Internet.Try("nft", "list", "table", "inet", "lost")
		if err == nil && strings.Contains(r.Stdout, "packets 0 ") {
			err = errors.New("the client's SYN has not come")
		}
		return err
	})
	c, err := n.Internet.DialTCP(fmt.Sprintf("%s:%d", p.external, port), fmt.Sprintf("%s:%d", p.internet, peer), lab.Patience)
	if err != nil {
		t.Errorf("both sides open at port %d: %v", port, err)
	} else {
		c.Close()
	}
	if err := <-inside; err != nil {
		t.Errorf("both sides open at port %d: the client: %v", port, err)
	}
}

// askFrom sends datagrams from an unconnected socket, as name servers' forwarders do, and wants the echoes.
func askFrom(t *testing.T, from *lab.Host, p party, port, to int, sizes ...int) {
	t.Helper()
	c := listenUDP(t, from, fmt.Sprintf("%s:%d", p.any, port))
	defer c.Close()
	for _, size := range append([]int{100}, sizes...) {
		question := bytes.Repeat([]byte{byte(size)}, size)
		peer := netip.MustParseAddrPort(fmt.Sprintf("%s:%d", p.internet, to))
		if _, err := c.WriteToUDPAddrPort(question, peer); err != nil {
			t.Errorf("%s asks from port %d: %v", from.Name, port, err)
		}
		c.SetReadDeadline(time.Now().Add(lab.Patience))
		answer := make([]byte, 1<<16)
		got, err := c.Read(answer)
		if err != nil || !bytes.Equal(answer[:got], question) {
			t.Errorf("%s asks %d bytes from port %d: the answer has %d bytes (%v)", from.Name, size, port, got, err)
		}
	}
}

func listenUDP(t *testing.T, on *lab.Host, address string) (c *net.UDPConn) {
	t.Helper()
	local, network := net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)), "udp4"
	if local.IP.To4() == nil {
		network = "udp6"
	}
	err := on.Do(func() (err error) {
		c, err = net.ListenUDP(network, local)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// refusedAt sends a datagram to a port that nobody has, and wants the error that the Internet host answers with.
func refusedAt(t *testing.T, from *lab.Host, p party, source string) {
	t.Helper()
	c, err := from.DialUDP(p.internet+":7999", source)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetReadDeadline(time.Now().Add(lab.Patience))
	if _, err := c.Write([]byte("anybody there?")); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("%s asks a closed port from %s: %v, want a refusal", from.Name, source, err)
	}
}

// activeFTP has an Internet client download a file from vsftpd by a connection that the server makes from port 20.
func activeFTP(t *testing.T, n *lab.Network) {
	dir := t.TempDir()
	file := bytes.Repeat([]byte("hairpin\n"), 100_000)
	lab.Must(os.Chmod(dir, 0o755))
	lab.Must(os.Chmod(filepath.Dir(dir), 0o755))
	lab.Must(os.WriteFile(filepath.Join(dir, "file"), file, 0o644))
	configuration := filepath.Join(t.TempDir(), "vsftpd.conf")
	lab.Must(os.WriteFile(configuration, []byte(`listen=YES
background=NO
anonymous_enable=YES
no_anon_password=YES
anon_root=`+dir+`
connect_from_port_20=YES
pasv_enable=NO
seccomp_sandbox=NO
`), 0o600))
	n.Server.Start("vsftpd", configuration)
	lab.Eventually(t, lab.Patience, func() error {
		r, err := n.Internet.Try("curl", "--silent", "--show-error", "--max-time", "10", "--ftp-port", lab.InternetSource,
			"--disable-eprt", "ftp://"+lab.External+"/file")
		if err == nil && r.Stdout != string(file) {
			err = fmt.Errorf("%d of %d bytes came: %s", len(r.Stdout), len(file), r.Stderr)
		}
		return err
	})
}

// TestRouterBesideOneToOne: the router renews its lease, pings, asks for the time and is told of errors though every port of its
// address is forwarded. All else comes to the server.
func TestRouterBesideOneToOne(t *testing.T) {
	t.Parallel()
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Router.RunInput(masquerading, "nft", "-f", "-")
			for _, p := range parties {
				n.Internet.ServeTCP(p.internet + ":7000")
				n.Internet.ServeUDP(p.internet + ":123")
				n.Server.ServeUDP(p.any + ":123")
			}
			askFrom(t, n.Router, parties[0], 40000, 123)
			home.Start(t, n, mode, oneToOne)
			for _, p := range parties {
				t.Run(p.name, func(t *testing.T) {
					n := n.For(t)
					askFrom(t, n.Router, p, 123, 123)
					askFrom(t, n.Router, p, 40001, 123, 8000)
					askFrom(t, n.Client, p, 123, 123)
					refusedAt(t, n.Router, p, p.external+":0")
					refusedAt(t, n.Client, p, p.client+":0")
					n.Router.Run("ping", "-c", "2", "-W", "5", strings.Trim(p.internet, "[]"))
					n.Client.Run("ping", "-c", "2", "-W", "5", strings.Trim(p.internet, "[]"))
					c, err := n.Router.DialTCP(p.internet+":7000", "", lab.Patience)
					if err != nil {
						t.Fatal(err)
					}
					defer c.Close()
					if err := c.Echo(100_000); err != nil {
						t.Error(err)
					}
					d, err := n.Internet.DialUDP(p.external+":123", "")
					if err != nil {
						t.Fatal(err)
					}
					defer d.Close()
					if _, err := lab.Exchange(d, 20, 1000); err != nil {
						t.Errorf("the forward: %v", err)
					}
				})
			}
			t.Run("DHCP", func(t *testing.T) { renewsLease(t, n.For(t)) })
		})
	}
}

// renewsLease has the router get a lease, by broadcasts and a packet socket, and renew it, by a UDP socket.
func renewsLease(t *testing.T, n *lab.Network) {
	dir := t.TempDir()
	events, server, script := filepath.Join(dir, "events"), filepath.Join(dir, "udhcpd.conf"), filepath.Join(dir, "script")
	lab.Must(os.WriteFile(events, nil, 0o644))
	lab.Must(os.WriteFile(script, []byte("#!/bin/sh\necho \"$1 $ip\" >>"+events+"\n"), 0o755))
	lab.Must(os.WriteFile(filepath.Join(dir, "leases"), nil, 0o600))
	lab.Must(os.WriteFile(server, []byte(fmt.Sprintf("start %s\nend %s\ninterface eth0\nlease_file %s\npidfile %s\noption subnet 255.255.255.0\noption lease 3600\nmin_lease 60\n",
		lab.External, lab.External, filepath.Join(dir, "leases"), filepath.Join(dir, "pid"))), 0o600))
	n.Internet.Start("busybox", "udhcpd", "-f", "-I", lab.Gateway, server)
	client := n.Router.Start("busybox", "udhcpc", "-f", "-i", "wan0", "-s", script, "-t", "20", "-T", "1", "-r", lab.External)
	happens := func(event string) {
		t.Helper()
		lab.Eventually(t, 2*lab.Patience, func() error {
			said, err := os.ReadFile(events)
			if err == nil && !strings.Contains(string(said), event+" "+lab.External) {
				err = fmt.Errorf("no %s of %s: %q", event, lab.External, said)
			}
			return err
		})
	}
	happens("bound")
	client.Signal(unix.SIGUSR1)
	happens("renew")
}

// TestStatusTellsOfOldPrograms: without the daemon, status says that the programs must be loaded anew, because tracking has begun or the
// ephemeral ports have changed.
func TestStatusTellsOfOldPrograms(t *testing.T) {
	n := lab.NewNetwork6(t)
	n.Internet.ServeUDP(parties[0].internet + ":7000")
	hp := lab.NewHairpin(n.Router, home.Config("tc", portForwards))
	hp.Run("attach")
	const cure = `run "hairpin upgrade"`
	says := func(want string) {
		t.Helper()
		said := hp.Run("status")
		if told := strings.Contains(said, cure); told != (want != "") || !strings.Contains(said, want) {
			t.Errorf("status does not say %q with the cure, or says it without a reason:\n%s", want, said)
		}
	}
	says("")
	n.Router.RunInput(masquerading, "nft", "-f", "-")
	askFrom(t, n.Client, parties[0], 40000, 7000)
	says("the kernel tracks connections now, and tracked none when the programs were loaded")
	hp.Run("upgrade")
	says("")
	n.Router.Sysctl("net/ipv4/ip_local_port_range", "20000 20999")
	says("net.ipv4.ip_local_port_range is 20000-20999 now")
	hp.Run("upgrade")
	says("")
}

// portForwards are several ports outside the ephemeral range and inside it, and one inside.
const portForwards = `
[[forward]]
name = "low"
protocol = ["udp"]
port = "20000-20010"
to = "192.168.1.20"

[[forward]]
name = "high"
protocol = ["udp"]
port = "50000-60000"
to = "192.168.1.20"

[[forward]]
name = "one"
protocol = ["udp"]
port = "45000"
to = "192.168.1.20"
`

// TestUnconnectedSockets: where no connections are tracked, an unconnected socket gets what comes to its port if the kernel may have
// chosen the port, and several ports are forwarded. When tracking begins, the daemon has the programs loaded anew: then a
// socket gets what it has asked for, and nothing else.
func TestUnconnectedSockets(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			p := parties[0]
			n.Internet.ServeUDP(p.internet + ":7000")
			for _, port := range []string{":20005", ":45000", ":50006"} {
				n.Server.ServeUDP(port)
			}
			hp := home.Start(t, n, mode, portForwards)
			askFrom(t, n.Router, p, 50005, 7000, 8000)

			// Sockets that only listen, and never ask.
			for _, port := range []string{":20005", ":45000", ":50006"} {
				c := listenUDP(t, n.Router, p.any+port)
				defer c.Close()
			}
			served := func(port string) error {
				c, err := n.Internet.DialUDP(lab.External+port, "")
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = lab.Exchange(c, 3, 100)
				return err
			}
			for _, port := range []string{":20005", ":45000"} {
				if err := served(port); err != nil {
					t.Errorf("the forward of %s: %v", port, err)
				}
			}

			n.Router.RunInput(masquerading, "nft", "-f", "-")
			askFrom(t, n.Client, p, 40000, 7000)
			lab.Eventually(t, lab.Patience, func() error {
				if !strings.Contains(hp.Log(), "loaded the programs anew") {
					return errors.New("the programs are the old ones")
				}
				return nil
			})
			for _, port := range []string{":20005", ":45000", ":50006"} {
				if err := served(port); err != nil {
					t.Errorf("the forward of %s while connections are tracked: %v", port, err)
				}
			}
			askFrom(t, n.Router, p, 50005, 7000, 8000)
			askFrom(t, n.Router, p, 20007, 7000, 8000)
		})
	}
}

// TestAnswersFromALAN: the router asks a LAN host from a forwarded port of the address that this host sees, and gets the answer. The
// address is the WAN's where the LAN interface has none. Otherwise it is the LAN interface's own.
func TestAnswersFromALAN(t *testing.T) {
	for _, mode := range home.Modes {
		for name, unnumbered := range map[string]bool{"the WAN's address": true, "the LAN's address": false} {
			t.Run(mode+", "+name, func(t *testing.T) {
				n := lab.NewNetwork(t)
				n.SetOffloads(home.OffloadsFor(mode))
				n.Router.RunInput(masquerading, "nft", "-f", "-")
				external := lab.RouterGuest
				if unnumbered {
					external = lab.External
					n.Router.Unaddress("lan1", lab.RouterGuest+"/24")
					n.Router.Route("lan1", lab.Guest+"/32", "", "")
					n.Guest.Run("ip", "route", "replace", lab.External, "dev", "eth0")
					n.Guest.Run("ip", "route", "replace", "default", "via", lab.External, "dev", "eth0")
				}
				n.Guest.ServeUDP(":7000")
				n.Server.ServeUDP(":50006")
				hp := home.Start(t, n, mode, `
[[forward]]
name = "wide"
protocol = ["udp"]
external = "`+external+`"
port = "50000-60000"
to = "192.168.1.20"
`)
				if said := hp.Run("status"); !strings.Contains(said, "conntrack:   asked\n") {
					t.Fatalf("status says\n%s", said)
				}
				askFrom(t, n.Router, party{any: "0.0.0.0", internet: lab.Guest}, 50005, 7000, 1200)
				c, err := n.Guest.DialUDP(external+":50006", "")
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := lab.Exchange(c, 3, 100); err != nil {
					t.Errorf("the forward: %v", err)
				}
			})
		}
	}
}
