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
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { response.Body.Close() })
	return response
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
