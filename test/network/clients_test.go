// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// clientForwards lead to the real services of one server, in both families.
const clientForwards = `
[[forward]]
name = "web-FAMILY"
protocol = ["tcp"]
port = "80"
to = "SERVER:8080"
[[forward]]
name = "ssh-FAMILY"
protocol = ["tcp"]
port = "22"
to = "SERVER:2222"
[[forward]]
name = "dns-FAMILY"
protocol = ["tcp", "udp"]
port = "53"
to = "SERVER:5353"
[[forward]]
name = "iperf-FAMILY"
protocol = ["tcp", "udp"]
port = "5000"
to = "SERVER:5201"
[[forward]]
name = "tracepath-FAMILY"
protocol = ["udp"]
port = "44300-44400"
to = "SERVER:44300-44400"
[[forward]]
name = "ping-FAMILY"
protocol = ["icmp"]
to = "HOST"
`

// clientPlace is the host of a client, a family, and the client address that the server sees.
type clientPlace struct {
	*lab.Host
	flag     string // -4 or -6
	external string
	sees     string
	hops     int // to the server; 0: traces tell nothing
}

// realClients are programs that use a forward. Each test judges a program by its own output.
var realClients = []struct {
	name string
	use  func(p clientPlace, key string) error
}{
	{"curl", clientPlace.curl},
	{"ssh", clientPlace.ssh},
	{"dig", func(p clientPlace, _ string) error { return errors.Join(p.dig(), p.dig("+tcp")) }},
	{"ping", func(p clientPlace, _ string) error {
		return p.says("3 received", "ping", p.flag, "-n", "-c3", "-i0.01", "-W5", p.external)
	}},
	{"tracepath", clientPlace.tracepath},
}

// TestRealClients: the programs that people use reach real servers by every path.
func TestRealClients(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			startNginx(t, n.Server)
			key := startSSH(t, n.Server)
			n.Server.Start("dnsmasq", "--keep-in-foreground", "--port=5353", "--no-resolv", "--no-hosts", "--address=/name.test/192.0.2.77",
				"--user=root", "--pid-file=")
			n.Server.Start("iperf3", "-s", "-p", "5201")
			for _, port := range []string{"2222", "5353", "5201"} {
				listens(t, n.Server, port)
			}
			four := strings.NewReplacer("FAMILY", "4", "SERVER", lab.Server, "HOST", lab.Server)
			six := strings.NewReplacer("FAMILY", "6", "SERVER", "["+lab.Server6+"]", "HOST", lab.Server6)
			home.Start(t, n, mode, four.Replace(clientForwards)+six.Replace(clientForwards))
			places := []clientPlace{
				{n.Internet, "-4", lab.External, lab.InternetSource, 2},
				{n.Client, "-4", lab.External, lab.RouterLAN, 2},
				{n.Router, "-4", lab.External, lab.RouterLAN, 0},
				{n.Internet, "-6", lab.External6, lab.InternetSource6, 2},
				{n.Client, "-6", lab.External6, lab.RouterLAN6, 2},
				{n.Router, "-6", lab.External6, lab.RouterLAN6, 0},
			}
			for _, c := range realClients {
				t.Run(c.name, func(t *testing.T) {
					lab.Together(len(places), func(i int) {
						if err := c.use(places[i], key); err != nil {
							t.Errorf("%s, %s: %v", places[i].Name, places[i].flag, err)
						}
					})
				})
			}
			for _, p := range places { // their server takes one at a time
				for _, flags := range [][]string{{"-n5M"}, {"-n5M", "-R"}, {"-u", "-n1M", "-b100M"}, {"-u", "-n1M", "-b100M", "-R"}} {
					if err := p.iperf(flags); err != nil {
						t.Errorf("iperf3 %v, %s, %s: %v", flags, p.Name, p.flag, err)
					}
				}
			}
		})
	}
}

// startSSH starts sshd on port 2222 with new keys, and returns the directory of the client's key. sshd finds the machine's files that
// it needs in its own mounts.
func startSSH(t *testing.T, h *lab.Host) (dir string) {
	t.Helper()
	dir = t.TempDir()
	for _, name := range []string{"host", "key"} {
		h.Run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name))
	}
	lab.Must(os.Rename(filepath.Join(dir, "key.pub"), filepath.Join(dir, "authorized")))
	lab.Must(os.WriteFile(filepath.Join(dir, "shadow"), []byte("root:*:1::::::\nsshd:!:1::::::\n"), 0o600))
	config := strings.ReplaceAll(`Port 2222
HostKey DIR/host
AuthorizedKeysFile DIR/authorized
PidFile none
UsePAM no
StrictModes no
PermitRootLogin prohibit-password
`, "DIR", dir)
	lab.Must(os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600))
	// A locked root, as machines often have it, is let in by no key.
	h.Start("unshare", "--mount", "sh", "-c", strings.ReplaceAll(`mount --bind DIR/shadow /etc/shadow && mount -t tmpfs run /run && mkdir /run/sshd &&
		exec /usr/sbin/sshd -D -e -f DIR/config`, "DIR", dir))
	return dir
}

// listens waits for a server.
func listens(t *testing.T, h *lab.Host, port string) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if h.Run("ss", "-Hltn", "sport = :"+port) == "" {
			return fmt.Errorf("nobody listens on port %s", port)
		}
		return nil
	})
}

// says runs a program that has to succeed and say something.
func (p clientPlace) says(want string, args ...string) error {
	r, err := p.Try(args...)
	if err == nil && (r.Code != 0 || !strings.Contains(r.Stdout, want)) {
		err = fmt.Errorf("%s: exit code %d, want %q\n%s%s", strings.Join(args, " "), r.Code, want, r.Stdout, r.Stderr)
	}
	return err
}

func (p clientPlace) curl(string) error {
	url := "http://" + p.external + "/"
	if p.flag == "-6" {
		url = "http://[" + p.external + "]/"
	}
	return p.says("hello\n", "curl", p.flag, "-sS", "--max-time", "20", url)
}

// ssh connects and compares the client address that the server sees.
func (p clientPlace) ssh(dir string) error {
	return p.says(p.sees+" ", "ssh", p.flag, "-F", "none", "-i", filepath.Join(dir, "key"), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
		"-o", "UserKnownHostsFile=/dev/null", "-o", "ConnectTimeout=20", "root@"+p.external, "echo $SSH_CONNECTION")
}

func (p clientPlace) dig(flags ...string) error {
	return p.says("192.0.2.77\n", append([]string{"dig", p.flag, "@" + p.external, "name.test", "+short", "+tries=3"}, flags...)...)
}

// iperf moves some megabytes. The server takes one test at a time, and may still be ending the one before.
func (p clientPlace) iperf(flags []string) (err error) {
	args := append([]string{"iperf3", p.flag, "-J", "-c", p.external, "-p", "5000", "-l", "1400"}, flags...)
	for range 20 {
		var report struct {
			Error string
			End   struct {
				Sum      struct{ Bytes float64 } // of UDP
				Received struct{ Bytes float64 } `json:"sum_received"`
			}
		}
		r, tried := p.Try(args...)
		if tried != nil {
			return tried
		}
		if err := json.Unmarshal([]byte(r.Stdout), &report); err != nil {
			return fmt.Errorf("%w\n%s%s", err, r.Stdout, r.Stderr)
		}
		// Packets that arrive after the client has ended its test are not counted; these may be all packets.
		if report.Error == "" && report.End.Sum.Bytes+report.End.Received.Bytes > 0 {
			return nil
		}
		err = fmt.Errorf("nothing arrived: %s", report.Error)
	}
	return err
}

func (p clientPlace) tracepath(string) error {
	if p.hops == 0 {
		return nil // The router is no hop to itself.
	}
	return p.says(fmt.Sprintf("pmtu 1500 hops %d back", p.hops), "tracepath", p.flag, "-n", "-m6", "-p", "44300", p.external)
}
