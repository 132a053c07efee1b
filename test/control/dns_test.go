// SPDX-License-Identifier: Apache-2.0

package control

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// namedForwards are forwards with DNS names for LAN clients.
const namedForwards = `
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = "192.168.1.20"
hosts = ["www.example.org"]

[[forward]]
name = "web6"
protocol = ["tcp"]
port = "80"
to = "fd00::20"
hosts = ["www.example.org"]
`

// nameServer is one that runs on the router and answers inside clients.
type nameServer struct {
	name   string
	files  map[string]string         // by format, in its directory
	told   string                    // format of the file that it is told of
	reload func(dir string) []string // how it is told; nil: it looks itself
	start  func(t *testing.T, n *lab.Network, dir string)
	// All types of a name are what hairpin says, so that others have no answer.
	wholeName bool
}

func nameServers() []nameServer {
	return []nameServer{
		{name: "dnsmasq", files: map[string]string{"dnsmasq": "hosts.d/hairpin"}, start: startDnsmasq},
		{name: "unbound", files: map[string]string{"unbound": "hairpin.conf"}, start: startUnbound, told: "unbound",
			reload: func(dir string) []string {
				return []string{"unbound-control", "-c", filepath.Join(dir, "unbound.conf"), "reload"}
			}},
		{name: "BIND", files: map[string]string{"bind-rpz": "hairpin.rpz", "bind-view": "hairpin.view"}, start: startBIND, wholeName: true, told: "bind-rpz",
			reload: func(dir string) []string {
				return []string{"rndc", "-c", filepath.Join(dir, "rndc.conf"), "reload", "hairpin.rpz", "IN", "inside"}
			}},
	}
}

// config is the [dns] of a configuration file.
func (s nameServer) config(dir string) string {
	text := "\n[dns.write]\n"
	for format, file := range s.files {
		text += fmt.Sprintf("%s = %q\n", format, filepath.Join(dir, file))
	}
	if s.reload == nil {
		return text
	}
	return text + fmt.Sprintf("[dns.reload]\n%s = [\"%s\"]\n", s.told, strings.Join(s.reload(dir), `", "`))
}

// Inside clients find the target by a name, outside ones the public address, and everything
// else about the domain is as it was; what changes on the command line changes the answers.
func TestSplitDNS(t *testing.T) {
	for _, server := range nameServers() {
		t.Run(server.name, func(t *testing.T) {
			n := lab.NewNetwork(t)
			startPublicDNS(n)
			dir := serverDir(t)
			hp := home.Start(t, n, "tc", server.config(dir)+namedForwards)
			server.start(t, n, dir)

			home.WantAnswer(t, n.Client, lab.RouterLAN, "www.example.org", "A", lab.Server)
			home.WantAnswer(t, n.Client, lab.RouterLAN, "www.example.org", "AAAA", "fd00::20")
			home.WantAnswer(t, n.Internet, lab.Gateway, "www.example.org", "A", lab.External)
			if server.name == "BIND" {
				home.WantAnswer(t, n.Internet, lab.External, "www.example.org", "A", lab.External)
				home.WantAnswer(t, n.Internet, lab.External, "www.example.org", "TXT", `"outside"`)
				home.WantAnswer(t, n.Router, lab.External, "www.example.org", "A", lab.External)
				home.WantAnswer(t, n.Router, "127.0.0.1", "www.example.org", "A", lab.Server)
			}
			for _, other := range []string{"mail.example.org", "deep.www.example.org", "late.example.org"} {
				home.WantAnswer(t, n.Client, lab.RouterLAN, other, "A", lab.External)
			}
			home.WantAnswer(t, n.Client, lab.RouterLAN, "example.org", "MX", "10 mail.example.org.")
			if server.wholeName {
				home.WantAnswer(t, n.Client, lab.RouterLAN, "www.example.org", "TXT", "")
			} else {
				home.WantAnswer(t, n.Client, lab.RouterLAN, "www.example.org", "TXT", `"outside"`)
			}

			r, err := hp.Try("forward", "add", "late", "tcp", "8080", "to", "192.168.1.21:80", "host", "late.example.org")
			if err != nil || r.Code != 0 || !strings.Contains(r.Stderr, `warning: cli: forward "late": hosts: port 8080 is 80 at 192.168.1.21`) {
				t.Fatalf("forward add: %+v, %v", r, err)
			}
			home.WantAnswer(t, n.Client, lab.RouterLAN, "late.example.org", "A", "192.168.1.21")
			home.WantAnswer(t, n.Client, lab.RouterLAN, "www.example.org", "A", lab.Server)
			hp.Run("forward", "del", "late")
			home.WantAnswer(t, n.Client, lab.RouterLAN, "late.example.org", "A", lab.External)

			hp.Write(strings.ReplaceAll(home.Config("tc", server.config(dir)+namedForwards), `"192.168.1.20"`, `"192.168.1.22"`))
			hp.Reload()
			home.WantAnswer(t, n.Client, lab.RouterLAN, "www.example.org", "A", "192.168.1.22")
			home.WantAnswer(t, n.Client, lab.RouterLAN, "www.example.org", "AAAA", "fd00::20")
			for format := range server.files {
				if writes := home.Scrape(t, n, "hairpin_dns_writes_total", fmt.Sprintf("format=%q", format)); writes < 1 {
					t.Errorf("%s was written %v times", format, writes)
				}
				if failures := home.Scrape(t, n, "hairpin_dns_write_failures_total", fmt.Sprintf("format=%q", format)); failures != 0 {
					t.Errorf("%s could not be written %v times", format, failures)
				}
			}
		})
	}
}

// A second is enough from the command line to the answer, as the median of a few times.
func TestDnsmasqFollowsInASecond(t *testing.T) {
	n := lab.NewNetwork(t)
	startPublicDNS(n) // says at once what it does not know
	dir := serverDir(t)
	server := nameServers()[0]
	hp := home.Start(t, n, "tc", server.config(dir)+namedForwards)
	server.start(t, n, dir)
	var took []time.Duration
	for i := range 7 {
		host := fmt.Sprintf("host-%d.example.org", i)
		hp.Run("forward", "add", fmt.Sprintf("f%d", i), "tcp", fmt.Sprint(2000+i), "to", lab.Server, "host", host)
		added := time.Now()
		home.WantAnswer(t, n.Client, lab.RouterLAN, host, "A", lab.Server)
		took = append(took, time.Since(added))
	}
	slices.Sort(took)
	t.Logf("answered after %v", took)
	if median := took[len(took)/2]; median > time.Second {
		t.Errorf("answered after %v, and a second is the most", median)
	}
}

// Both cures side by side: who goes by the name never meets the router, who goes by the
// public address is reflected.
func TestByNameAndByAddress(t *testing.T) {
	n := lab.NewNetwork(t)
	serveHTTP(t, n.Server, ":80")
	dir := serverDir(t)
	server := nameServers()[0]
	home.Start(t, n, "tc", server.config(dir)+namedForwards)
	server.start(t, n, dir)
	n.Switch.RunInput(`
		table bridge count {
			chain forward {
				type filter hook forward priority 0
				iifname "port0" ip protocol tcp counter
				oifname "port0" ip protocol tcp counter
			}
		}`, "nft", "-f", "-")
	home.WantAnswer(t, n.Client, lab.RouterLAN, "www.example.org", "A", lab.Server)
	// The switch learns by it where the server is, and floods nothing to the router then.
	n.Client.Run("ping", "-c1", "-W5", lab.Server)

	if got := curlWith(t, n.Client, lab.RouterLAN, "http://www.example.org/"); got != "hello "+lab.Client {
		t.Errorf("by name: %q, want to be greeted as %s", got, lab.Client)
	}
	if packets := bridgeCount(t, n.Switch); packets != 0 {
		t.Errorf("by name: %d packets to or from the router", packets)
	}
	// A forward has series from its first packet on: without labels scrape would miss them.
	if packets := home.Scrape(t, n, "hairpin_forward_packets_total", `forward=`); packets != 0 {
		t.Errorf("by name: %v packets were forwarded", packets)
	}
	if got := curlWith(t, n.Client, lab.RouterLAN, "http://"+lab.External+"/"); got != "hello "+lab.RouterLAN {
		t.Errorf("by address: %q, want to be greeted as %s", got, lab.RouterLAN)
	}
	counted, forwarded := bridgeCount(t, n.Switch), home.Scrape(t, n, "hairpin_forward_packets_total", `path="hairpin"`)
	if counted < 10 || forwarded < 5 {
		t.Errorf("by address: the switch counts %d packets, hairpin %v", counted, forwarded)
	}
}

// Names of every kind that is taken are taken by every server.
func TestServersTakeEveryName(t *testing.T) {
	n := lab.NewNetwork(t)
	dir := serverDir(t)
	label := strings.Repeat("a", 63)
	hosts := []string{
		"nas", "example.org", "www.example.org", "3com.example", "a--b.example", "r3---sn.example", "xn--bcher-kva.example", "BÜCHER.example.org",
		"1.2.3.x4", label + ".example", strings.Repeat("a.", 120) + "b", "server", "in", "a", "ttl", "view", "zone", "include", "0xcafe.example", "9.x9",
	}
	longest := label + "." + label + "." + label + "." + label[:61]
	hp := lab.NewHairpin(n.Router, home.Config("tc", fmt.Sprintf("\n[dns.write]\nbind-rpz = %q\n", filepath.Join(dir, "hairpin.rpz"))+
		fmt.Sprintf("[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\nport = 80\nto = \"192.168.1.20\"\nhosts = [\"%s\", %q]\n", strings.Join(hosts, `", "`), longest)+
		fmt.Sprintf("[[forward]]\nname = \"b\"\nprotocol = \"tcp\"\nport = 80\nto = \"fd00::20\"\nhosts = [\"%s\"]\n", strings.Join(hosts, `", "`))))
	write := func(format, file string) string {
		path := filepath.Join(dir, file)
		hp.Run("dns", "--format", format, "--write", path)
		return path
	}

	if out := n.Router.Run("named-checkzone", "hairpin.rpz", write("bind-rpz", "hairpin.rpz")); strings.Count(out, "\n") != 2 || !strings.Contains(out, "\nOK\n") {
		t.Errorf("named-checkzone: %s", out)
	}
	n.Router.Run("named-checkconf", "-z", write("bind-view", "hairpin.view"))
	write("unbound", "hairpin.conf")
	writeServerFile(t, dir, "unbound.conf", fmt.Sprintf("server:\n\tusername: \"\"\n\tchroot: \"\"\n\tdirectory: %q\ninclude: %q\n", dir, filepath.Join(dir, "hairpin.conf")))
	n.Router.Run("unbound-checkconf", filepath.Join(dir, "unbound.conf"))
	write("dnsmasq", "hosts.d/hairpin")
	n.Router.Run("dnsmasq", "--test", "--conf-file=/dev/null", "--hostsdir="+filepath.Join(dir, "hosts.d"))

	// It has no validator of its own; the server tells what it could not read.
	dnsmasq := n.Router.Start(home.DnsmasqArgs("--no-resolv", "--hostsdir="+filepath.Join(dir, "hosts.d"), "--listen-address=127.0.0.1")...)
	lab.Eventually(t, lab.Patience, func() error {
		if said := dnsmasq.Stderr.String(); !regexp.MustCompile(fmt.Sprintf(`hosts.d/hairpin - %d names`, 2*len(hosts)+1)).MatchString(said) {
			return fmt.Errorf("dnsmasq: not %d names:\n%s", 2*len(hosts)+1, said)
		}
		return nil
	})
	if said := dnsmasq.Stderr.String(); strings.Contains(said, "bad ") {
		t.Errorf("dnsmasq: %s", said)
	}
	for _, host := range append(hosts[:len(hosts):len(hosts)], longest) {
		host = strings.ReplaceAll(host, "BÜCHER", "xn--bcher-kva")
		home.WantAnswer(t, n.Router, "127.0.0.1", host, "A", lab.Server)
	}

	// The C library reads the lines, too.
	write("hosts", "hosts")
	for _, host := range []string{"nas", longest} {
		found := n.Router.Run("unshare", "-m", "sh", "-c", `mount --bind "$1" /etc/hosts && getent ahostsv4 "$2"`, "sh", filepath.Join(dir, "hosts"), host)
		if !strings.HasPrefix(found, lab.Server+" ") {
			t.Errorf("the C library finds %q for %s", found, host)
		}
	}
}

// serverDir is a directory for a server's files; its path is short enough for a socket's.
func serverDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "hairpin-dns-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Mkdir(filepath.Join(dir, "hosts.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

func writeServerFile(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

// startPublicDNS runs the server of the Internet, which knows the domain by its public addresses.
func startPublicDNS(n *lab.Network) {
	args := []string{"--no-resolv", "--listen-address=" + lab.Gateway, "--local=/example.org/", "--txt-record=www.example.org,outside", "--mx-host=example.org,mail.example.org,10"}
	for _, name := range []string{"www", "mail", "late", "deep.www"} {
		args = append(args, "--host-record="+name+".example.org,"+lab.External)
	}
	n.Internet.Start(home.DnsmasqArgs(args...)...)
}

func startDnsmasq(_ *testing.T, n *lab.Network, dir string) {
	n.Router.Start(home.DnsmasqArgs("--no-resolv", "--server="+lab.Gateway, "--hostsdir="+filepath.Join(dir, "hosts.d"), "--listen-address="+lab.RouterLAN)...)
}

func startUnbound(t *testing.T, n *lab.Network, dir string) {
	writeServerFile(t, dir, "unbound.conf", fmt.Sprintf(`server:
	directory: %[1]q
	username: ""
	chroot: ""
	pidfile: ""
	use-syslog: no
	interface: %[2]s
	do-ip6: no
	access-control: 192.168.0.0/16 allow
	module-config: "iterator"
remote-control:
	control-enable: yes
	control-interface: "%[1]s/control"
	control-use-cert: no
forward-zone:
	name: "."
	forward-addr: %[3]s
include: "%[1]s/hairpin.conf"
`, dir, lab.RouterLAN, lab.Gateway))
	conf := filepath.Join(dir, "unbound.conf")
	n.Router.Run("unbound-checkconf", conf)
	n.Router.Start(unconfined(t, dir, "unbound"), "-d", "-c", conf)
}

// startBIND runs a server of the domain itself, for outside clients, with a view for inside ones.
func startBIND(t *testing.T, n *lab.Network, dir string) {
	const key = "key lab { algorithm hmac-sha256; secret \"aGFpcnBpbiBzcGxpdCBETlM=\"; };\n"
	writeServerFile(t, dir, "rndc.conf", key+"options { default-key lab; default-server 127.0.0.1; default-port 953; };\n")
	writeServerFile(t, dir, "named.conf", key+fmt.Sprintf(`options {
	directory %[1]q;
	pid-file none;
	session-keyfile none;
	listen-on { any; };
	listen-on-v6 { none; };
	forwarders { %[2]s; };
	forward only;
	dnssec-validation no;
};
controls { inet 127.0.0.1 allow { localhost; } keys { lab; }; };
include "%[1]s/hairpin.view";
view "outside" {
	match-clients { any; };
	recursion no;
	zone "example.org" { type primary; file "example.org"; };
};
`, dir, lab.Gateway))
	writeServerFile(t, dir, "example.org", fmt.Sprintf(`$TTL 300
@ IN SOA www hostmaster 1 3600 600 86400 60
@ IN NS www
www IN A %s
www IN TXT "outside"
`, lab.External))
	conf := filepath.Join(dir, "named.conf")
	n.Router.Run("named-checkconf", "-z", conf)
	n.Router.Run("named-checkzone", "hairpin.rpz", filepath.Join(dir, "hairpin.rpz"))
	n.Router.Start(unconfined(t, dir, "named"), "-g", "-c", conf)
}

// unconfined is a copy of a program, for AppArmor lets the packaged one read its usual
// directories alone.
func unconfined(t *testing.T, dir, program string) string {
	t.Helper()
	path, err := exec.LookPath(program)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	copied := filepath.Join(dir, program)
	if err := os.WriteFile(copied, data, 0o755); err != nil {
		t.Fatal(err)
	}
	return copied
}

// serveHTTP greets clients by their address until the test ends.
func serveHTTP(t *testing.T, h *lab.Host, address string) {
	t.Helper()
	var listener net.Listener
	if err := h.Do(func() (err error) {
		listener, err = net.Listen("tcp4", address)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := net.SplitHostPort(r.RemoteAddr)
		fmt.Fprint(w, "hello ", client)
	})}
	t.Cleanup(func() { server.Close() })
	go server.Serve(listener)
}

// curlWith runs curl where a server is the one of resolv.conf.
func curlWith(t *testing.T, h *lab.Host, server, url string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver "+server+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	return h.Run("unshare", "-m", "sh", "-c", `mount --bind "$1" /etc/resolv.conf && exec curl -4 -sS --max-time 20 "$2"`, "sh", path, url)
}

// bridgeCount sums the counters of the switch.
func bridgeCount(t *testing.T, h *lab.Host) (packets int) {
	t.Helper()
	for _, found := range regexp.MustCompile(`counter packets (\d+)`).FindAllStringSubmatch(h.Run("nft", "list", "table", "bridge", "count"), -1) {
		var n int
		if _, err := fmt.Sscan(found[1], &n); err != nil {
			t.Fatal(err)
		}
		packets += n
	}
	return packets
}
