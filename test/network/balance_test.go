// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// pool are the addresses of the servers of these tests. All are on the server's host.
var pool = []string{lab.Server, "192.168.1.21", "192.168.1.22"}

// poolForwards lead to the servers of the pool, with weights 1, 2 and 1. more are more keys of the forward.
func poolForwards(more string) string {
	return fmt.Sprintf(`
[[forward]]
name = "web"
protocol = ["tcp"]
port = "80"
to = ["%s:8080", { target = "%s:8080", weight = 2 }, "%s:8080"]
%s
`, pool[0], pool[1], pool[2], more)
}

// startPool serves on all addresses of the pool by nginx, which says the address that was asked.
func startPool(t *testing.T, n *lab.Network) {
	t.Helper()
	dir := t.TempDir()
	text := strings.ReplaceAll(`
daemon off;
master_process off;
pid DIR/nginx.pid;
events { worker_connections 4096; }
http {
	access_log off;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	keepalive_timeout 600s;
	server {
		listen 8080;
		location / { return 200 $server_addr; }
	}
}
`, "DIR", dir)
	config := filepath.Join(dir, "nginx.conf")
	lab.Must(os.WriteFile(config, []byte(text), 0o600))
	for _, address := range pool[1:] {
		n.Server.Address("eth0", address+"/24")
	}
	n.Server.Start("nginx", "-c", config, "-e", filepath.Join(dir, "error.log"))
	for _, address := range pool {
		lab.Eventually(t, lab.Patience, func() error {
			c, err := n.Client.DialTCP(address+":8080", "", time.Second)
			if err == nil {
				c.Close()
			}
			return err
		})
	}
}

// browser is an HTTP client on a host, with a connection for each request, or with one connection for all.
func browser(h *lab.Host, keep bool) *http.Client {
	return &http.Client{Timeout: lab.Patience, Transport: &http.Transport{
		DisableKeepAlives: !keep, MaxIdleConnsPerHost: 1,
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			err = h.Do(func() (err error) {
				conn, err = net.Dial(network, address)
				return err
			})
			return conn, err
		},
	}}
}

// server asks for a page, and returns the address of the server that has answered.
func server(b *http.Client) (string, error) {
	response, err := b.Get("http://" + lab.External + "/")
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, text)
	}
	return string(text), err
}

func mustServer(t *testing.T, b *http.Client) string {
	t.Helper()
	address, err := server(b)
	if err != nil {
		t.Fatal(err)
	}
	return address
}

// TestSharesOfServers: the servers' shares of 20,000 real connections are within 2 percentage points of their weights.
func TestSharesOfServers(t *testing.T) {
	const connections, parallel = 20_000, 20
	n := lab.NewNetwork(t)
	n.SetOffloads(home.OffloadsFor("xdp"))
	startPool(t, n)
	hp := home.Start(t, n, "xdp", poolForwards(""))
	counts := map[string]int{}
	var mu sync.Mutex
	lab.Together(parallel, func(int) {
		b := browser(n.Internet, false)
		for range connections / parallel {
			address, err := server(b)
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			counts[address]++
			mu.Unlock()
		}
	})
	for i, want := range []float64{0.25, 0.5, 0.25} {
		if got := float64(counts[pool[i]]) / connections; math.Abs(got-want) > 0.02 {
			t.Errorf("%s has %.3f of the connections, want %.3f", pool[i], got, want)
		}
	}
	shown := hp.Run("forward", "show", "-s")
	for _, line := range []string{"3 servers", pool[0] + ":8080 weight 1", pool[1] + ":8080 weight 2"} {
		if !strings.Contains(shown, line) {
			t.Errorf("forward show lacks %q:\n%s", line, shown)
		}
	}
}

// TestServersOfAllClients: clients of the LAN, of another LAN, and the servers themselves get every server, in each reflect mode.
func TestServersOfAllClients(t *testing.T) {
	for _, mode := range home.Modes {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		startPool(t, n)
		config := func(reflect string) string {
			more := fmt.Sprintf("reflect = %q", reflect)
			return "[reflection.prefixes]\n\"192.168.1.0/25\" = \"198.18.1.0/25\"\n\"192.168.2.0/24\" = \"198.18.2.0/24\"\n" + poolForwards(more)
		}
		hp := home.Start(t, n, mode, config("auto"))
		for _, reflect := range []string{"auto", "router", "public", "prefix"} {
			hp.Write(home.Config(mode, config(reflect)))
			hp.Reload()
			for name, from := range map[string]*lab.Host{"client": n.Client, "guest": n.Guest, "server": n.Server, "Internet": n.Internet} {
				found := map[string]bool{}
				for range 80 { // this test misses a server by chance in one of 100 million runs
					found[mustServer(t, browser(from, false))] = true
				}
				if len(found) != len(pool) {
					t.Errorf("%s, %s, %s: only the servers %v were found", mode, reflect, name, found)
				}
			}
		}
	}
}

// TestServersChange: affinity is held over a reload with other weights. A connection lives as long as its server is one of the forward's,
// also with weight 0; its client is told when the server is removed.
func TestServersChange(t *testing.T) {
	n := lab.NewNetwork(t)
	startPool(t, n)
	hp := home.Start(t, n, "tc", poolForwards(`affinity = "1h"`))
	kept := browser(n.Internet, true)
	first := mustServer(t, kept)
	// listed returns the forward with this weight for the first server and another one for the others; "": without the first server.
	listed := func(weight, other string) string {
		var servers []string
		for _, address := range pool {
			its := other
			if address == first {
				its = weight
			}
			if its != "" {
				servers = append(servers, fmt.Sprintf("{ target = %q, weight = %s }", address+":8080", its))
			}
		}
		return fmt.Sprintf("[[forward]]\nname = \"web\"\nprotocol = [\"tcp\"]\nport = \"80\"\nto = [%s]\naffinity = \"1h\"\n", strings.Join(servers, ", "))
	}
	hp.Write(home.Config("tc", listed("1", "200")))
	hp.Reload()
	for range 20 {
		if now := mustServer(t, browser(n.Internet, false)); now != first {
			t.Fatalf("the client's next connection goes to %s, the one before went to %s", now, first)
		}
	}
	source, _, err := net.SplitHostPort(home.Show(t, hp, "conn", "show").Connections[0].Client)
	if err != nil {
		t.Fatal(err)
	}
	explained := n.Router.Run(lab.Binary(t), "--bpffs", hp.Dir, "explain", "in", "wan0", "tcp", source+":50000", "to", lab.External+":80")
	if !strings.Contains(explained, "the one that the client had last") || !strings.Contains(explained, first) {
		t.Errorf("explain does not tell of affinity with %s:\n%s", first, explained)
	}

	hp.Write(home.Config("tc", listed("0", "1")))
	hp.Reload()
	if now := mustServer(t, kept); now != first {
		t.Errorf("a connection that was there goes to %s, was %s", now, first)
	}
	second := mustServer(t, browser(n.Internet, false))
	if second == first {
		t.Errorf("a new connection goes to %s, whose weight is 0", first)
	}

	waiting, err := n.Internet.DialTCP(lab.External+":80", "", lab.Patience) // to the second one, by affinity
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	first = second
	if said := hp.Fail(3, "diff", write(t, home.Config("tc", listed("", "1")))); !strings.Contains(said, "of forward web") || !strings.Contains(said, "ends ") {
		t.Errorf("diff does not say that connections end:\n%s", said)
	}
	hp.Write(home.Config("tc", listed("", "1")))
	hp.Reload()
	waiting.SetReadDeadline(time.Now().Add(lab.Patience))
	if _, err := waiting.Read(make([]byte, 1)); err == nil || os.IsTimeout(err) {
		t.Errorf("the client of a removed server was not told: %v", err)
	}
	for range 20 {
		if now := mustServer(t, browser(n.Internet, false)); now == second {
			t.Fatalf("a connection goes to %s, which was removed", now)
		}
	}
}

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "hairpin.toml")
	lab.Must(os.WriteFile(path, []byte(text), 0o600))
	return path
}
