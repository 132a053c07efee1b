// SPDX-License-Identifier: Apache-2.0

package test

import (
	"bufio"
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"hairpin/test/lab"
)

// get asks the metrics server from inside the router, where alone it listens.
func get(t *testing.T, n *lab.Network, path string) *http.Response {
	t.Helper()
	response, err := tryGet(t, n, path)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

func tryGet(t *testing.T, n *lab.Network, path string) (*http.Response, error) {
	client := http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(_ context.Context, network, address string) (conn net.Conn, err error) {
			err = n.Router.Do(func() (err error) {
				conn, err = net.Dial(network, address)
				return err
			})
			return conn, err
		},
	}}
	response, err := client.Get("http://127.0.0.1:9845" + path)
	if err == nil {
		t.Cleanup(func() { response.Body.Close() })
	}
	return response, err
}

// scrape gives the sum of all samples of a metric whose labels include the given ones.
func scrape(t *testing.T, n *lab.Network, metric string, labels ...string) (total float64) {
	t.Helper()
	found := false
	lines := bufio.NewScanner(get(t, n, "/metrics").Body)
next:
	for lines.Scan() {
		name, value, _ := strings.Cut(lines.Text(), " ")
		if name != metric && !strings.HasPrefix(name, metric+"{") {
			continue
		}
		for _, label := range labels {
			if !strings.Contains(name, label) {
				continue next
			}
		}
		sample, err := strconv.ParseFloat(value, 64)
		if err != nil {
			t.Fatalf("%s: %v", lines.Text(), err)
		}
		total, found = total+sample, true
	}
	if !found && len(labels) == 0 {
		t.Fatalf("no metric %s", metric)
	}
	return total
}

// TestMetrics: what is scraped is what happened. In mode xdp, with finished checksums and devices
// that take XDP frames, it is XDP that does the work and only the first packets are left to TC.
func TestMetrics(t *testing.T) {
	n := lab.NewNetwork(t)
	n.SetOffloads(lab.AllOffGRO)
	n.Server.ServeTCP(":8080")
	start(t, n, "xdp", forwards)
	for _, path := range []string{"/-/healthy", "/-/ready"} {
		if response := get(t, n, path); response.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
	for _, w := range []*lab.Host{n.Internet, n.Client} {
		c, err := w.For(t).DialTCP(lab.External+":80", "", lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Upload(transferBytes / 10); err != nil {
			t.Fatal(err)
		}
	}
	for path, hosts := range map[string]float64{"wan": 1, "hairpin": 1, "local": 0} {
		got := scrape(t, n, "hairpin_forward_connections_total", `forward="web"`, `path="`+path+`"`)
		if got != hosts {
			t.Errorf("%v connections by path %s, want %v", got, path, hosts)
		}
	}
	if got := scrape(t, n, "hairpin_connections", `state="established"`); got != 2 {
		t.Errorf("%v connections established, want 2", got)
	}
	if got := scrape(t, n, "hairpin_forward_bytes_total", `forward="web"`); got < 2*transferBytes/10 {
		t.Errorf("%v bytes, less than was sent", got)
	}
	sent := scrape(t, n, "hairpin_forward_packets_total", `forward="web"`)
	left := scrape(t, n, "hairpin_packets_passed_total", `reason=`)
	t.Logf("%v packets sent on, %v of them left to TC by XDP", sent, left)
	if left > sent/10 {
		t.Errorf("XDP left %v of %v packets to TC", left, sent)
	}
	if got := scrape(t, n, "hairpin_interface_attached"); got != 4 {
		t.Errorf("%v interfaces attached, want 3 and the loopback device", got)
	}
}

// TestMetricsPortInUse: hairpin forwards though another program has the port of its metrics, says so, and serves them
// once the port is free.
func TestMetricsPortInUse(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	var holder net.Listener
	if err := n.Router.Do(func() (err error) {
		holder, err = net.Listen("tcp", "127.0.0.1:9845")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	hp := start(t, n, "tc", forwards)
	c, err := n.Internet.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Echo(100); err != nil {
		t.Fatal(err)
	}
	hp.Reload()
	if log := hp.Log(); strings.Count(log, "127.0.0.1:9845: bind: address already in use") != 1 || strings.Contains(log, "level=ERROR") {
		t.Errorf("the log, want the address and the cause once:\n%s", log)
	}

	holder.Close()
	lab.Eventually(t, lab.Patience, func() error {
		_, err := tryGet(t, n, "/-/ready")
		return err
	})
	if got := scrape(t, n, "hairpin_config_last_reload_successful"); got != 1 {
		t.Errorf("hairpin_config_last_reload_successful is %v, want 1", got)
	}
	if got := scrape(t, n, "hairpin_connections", `state="established"`); got != 1 {
		t.Errorf("%v connections established, want 1", got)
	}
}
