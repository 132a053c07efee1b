// SPDX-License-Identifier: Apache-2.0

package control

import (
	"net"
	"net/http"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// scrapedBytes go over each connection whose traffic is looked for in the metrics.
const scrapedBytes = 20_000_000

// TestMetrics: what is scraped is what happened. In mode xdp, with finished checksums and devices
// that take XDP frames, it is XDP that does the work and only the first packets are left to TC.
func TestMetrics(t *testing.T) {
	n := lab.NewNetwork(t)
	n.SetOffloads(lab.AllOffGRO)
	n.Server.ServeTCP(":8080")
	home.Start(t, n, "xdp", home.Forwards)
	for _, path := range []string{"/-/healthy", "/-/ready"} {
		if response := home.Get(t, n, path); response.StatusCode != http.StatusOK {
			t.Errorf("%s: %s", path, response.Status)
		}
	}
	for _, w := range []*lab.Host{n.Internet, n.Client} {
		c, err := w.For(t).DialTCP(lab.External+":80", "", lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if err := c.Upload(scrapedBytes); err != nil {
			t.Fatal(err)
		}
	}
	for path, hosts := range map[string]float64{"wan": 1, "hairpin": 1, "local": 0} {
		got := home.Scrape(t, n, "hairpin_forward_connections_total", `forward="web"`, `path="`+path+`"`)
		if got != hosts {
			t.Errorf("%v connections by path %s, want %v", got, path, hosts)
		}
	}
	if got := home.Scrape(t, n, "hairpin_connections", `state="established"`); got != 2 {
		t.Errorf("%v connections established, want 2", got)
	}
	if got := home.Scrape(t, n, "hairpin_forward_bytes_total", `forward="web"`); got < 2*scrapedBytes {
		t.Errorf("%v bytes, less than was sent", got)
	}
	sent := home.Scrape(t, n, "hairpin_forward_packets_total", `forward="web"`)
	left := home.Scrape(t, n, "hairpin_packets_passed_total", `reason=`)
	t.Logf("%v packets sent on, %v of them left to TC by XDP", sent, left)
	if left > sent/10 {
		t.Errorf("XDP left %v of %v packets to TC", left, sent)
	}
	if got := home.Scrape(t, n, "hairpin_interface_attached"); got != 4 {
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
	hp := home.Start(t, n, "tc", home.Forwards)
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
		_, err := home.TryGet(t, n, "/-/ready")
		return err
	})
	if got := home.Scrape(t, n, "hairpin_config_last_reload_successful"); got != 1 {
		t.Errorf("hairpin_config_last_reload_successful is %v, want 1", got)
	}
	if got := home.Scrape(t, n, "hairpin_connections", `state="established"`); got != 1 {
		t.Errorf("%v connections established, want 1", got)
	}
}
