// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// Public name servers, addresses of the Internet host.
const (
	public       = "8.8.8.8"
	otherPublic  = "9.9.9.9"
	public6      = "2001:db8:53::8"
	otherPublic6 = "2001:db8:53::9"
)

// Further addresses of the client.
const (
	excepted  = "192.168.1.99"
	excepted6 = "fd00:1::99"
)

// newPublicNetwork makes the usual network with both families, whose LANs are routed without masquerading, with
// the addresses of public name servers on the Internet host.
func newPublicNetwork(t *testing.T) *lab.Network {
	t.Helper()
	n := lab.NewNetwork6(t)
	n.Internet.Address("eth0", public+"/32", otherPublic+"/32")
	n.Internet.Address6("eth0", public6+"/128", otherPublic6+"/128")
	n.Internet.Route("eth0", "192.168.0.0/16", lab.External, "")
	n.Internet.Route("eth0", "fd00::/16", lab.External6, "")
	n.Client.Address("eth0", excepted+"/32")
	// Not the one that is used unasked.
	n.Client.Run("ip", "-6", "address", "add", excepted6+"/128", "dev", "eth0", "nodad", "preferred_lft", "0")
	return n
}

// newResolverNetwork masquerades what its hosts ask outside. It has a name server on every host but the client. Each has an answer of its own to who.test,
// and asks the public one for all other names.
func newResolverNetwork(t *testing.T) (n *lab.Network, resolvers map[*lab.Host]*lab.Process) {
	t.Helper()
	n = newPublicNetwork(t)
	n.Router.Run("nft", `table inet up {
		chain postrouting {
			type nat hook postrouting priority srcnat
			oifname "wan0" masquerade
		}
	}`)
	resolvers = map[*lab.Host]*lab.Process{
		n.Internet: n.Internet.Start(resolverArgs("public", "--address=/up.test/192.0.2.1", "--listen-address="+strings.Join([]string{public, otherPublic, public6, otherPublic6}, ","))...),
		n.Router:   n.Router.Start(resolverArgs("router", "--server="+public, "--listen-address="+lab.RouterLAN+","+lab.RouterLAN6)...),
		n.Server:   n.Server.Start(resolverArgs("server", "--server="+public, "--listen-address="+lab.Server+","+lab.Server6)...),
		n.Guest:    n.Guest.Start(resolverArgs("guest", "--server="+public, "--listen-address="+lab.Guest+","+lab.Guest6)...),
	}
	n.Internet.Start(resolverArgs("other-port", "--port=5353", "--listen-address="+public+","+public6)...)
	return n, resolvers
}

func resolverArgs(who string, args ...string) []string {
	return home.DnsmasqArgs(append([]string{"--no-resolv", "--log-queries=extra", "--txt-record=who.test," + who}, args...)...)
}

// wantResolver checks which name server answers, by UDP and TCP. dig ignores an answer from another address than the address it asked.
func wantResolver(t *testing.T, h *lab.Host, server, want string, args ...string) {
	t.Helper()
	for _, transport := range []string{"+notcp", "+tcp"} {
		lab.Eventually(t, lab.Patience, func() error {
			words := append([]string{"dig", "+short", "+time=1", "+tries=1", transport, "@" + server, "who.test", "TXT"}, args...)
			r, err := h.Try(words...)
			if err == nil && (r.Code != 0 || strings.TrimSpace(r.Stdout) != `"`+want+`"`) {
				err = fmt.Errorf("%s, %v: answered by %s%s, want %s", h.Name, words, r.Stdout, r.Stderr, want)
			}
			return err
		})
	}
}

// interceptTo leads the LAN on lan0 to a target of each family.
func interceptTo(target, target6 string) string {
	return fmt.Sprintf(`
[[intercept]]
name = "dns"
protocol = ["udp", "tcp"]
port = 53
to = "%s:53"
lan = "lan0"
except = [%q, %q]

[[intercept]]
name = "dns6"
protocol = ["udp", "tcp"]
port = 53
to = "[%s]:53"
lan = ["lan0"]
except = [%q, %q]
`, target, excepted, otherPublic, target6, excepted6, otherPublic6)
}

// TestIntercept: whatever name server a LAN client asks, the target answers, and the answer's source is the address that the client
// asked. Other clients and other packets are not redirected.
func TestIntercept(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"tc", "xdp"} {
		for _, to := range []struct{ who, target, target6, seen, seen6 string }{
			{"router", lab.RouterLAN, lab.RouterLAN6, lab.RouterLAN, lab.RouterLAN6},
			{"server", lab.Server, lab.Server6, lab.RouterLAN, lab.RouterLAN6},
			{"guest", lab.Guest, lab.Guest6, lab.Client, lab.Client6},
		} {
			t.Run(mode+", "+to.who, func(t *testing.T) {
				n, resolvers := newResolverNetwork(t)
				n.SetOffloads(home.OffloadsFor(mode))
				hp := home.Start(t, n, mode, interceptTo(to.target, to.target6))
				asked := map[string]*lab.Process{"router": resolvers[n.Router], "server": resolvers[n.Server], "guest": resolvers[n.Guest]}[to.who]
				for _, family := range []struct{ name, public, target, seen string }{
					{"dns", public, to.target, to.seen}, {"dns6", public6, to.target6, to.seen6},
				} {
					wantResolver(t, n.Client, family.public, to.who)
					wantAsker(t, asked, family.seen)
					wantIntercepted(t, n, hp, family.name, family.public, family.seen, family.target)
				}
				wantUntouched(t, n, hp)

				// What the target does not know it asks the public one, unhindered.
				for _, server := range []string{public, public6} {
					home.WantAnswer(t, n.Client, server, "up.test", "A", "192.0.2.1")
				}
				wantAsker(t, resolvers[n.Internet], lab.External)
			})
		}
	}
}

// wantAsker looks into the log of a name server for who has asked it.
func wantAsker(t *testing.T, resolver *lab.Process, client string) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if said := resolver.Stderr.String(); !strings.Contains(said, "test from "+client+"\n") {
			return fmt.Errorf("%s has not asked:\n%s", client, said)
		}
		return nil
	})
}

// wantIntercepted looks for what was asked by UDP and TCP where the user would.
func wantIntercepted(t *testing.T, n *lab.Network, hp *lab.Hairpin, name, asked, seen, target string) {
	t.Helper()
	server, at := netip.MustParseAddr(asked), netip.AddrPortFrom(netip.MustParseAddr(target), 53)
	found := map[string]bool{}
	for _, c := range home.Show(t, hp, "conn", "show", "forward", name).Connections {
		source := netip.MustParseAddrPort(c.Source)
		if c.External != netip.AddrPortFrom(server, 53).String() || c.Target != at.String() || c.Path != "hairpin" || source.Addr().String() != seen {
			t.Errorf("%s: %+v", name, c)
		}
		found[c.Protocol] = true
	}
	if !found["udp"] || !found["tcp"] {
		t.Errorf("%s: of protocols %v alone", name, found)
	}
	for _, label := range []string{`direction="in"`, `direction="out"`} {
		if packets := home.Scrape(t, n, "hairpin_forward_packets_total", fmt.Sprintf("forward=%q", name), `path="hairpin"`, label); packets < 5 {
			t.Errorf("%s: %v packets %s", name, packets, label)
		}
	}
	if f := home.ForwardNamed(t, hp, name); !f.Intercept || f.External != "any" || len(f.LAN) != 1 || f.LAN[0] != "lan0" || f.Port != "53" || f.Target != at.String() || f.Packets < 10 {
		t.Errorf("forward show: %+v", f)
	}
}

// wantUntouched sends queries that the intercept must not redirect.
func wantUntouched(t *testing.T, n *lab.Network, hp *lab.Hairpin) {
	t.Helper()
	before := len(home.Show(t, hp, "conn", "show").Connections)
	for _, family := range []struct{ public, other, excepted, server, guest string }{
		{public, otherPublic, excepted, lab.Server, lab.Guest},
		{public6, otherPublic6, excepted6, lab.Server6, lab.Guest6},
	} {
		wantResolver(t, n.Client, family.public, "other-port", "-p", "5353")
		wantResolver(t, n.Client, family.public, "public", "-b", family.excepted)
		wantResolver(t, n.Client, family.other, "public")
		wantResolver(t, n.Guest, family.public, "public")
		wantResolver(t, n.Guest, family.server, "server")
		wantResolver(t, n.Router, family.public, "public")
	}
	if after := home.Show(t, hp, "conn", "show").Connections; len(after) > before {
		t.Errorf("%d connections have become %+v", before, after)
	}
}

// question is a socket that asks the peer for its name.
type question struct{ net.Conn }

func (q question) ask() (string, error) { return q.say([]byte("who?")) }

func (q question) say(data []byte) (string, error) {
	// Of UDP the first datagram may be lost while a neighbour is being found.
	var err error
	for range 5 {
		q.SetDeadline(time.Now().Add(lab.Patience / 5))
		if _, err = q.Write(data); err != nil {
			return "", err
		}
		answer := make([]byte, 100)
		var length int
		if length, err = q.Read(answer); err == nil {
			return string(answer[:length]), nil
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return "", err
		}
	}
	return "", err
}

func askTCP(t *testing.T, h *lab.Host, address string) question {
	return newQuestion(t, h, "tcp", address)
}

func askUDP(t *testing.T, h *lab.Host, address string) question {
	return newQuestion(t, h, "udp", address)
}

func newQuestion(t *testing.T, h *lab.Host, network, address string) (q question) {
	t.Helper()
	dialer := net.Dialer{Timeout: lab.Patience}
	if err := h.Do(func() (err error) {
		q.Conn, err = dialer.DialContext(context.Background(), network, address)
		return err
	}); err != nil {
		t.Fatalf("%s: %v", h.Name, err)
	}
	t.Cleanup(func() { q.Close() })
	return q
}

func wantName(t *testing.T, when, want string, questions ...question) {
	t.Helper()
	for _, q := range questions {
		if got, err := q.ask(); err != nil || got != want {
			t.Errorf("%s, %s from %s: %q answers, want %s (%v)", when, q.RemoteAddr().Network(), q.LocalAddr(), got, want, err)
		}
	}
}

// serveName answers everything by its own name, over TCP and UDP.
func serveName(t *testing.T, h *lab.Host, address, name string) {
	t.Helper()
	var listener net.Listener
	var datagrams net.PacketConn
	lab.Must(h.Do(func() (err error) {
		if listener, err = net.Listen("tcp", address); err == nil {
			datagrams, err = net.ListenPacket("udp", address)
		}
		return err
	}))
	t.Cleanup(func() { listener.Close(); datagrams.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				for data := make([]byte, 100); ; {
					if _, err := c.Read(data); err != nil {
						return
					}
					io.WriteString(c, name)
				}
			}()
		}
	}()
	go func() {
		for data := make([]byte, 100); ; {
			_, peer, err := datagrams.ReadFrom(data)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err == nil {
				datagrams.WriteTo([]byte(name), peer)
			}
		}
	}()
}

// TestInterceptComesAndGoes: connections from before the intercept continue. After the intercept is removed, each client reaches the
// server that it asks at once, even from a port that was redirected before.
func TestInterceptComesAndGoes(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		for _, family := range []struct{ name, public, other, router string }{
			{"IPv4", public + ":53", otherPublic + ":53", lab.RouterLAN + ":53"},
			{"IPv6", "[" + public6 + "]:53", "[" + otherPublic6 + "]:53", "[" + lab.RouterLAN6 + "]:53"},
		} {
			t.Run(mode+", "+family.name, func(t *testing.T) {
				n := newPublicNetwork(t)
				n.SetOffloads(home.OffloadsFor(mode))
				for _, at := range []string{family.public, family.other} {
					serveName(t, n.Internet, at, "public")
				}
				serveName(t, n.Router, family.router, "router")
				hp := home.Start(t, n, mode, "")
				before, reused := askTCP(t, n.Client, family.public), askUDP(t, n.Client, family.public)
				wantName(t, "before", "public", before, reused)

				hp.Write(home.Config(mode, interceptTo(lab.RouterLAN, lab.RouterLAN6)))
				hp.Reload()
				wantName(t, "a connection that was there", "public", before)
				during := askTCP(t, n.Client, family.public)
				wantName(t, "while it is there", "router", during, reused)
				wantName(t, "whom it leaves alone", "public", askTCP(t, n.Client, family.other), askUDP(t, n.Client, family.other))

				hp.Run("forward", "del", "dns", "dns6")
				wantName(t, "a connection that was never intercepted", "public", before)
				wantName(t, "afterwards", "public", askTCP(t, n.Client, family.public), reused)
				if name, err := during.ask(); err == nil {
					t.Errorf("an intercepted connection goes on without its intercept: %s answers", name)
				}
			})
		}
	}
}

// TestInterceptedFragments: a question too long for a packet arrives whole.
func TestInterceptedFragments(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		for _, to := range []struct{ who, target, target6 string }{{"router", lab.RouterLAN, lab.RouterLAN6}, {"guest", lab.Guest, lab.Guest6}} {
			t.Run(mode+", "+to.who, func(t *testing.T) {
				n := newPublicNetwork(t)
				n.SetOffloads(home.OffloadsFor(mode))
				home.Start(t, n, mode, interceptTo(to.target, to.target6))
				for _, family := range []struct{ public, target string }{{public, to.target}, {"[" + public6 + "]", "[" + to.target6 + "]"}} {
					at := map[string]*lab.Host{"router": n.Router, "guest": n.Guest}[to.who]
					serveName(t, at, family.target+":53", to.who)
					serveName(t, n.Internet, family.public+":53", "public")
					for _, length := range []int{1473, 4000, 60000} {
						if got, err := askUDP(t, n.Client, family.public+":53").say(make([]byte, length)); err != nil || got != to.who {
							t.Fatalf("%d bytes to %s: %q answers, want %s (%v)", length, family.public, got, to.who, err)
						}
					}
				}
			})
		}
	}
}

// TestInterceptsOnTheCommandLine: they are shown, compared, deleted and saved as forwards are.
func TestInterceptsOnTheCommandLine(t *testing.T) {
	const web = "[[forward]]\nname = \"web\"\nprotocol = \"tcp\"\nport = 80\nto = \"192.168.1.20:8080\"\n"
	n := lab.NewNetwork6(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", web+interceptTo(lab.RouterLAN, lab.RouterLAN6)))
	hp.Run("attach")
	hp.Run("diff")
	table := hp.Run("forward", "show")
	for _, want := range []string{
		`(?m)^dns +udp,tcp +any@lan0 +53 +192\.168\.1\.1:53 +auto +!192\.168\.1\.99/32,!9\.9\.9\.9/32 +- +\S+:\d+$`,
		`(?m)^dns6 +udp,tcp +any@lan0 +53 +\[fd00:1::1\]:53 +auto +!fd00:1::99/128,!2001:db8:53::9/128 +`,
		`(?m)^web +tcp +203\.0\.113\.2 \(wan0\) +80 +192\.168\.1\.20:8080 +auto +any +`,
	} {
		if !regexp.MustCompile(want).MatchString(table) {
			t.Errorf("forward show lacks %s:\n%s", want, table)
		}
	}
	if said := hp.Fail(1, "forward", "add", "dns6", "udp", "53", "to", lab.Server); !strings.Contains(said, `intercept "dns6" exists already: dns6 udp,tcp lan0:53 to [fd00:1::1]:53 except`) {
		t.Errorf("forward add: %s", said)
	}
	if warned := hp.Run("status"); strings.Contains(warned, "warning: intercept") || strings.Contains(warned, `warning: forward "dns`) {
		t.Errorf("status: %s", warned)
	}
	hp.Run("conn", "show", "forward", "dns")

	hp.Write(home.Config("tc", web+interceptTo(lab.Server, lab.RouterLAN6)))
	r, err := hp.Try("diff")
	want := "- intercept dns udp,tcp lan0:53 to 192.168.1.1:53 except 192.168.1.99/32,9.9.9.9/32\n+ intercept dns udp,tcp lan0:53 to 192.168.1.20:53 except 192.168.1.99/32,9.9.9.9/32\n"
	if err != nil || r.Code != 3 || r.Stdout != want {
		t.Errorf("diff: exit code %d, %v (-want +got)\n%s", r.Code, err, cmp.Diff(want, r.Stdout))
	}

	// What runs and is in no file gets into one.
	hp.Write(home.Config("tc", web))
	hp.Run("save")
	hp.Run("diff")
	hp.Run("apply")
	if f := home.ForwardNamed(t, hp, "dns6"); !f.Intercept || f.Target != "["+lab.RouterLAN6+"]:53" || len(f.Except) != 2 {
		t.Errorf("after save and apply: %+v", f)
	}
	hp.Run("forward", "del", "dns")
	if list := home.Show(t, hp, "forward", "show").Forwards; len(list) != 2 {
		t.Errorf("after del: %+v", list)
	}
	hp.Write(home.Config("tc", "[[intercept]]\nname = \"time\"\nprotocol = \"udp\"\nport = 123\nto = \"192.168.1.0\"\n"))
	if said := hp.Fail(1, "apply"); !strings.Contains(said, "192.168.1.0 is the network of lan0, not a host") {
		t.Errorf("apply: %s", said)
	}
}

// TestInterceptReflects: the reflect mode of the intercept decides which client address a target in another LAN sees. The default for
// forwards has no effect.
func TestInterceptReflects(t *testing.T) {
	n, resolvers := newResolverNetwork(t)
	hp := lab.NewHairpin(n.Router, "")
	for i, reflect := range []struct{ line, seen, seen6 string }{
		{"", lab.Client, lab.Client6},
		{"reflect = \"router\"\n", lab.RouterGuest, lab.RouterGuest6},
		{"reflect = \"prefix\"\n", "198.18.1.50", "fd00:9:1::50"},
	} {
		intercepts := strings.ReplaceAll(interceptTo(lab.Guest, lab.Guest6), "protocol =", reflect.line+"protocol =")
		hp.Write(home.Config("auto", "[reflection]\ndefault = \"off\"\nprefixes = { \"192.168.1.0/24\" = \"198.18.1.0/24\", \"fd00:1::/64\" = \"fd00:9:1::/64\" }\n"+intercepts))
		if i == 0 {
			hp.Start()
		} else {
			hp.Reload()
		}
		wantResolver(t, n.Client, public, "guest")
		wantResolver(t, n.Client, public6, "guest")
		wantAsker(t, resolvers[n.Guest], reflect.seen)
		wantAsker(t, resolvers[n.Guest], reflect.seen6)
	}
}
