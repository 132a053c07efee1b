// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// countedForwards are a forward that takes LAN clients only, and one for everybody.
const countedForwards = `
[[forward]]
name = "closed"
protocol = ["udp"]
port = "53"
to = "192.168.1.20:5353"
from = ["192.168.0.0/16"]

[[forward]]
name = "open"
protocol = ["udp"]
port = "54"
to = "192.168.1.20:5353"
`

// drops returns the packets in the status by "verdict reason".
func drops(t *testing.T, hp *lab.Hairpin) map[string]int {
	t.Helper()
	var document struct {
		Status struct {
			Drops []struct {
				Verdict, Reason string
				Packets         int
			}
		}
	}
	out := hp.Run("-j", "status")
	if err := json.Unmarshal([]byte(out), &document); err != nil || document.Status.Drops == nil {
		t.Fatalf("%v\n%s", err, out)
	}
	found := map[string]int{}
	for _, d := range document.Status.Drops {
		found[d.Verdict+" "+d.Reason] += d.Packets
	}
	return found
}

func datagrams(t *testing.T, c *net.UDPConn, count int) {
	t.Helper()
	for range count {
		if _, err := c.Write([]byte("?")); err != nil {
			t.Fatal(err)
		}
	}
}

// TestRefusedAndLastHit: a forward shows how many openings it has refused and when a packet reached it last, and the status shows drops
// and refusals by reason.
func TestRefusedAndLastHit(t *testing.T) {
	for _, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(home.OffloadsFor(mode))
			n.Server.ServeUDP(":5353")
			hp := home.Start(t, n, mode, countedForwards)
			for _, name := range []string{"closed", "open"} {
				if f := home.ForwardNamed(t, hp, name); f.Refused != 0 || f.LastHit != nil {
					t.Errorf("%s without traffic: %d refused, last hit %v", name, f.Refused, f.LastHit)
				}
			}
			if out := hp.Run("status"); !strings.Contains(out, "refused:     (none)") {
				t.Errorf("the status without refusals:\n%s", out)
			}

			refused, err := n.Internet.DialUDP(lab.External+":53", "")
			if err != nil {
				t.Fatal(err)
			}
			defer refused.Close()
			const openings = 5
			// Each datagram is answered by an ICMP error, which the next write returns.
			sent := 0
			for sent < openings {
				if _, err := refused.Write([]byte("?")); err == nil {
					sent++
				}
			}
			lab.Eventually(t, lab.Patience, func() error {
				if f := home.ForwardNamed(t, hp, "closed"); f.Refused != openings {
					return fmt.Errorf("%d openings are refused, want %d", f.Refused, openings)
				}
				return nil
			})
			f := home.ForwardNamed(t, hp, "closed")
			if f.LastHit == nil || *f.LastHit > int64(lab.Patience.Seconds()) || f.Packets != 0 {
				t.Errorf("after refusals: last hit %v, %d packets", f.LastHit, f.Packets)
			}
			if got := drops(t, hp)["refuse not_allowed"]; got != openings {
				t.Errorf("the status has %d refusals, want %d", got, openings)
			}
			if out := hp.Run("status"); !strings.Contains(out, "refused:     5: not_allowed 5\n") {
				t.Errorf("the status:\n%s", out)
			}

			if f := home.ForwardNamed(t, hp, "open"); f.Refused != 0 || f.LastHit != nil {
				t.Errorf("the other forward: %d refused, last hit %v", f.Refused, f.LastHit)
			}
			served, err := n.Client.DialUDP(lab.External+":54", "")
			if err != nil {
				t.Fatal(err)
			}
			defer served.Close()
			if _, err := lab.Exchange(served, 10, 100); err != nil {
				t.Fatal(err)
			}
			if f := home.ForwardNamed(t, hp, "open"); f.Refused != 0 || f.LastHit == nil || *f.LastHit > int64(lab.Patience.Seconds()) || f.Packets < 20 {
				t.Errorf("after an exchange: %d refused, last hit %v, %d packets", f.Refused, f.LastHit, f.Packets)
			}

			expired, err := n.Internet.DialUDP(lab.External+":54", "")
			if err != nil {
				t.Fatal(err)
			}
			defer expired.Close()
			raw, err := expired.SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			if err := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TTL, 1) }); err != nil {
				t.Fatal(err)
			}
			datagrams(t, expired, 1)
			lab.Eventually(t, lab.Patience, func() error {
				if got := drops(t, hp)["drop ttl_expired"]; got != 1 {
					return fmt.Errorf("%d packets are dropped for their TTL, want 1", got)
				}
				return nil
			})

			table := strings.Split(hp.Run("forward", "show", "--sort", "refused"), "\n")
			if len(table) < 3 || !strings.HasSuffix(table[0], "REFUSED  LAST HIT") || !strings.HasPrefix(table[1], "closed") || !strings.HasPrefix(table[2], "open") {
				t.Errorf("sorted by refusals:\n%s", strings.Join(table, "\n"))
			}
			if words := strings.Fields(table[1]); len(words) < 2 || words[len(words)-2] != "5" {
				t.Errorf("the row of the forward that refuses: %q", table[1])
			}
		})
	}
}

// TestExternalAddresses: EXTERNAL has the addresses on which a forward listens now, also after they have changed.
func TestExternalAddresses(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	listens := func(cell string, want ...string) {
		t.Helper()
		lab.Eventually(t, lab.Patience, func() error {
			if f := home.ForwardNamed(t, hp, "web"); !slices.Equal(f.Listens, want) || f.External != "" {
				return fmt.Errorf("the forward listens on %q, external %q; want %q", f.Listens, f.External, want)
			}
			if out := hp.Run("forward", "show", "web"); !strings.Contains(out, "  "+cell+"  ") {
				return fmt.Errorf("no %q in\n%s", cell, out)
			}
			return nil
		})
	}
	listens(lab.External+" (wan0)", lab.External)
	n.Router.Address("wan0", "203.0.113.77/24")
	listens(lab.External+", 203.0.113.77 (wan0)", lab.External, "203.0.113.77")
	n.Router.Unaddress("wan0", "203.0.113.77/24")
	listens(lab.External+" (wan0)", lab.External)
	hp.Run("forward", "add", "six", "tcp", "80", "to", "[fd00:1::20]:80")
	if f := home.ForwardNamed(t, hp, "six"); f.Listens == nil || len(f.Listens) != 0 {
		t.Errorf("a forward of the other family listens on %q", f.Listens)
	}
	if out := hp.Run("forward", "show", "six"); !strings.Contains(out, "any (no address)") {
		t.Errorf("shown is\n%s", out)
	}
}

// TestEmptyLists: people read "(none)" instead of an empty list, and programs read an empty list.
func TestEmptyLists(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, "version = 1\n")
	hp.Run("attach")
	for words, document := range map[string]string{
		"forward show": `{"schema":1,"forwards":[]}`, "conn show": `{"schema":1,"connections":[]}`, "deny show": `{"schema":1,"denied":[]}`,
		"conn show --sort bytes -r": "", "forward show --sort name -r": "", "conn show not path wan": `{"schema":1,"connections":[]}`,
	} {
		if out := hp.Run(strings.Fields(words)...); out != "(none)\n" {
			t.Errorf("%s: %q", words, out)
		}
		if out := hp.Run(append([]string{"--color", "always"}, strings.Fields(words)...)...); !strings.Contains(out, "(none)") || !strings.Contains(out, "\x1b[") {
			t.Errorf("%s with colors: %q", words, out)
		}
		if document == "" {
			continue
		}
		if out := hp.Run(append([]string{"--color", "always", "-j"}, strings.Fields(words)...)...); strings.TrimSpace(out) != document {
			t.Errorf("%s in JSON: %q", words, out)
		}
	}
	if out := hp.Run("status"); !strings.Contains(out, "dropped:     (none)\n") || !strings.Contains(out, "interfaces:  (none)\n") {
		t.Errorf("the status:\n%s", out)
	}
	if r, err := hp.Try("forward", "show", "web"); err != nil || r.Code != 3 || r.Stdout != "" {
		t.Errorf("a forward that is not there: %+v, %v", r, err)
	}
	if r, err := hp.Try("conn", "show", "not", "forward", "web"); err != nil || r.Code != 3 || r.Stdout != "" {
		t.Errorf("connections of any but a forward that is not there: %+v, %v", r, err)
	}
}

// TestColorOfDiff: what is removed is red and what is added is green, if the user wants colors.
func TestColorOfDiff(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := lab.NewHairpin(n.Router, home.Config("tc", home.Forwards))
	hp.Run("attach")
	hp.Write(home.Config("tc", strings.ReplaceAll(home.Forwards, `"80"`, `"81"`)))
	plain, colored := diffOutput(t, hp, "auto"), diffOutput(t, hp, "always")
	for _, want := range []string{"\x1b[31m- forward web ", "\x1b[32m+ forward web "} {
		if !strings.Contains(colored, want) || strings.Contains(plain, "\x1b") {
			t.Errorf("the differences, want %q with colors only:\n%q\n%q", want, plain, colored)
		}
	}
}

func diffOutput(t *testing.T, hp *lab.Hairpin, color string) string {
	t.Helper()
	r, err := hp.Try("--color", color, "diff")
	if err != nil || r.Code != 3 {
		t.Fatalf("diff: %+v, %v", r, err)
	}
	return r.Stdout
}
