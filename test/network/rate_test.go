// SPDX-License-Identifier: Apache-2.0

package network

import (
	"fmt"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// TestRatesHold: a forward opens as many connections as its rate says. Those that are there go on, and a change of the rate is in force
// at once; what is saved has the rates.
func TestRatesHold(t *testing.T) {
	for _, mode := range []string{"tc", "xdp"} {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork6(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeTCP(":8080")
			n.Server.ServeTCP("[::]:8080")
			rated := func(words string) string {
				forwards := home.Forwards + home.Forwards6
				return strings.ReplaceAll(forwards, "port = \"80\"\n", "port = \"80\"\n"+words+"\n")
			}
			hp := home.Start(t, n, mode, rated("rate = \"6/h\"\nrate_per_source = \"3/h\""))
			for _, family := range [][]client{clients(n)[:2], clients(n)[2:]} {
				internet, lan := family[0], family[1]
				waiting := home.WaitingAt(t, internet.host, internet.external)
				internet.isServed(t, "second")
				internet.isServed(t, "third")
				internet.isRefused(t, "fourth of one client")
				for range 3 {
					lan.isServed(t, "another client")
				}
				guest := client{name: "guest", host: n.Guest, external: internet.external}
				guest.isRefused(t, "more than all clients together may")
				if err := waiting.Echo(100); err != nil {
					t.Errorf("%s: a connection that was there: %v", internet.name, err)
				}
			}
			for _, reason := range []string{"rate", "source_rate"} {
				if home.Scrape(t, n, "hairpin_packets_dropped_total", fmt.Sprintf("reason=%q", reason)) == 0 {
					t.Errorf("nothing is counted as %s", reason)
				}
			}
			waiting := []*lab.Conn{}
			hp.Write(home.Config(mode, rated("rate = \"1000/s\"")))
			hp.Reload()
			for _, c := range clients(n) {
				waiting = append(waiting, home.WaitingAt(t, c.host, c.external))
			}
			hp.Write(home.Config(mode, rated("rate_per_source = \"1/h\"")))
			hp.Reload()
			for _, c := range waiting {
				if err := c.Echo(100); err != nil {
					t.Errorf("a connection ended by a change of the rate: %v", err)
				}
			}
		})
	}
}

// TestRatesOnTheCommandLine: what is added has its rates at once, is shown and saved with them.
func TestRatesOnTheCommandLine(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	hp := home.Start(t, n, "tc", "")
	hp.Run("forward", "add", "web", "tcp", "80", "to", lab.Server+":8080", "rate", "2/h", "rate_per_source", "1/h")
	all := clients(n)
	all[0].isServed(t, "first")
	all[0].isRefused(t, "second of one client")
	all[1].isServed(t, "first of another")
	if out := hp.Run("forward", "show"); !strings.Contains(out, "2/h, 1/h each") {
		t.Errorf("shown is\n%s", out)
	}
	if out := hp.Run("--json", "forward", "show"); !strings.Contains(out, `"rate":"2/h","rate_per_source":"1/h"`) {
		t.Errorf("shown is\n%s", out)
	}
	hp.Run("save")
	hp.Reload()
	if out := hp.Run("forward", "show"); !strings.Contains(out, "2/h, 1/h each") {
		t.Errorf("after a reload:\n%s", out)
	}
	all[0].isRefused(t, "after a reload")
}
