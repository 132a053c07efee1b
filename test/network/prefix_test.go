// SPDX-License-Identifier: Apache-2.0

package network

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// prefixForwards are forwards with reflect prefix, of both families.
const prefixForwards = `
[reflection]
default = "prefix"

[reflection.prefixes]
"192.168.1.0/25" = "198.18.1.0/25"
"192.168.2.0/24" = "198.18.2.0/24"
"fd00:1::/64" = "fd00:9:1::/64"
"fd00:2::/64" = "fd00:9:2::/64"
` + home.Forwards + home.Forwards6

// startNginx serves on port 8080 and returns the log, a client's address a line.
func startNginx(t *testing.T, h *lab.Host) (log string) {
	t.Helper()
	dir := t.TempDir()
	config := filepath.Join(dir, "nginx.conf")
	log = filepath.Join(dir, "access.log")
	text := strings.ReplaceAll(`
daemon off;
master_process off;
pid DIR/nginx.pid;
events {}
http {
	log_format client $remote_addr;
	access_log DIR/access.log client;
	client_body_temp_path DIR/body;
	proxy_temp_path DIR/proxy;
	fastcgi_temp_path DIR/fastcgi;
	uwsgi_temp_path DIR/uwsgi;
	scgi_temp_path DIR/scgi;
	server {
		listen 8080;
		listen [::]:8080;
		location / { return 200 "hello\n"; }
	}
}
`, "DIR", dir)
	lab.Must(os.WriteFile(config, []byte(text), 0o600))
	h.Start("nginx", "-c", config, "-e", filepath.Join(dir, "error.log"))
	lab.Eventually(t, lab.Patience, func() error {
		c, err := h.DialTCP(lab.Server+":8080", "", time.Second)
		if err == nil {
			c.Close()
		}
		return err
	})
	return log
}

// curl asks for a page from one of the host's addresses.
func curl(h *lab.Host, source netip.Addr, patience string) error {
	r, err := h.Try("curl", "-s", "-S", "--interface", source.String(), "--max-time", patience, "http://"+lab.External+"/")
	if err == nil && (r.Code != 0 || r.Stdout != "hello\n") {
		err = fmt.Errorf("curl: exit code %d, %s%s", r.Code, r.Stdout, r.Stderr)
	}
	return err
}

// TestServerKnowsItsClients: the server's log has an address for each client, and blocking one there blocks that
// client alone.
func TestServerKnowsItsClients(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		log := startNginx(t, n.Server)
		home.Start(t, n, mode, prefixForwards)
		addrs := aliases(n.Client, 10)
		addrs = append(addrs, netip.MustParseAddr(lab.Client))
		want := []string{"198.18.2.50"}
		for _, addr := range addrs {
			if err := curl(n.Client, addr, "20"); err != nil {
				t.Errorf("%s, %v: %v", mode, addr, err)
			}
			want = append(want, fmt.Sprintf("198.18.1.%d", addr.As4()[3]))
		}
		if err := curl(n.Guest, netip.MustParseAddr(lab.Guest), "20"); err != nil {
			t.Errorf("%s, guest: %v", mode, err)
		}
		slices.Sort(want)
		lab.Eventually(t, lab.Patience, func() error {
			text, err := os.ReadFile(log)
			got := strings.Fields(string(text))
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				return fmt.Errorf("%s: the server's log (-want +got):\n%s%w", mode, diff, errors.Join(err))
			}
			return nil
		})

		blocked := addrs[3]
		filter(n.Server, "input", fmt.Sprintf("ip saddr 198.18.1.%d drop", blocked.As4()[3]))
		for _, addr := range addrs {
			patience := "20"
			if addr == blocked {
				patience = "0.5"
			}
			if err := curl(n.Client, addr, patience); (err != nil) != (addr == blocked) {
				t.Errorf("%s: with %v blocked %v gets: %v", mode, blocked, addr, err)
			}
		}
	}
}

// stream is a TCP connection, both its ends.
type stream struct {
	name           string
	client, server net.Conn
}

func openStream(t *testing.T, name string, from *lab.Host, listener net.Listener, external string) *stream {
	t.Helper()
	s := &stream{name: name}
	dialer := net.Dialer{Timeout: lab.Patience}
	if err := from.Do(func() (err error) {
		s.client, err = dialer.DialContext(context.Background(), "tcp", external)
		return err
	}); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() { s.client.Close() })
	var err error
	if s.server, err = listener.Accept(); err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	t.Cleanup(func() { s.server.Close() })
	return s
}

// carry sends random bytes and compares what arrives.
func carry(from, to net.Conn, length int) error {
	deadline := time.Now().Add(2 * lab.Patience)
	from.SetDeadline(deadline)
	to.SetDeadline(deadline)
	data, got := make([]byte, length), make([]byte, length)
	rand.Read(data)
	sent := make(chan error, 1)
	go func() {
		_, err := from.Write(data)
		sent <- err
	}()
	if n, err := io.ReadFull(to, got); err != nil {
		return fmt.Errorf("after %d of %d bytes: %w", n, length, errors.Join(err, <-sent))
	}
	if !bytes.Equal(data, got) {
		return errors.New("other bytes arrive")
	}
	return <-sent
}

// goesOn has both sides speak, one of them first.
func (s *stream) goesOn(clientFirst bool) error {
	first, second := s.server, s.client
	if clientFirst {
		first, second = second, first
	}
	for _, length := range []int{1, 1000, 1_000_000} {
		if err := carry(first, second, length); err != nil {
			return fmt.Errorf("%s, client first %v: %w", s.name, clientFirst, err)
		}
		if err := carry(second, first, length); err != nil {
			return fmt.Errorf("%s, client first %v: %w", s.name, clientFirst, err)
		}
	}
	return nil
}

// loseAll removes all of hairpin's state on the router and starts hairpin again.
func loseAll(t *testing.T, hp *lab.Hairpin) {
	t.Helper()
	hp.Stop()
	hp.Run("detach", "--all")
	hp.Start()
}

// TestRestartBreaksNothing: hairpin forgets every connection. With reflect prefix they go on, whoever speaks first;
// by the same rules, and nothing of it shows.
func TestRestartBreaksNothing(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"tc", "xdp"} {
		for _, family := range []struct{ name, at, external string }{
			{"IPv4", "192.168.1.20:8080", lab.External + ":80"}, {"IPv6", "[fd00:1::20]:8080", "[" + lab.External6 + "]:80"},
		} {
			t.Run(mode+", "+family.name, func(t *testing.T) { restartBreaksNothing(t, mode, family.at, family.external) })
		}
	}
}

func restartBreaksNothing(t *testing.T, mode, at, external string) {
	n := lab.NewNetwork6(t)
	n.SetOffloads(home.OffloadsFor(mode))
	hp := home.Start(t, n, mode, prefixForwards)
	listener := listenAt(t, n.Server, at)
	var streams []*stream
	for range 2 {
		for _, from := range []*lab.Host{n.Client, n.Server, n.Guest} {
			streams = append(streams, openStream(t, from.Name, from, listener, external))
		}
	}
	for i, s := range streams {
		if err := s.goesOn(i%2 == 0); err != nil {
			t.Fatal(err)
		}
	}
	for round := range 2 {
		loseAll(t, hp)
		if left := home.Show(t, hp, "conn", "show").Connections; len(left) != 0 {
			t.Errorf("not all is lost: %+v", left)
		}
		for i, s := range streams {
			if err := s.goesOn((i < 3) == (round == 0)); err != nil {
				t.Errorf("round %d: %v", round, err)
			}
		}
		if list := home.Show(t, hp, "conn", "show").Connections; len(list) != len(streams) {
			t.Errorf("round %d: %d connections are listed, want %d: %+v", round, len(list), len(streams), list)
		}
	}
	for _, s := range streams {
		if err := s.client.Close(); err != nil {
			t.Error(err)
		}
		if _, err := s.server.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("%s: the server reads %v, want the end", s.name, err)
		}
	}
}

func listenAt(t *testing.T, h *lab.Host, address string) net.Listener {
	t.Helper()
	var listener net.Listener
	lab.Must(h.Do(func() (err error) {
		listener, err = net.Listen("tcp", address)
		return err
	}))
	t.Cleanup(func() { listener.Close() })
	return listener
}

// TestRestartUnderTraffic: transfers in both directions survive a restart that loses all state. During the restart the router's firewall
// drops their packets, so that no RST or ICMP error ends them.
func TestRestartUnderTraffic(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) { restartUnderTraffic(t, mode) })
	}
}

func restartUnderTraffic(t *testing.T, mode string) {
	n := lab.NewNetwork6(t)
	n.SetOffloads(home.OffloadsFor(mode))
	filter(n.Router, "input", "tcp dport 80 drop")
	filter(n.Router, "forward", "ip daddr 198.18.0.0/15 drop")
	hp := home.Start(t, n, mode, prefixForwards)
	listener := listenAt(t, n.Server, "192.168.1.20:8080")
	var stop atomic.Bool
	var carried [3]atomic.Int64
	failed := make(chan error, len(carried))
	for i, from := range []*lab.Host{n.Client, n.Server, n.Guest} {
		s := openStream(t, from.Name, from, listener, lab.External+":80")
		go func() {
			var err error
			for !stop.Load() && err == nil {
				if err = errors.Join(carry(s.client, s.server, 100_000), carry(s.server, s.client, 100_000)); err == nil {
					carried[i].Add(1)
				}
			}
			failed <- err
		}()
	}
	advance := func() {
		t.Helper()
		for i := range carried {
			from := carried[i].Load()
			lab.Eventually(t, 2*lab.Patience, func() error {
				if now := carried[i].Load(); now < from+20 {
					return fmt.Errorf("transfer %d is at %d, was at %d", i, now, from)
				}
				return nil
			})
		}
	}
	for range 3 {
		advance()
		loseAll(t, hp)
	}
	advance()
	stop.Store(true)
	for range carried {
		if err := <-failed; err != nil {
			t.Error(err)
		}
	}
}
