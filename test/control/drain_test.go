// SPDX-License-Identifier: Apache-2.0

package control

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// refuses waits until nobody can connect to the external address any more.
func refuses(t *testing.T, from *lab.Host, port string) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		c, err := from.DialTCP(lab.External+":"+port, "", 300*time.Millisecond)
		if err != nil {
			return nil
		}
		c.Close()
		return fmt.Errorf("port %s answers", port)
	})
}

func awaitNames(t *testing.T, hp *lab.Hairpin, want string) {
	t.Helper()
	lab.Eventually(t, lab.Patience, func() error {
		if got := names(t, hp); got != want {
			return fmt.Errorf("forwards %q, want %q", got, want)
		}
		return nil
	})
}

// A forward that drains opens nothing. Its connections live until they end, whoever else changes what, with and without the daemon.
func TestDrain(t *testing.T) {
	for _, daemon := range []bool{true, false} {
		t.Run(fmt.Sprintf("daemon %v", daemon), func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.Server.ServeTCP(":8080")
			hp := home.Start(t, n, "tc", home.Forwards)
			internet, client := home.Waiting(t, n.Internet), home.Waiting(t, n.Client)
			if !daemon {
				hp.Kill()
			}
			said := hp.Fail(0, "forward", "del", "web", "--drain", "1h")
			if !strings.Contains(said, "web opens no connection any more") || strings.Contains(said, "ends ") {
				t.Errorf("said %q", said)
			}
			refuses(t, n.Internet, "80")
			refuses(t, n.Client, "80")
			if text := hp.Run("forward", "show"); !strings.Contains(text, "web (drains)") {
				t.Errorf("forward show:\n%s", text)
			}
			// The port is free for another forward, and files that lack the forward do not end its connections.
			hp.Run("forward", "add", "next", "tcp", "80", "to", lab.Server+":8080")
			hp.Write(home.Config("tc", strings.ReplaceAll(home.Forwards, `"web"`, `"other"`)))
			if said := hp.Fail(0, "apply"); !strings.Contains(said, "1 added, 1 removed, 0 changed, 1 unchanged") || strings.Contains(said, "ends ") {
				t.Errorf("said %q", said)
			}
			home.Waiting(t, n.Internet)
			for _, c := range []*lab.Conn{internet, client} {
				if err := c.Echo(10_000); err != nil {
					t.Errorf("a connection of the forward that drains: %v", err)
				}
			}
			awaitNames(t, hp, "other dns web")
			internet.Close()
			if err := client.Echo(10_000); err != nil {
				t.Errorf("the other connection of the forward that drains: %v", err)
			}
			awaitNames(t, hp, "other dns web")
			client.Close()
			// Closing connections count as connections, until both ends have had their time.
			hp.Run("conn", "flush", "forward", "web")
			awaitNames(t, hp, "other dns")
		})
	}
}

// When the time is over, the connections end, with the daemon, without it, and if the watcher is gone, too, by the next command.
func TestDrainEnds(t *testing.T) {
	for _, left := range []string{"daemon", "watcher", "command"} {
		t.Run("left is the "+left, func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.Server.ServeTCP(":8080")
			hp := home.Start(t, n, "tc", home.Forwards)
			c := home.Waiting(t, n.Internet)
			if left != "daemon" {
				hp.Kill()
			}
			hp.Run("forward", "del", "web", "--drain", "2s")
			if left != "watcher" {
				for _, pid := range watchers(t, hp) {
					if err := unix.Kill(pid, unix.SIGKILL); err != nil {
						t.Error(err)
					}
				}
			}
			if err := c.Echo(1000); err != nil {
				t.Errorf("within the time: %v", err)
			}
			if left == "command" {
				lab.Eventually(t, lab.Patience, func() error {
					r, err := hp.Try("forward", "disable", "dns")
					if err == nil && r.Code == 0 && names(t, hp) != "dns" {
						err = fmt.Errorf("forwards %q", names(t, hp))
						hp.Run("forward", "enable", "dns")
					}
					return err
				})
			} else {
				awaitNames(t, hp, "dns")
			}
			if err := c.EchoWithin(1000, 2*time.Second); err == nil {
				t.Error("the connection lives beyond the time")
			}
		})
	}
}

// A command says how many connections it ends, and ends no other.
func TestEndsConnections(t *testing.T) {
	n := lab.NewNetwork(t)
	n.Server.ServeTCP(":8080")
	hp := home.Start(t, n, "tc", home.Forwards)
	one, two := home.Waiting(t, n.Internet), home.Waiting(t, n.Client)
	both := []*lab.Conn{one, two}
	live := func(when string) {
		t.Helper()
		for _, c := range both {
			if err := c.Echo(1000); err != nil {
				t.Fatalf("%s: %v", when, err)
			}
		}
	}
	// Neither a comment nor a rate ends a connection.
	said := hp.Fail(0, "forward", "replace", "web", "tcp", "80", "to", lab.Server+":8080", "rate", "100/s", "comment", "the shop")
	if strings.Contains(said, "ends ") || !strings.Contains(said, "replaced web") {
		t.Errorf("a comment: said %q", said)
	}
	live("after a comment")
	if text := hp.Run("-v", "forward", "show"); !strings.Contains(text, "COMMENT") || !strings.Contains(text, "the shop") {
		t.Errorf("forward show -v:\n%s", text)
	}
	if said := hp.Fail(0, "forward", "replace", "web", "tcp", "80", "to", lab.Server+":8080", "comment", "the shop", "rate", "100/s"); !strings.Contains(said, "nothing to do") {
		t.Errorf("the same again: said %q", said)
	}
	if said := hp.Fail(3, "forward", "replace", "wbe", "tcp", "80", "to", lab.Server); !strings.Contains(said, `did you mean "web"`) {
		t.Errorf("a missing forward: said %q", said)
	}
	if said := hp.Fail(1, "forward", "replace", "dns", "tcp", "80", "to", lab.Server); !strings.Contains(said, `is taken by forward "web"`) {
		t.Errorf("a taken port: said %q", said)
	}

	const ends = "ends 2 connections of forward web"
	hp.Write(home.Config("tc", strings.ReplaceAll(home.Forwards, "8080", "8081")))
	if said := hp.Fail(3, "diff"); !strings.Contains(said, ends) {
		t.Errorf("diff: said %q", said)
	}
	var document struct {
		Diff struct {
			Ends    map[string]int
			Changed []string
		}
	}
	r, err := hp.Try("-j", "diff")
	if err != nil || json.Unmarshal([]byte(r.Stdout), &document) != nil || document.Diff.Ends["web"] != 2 || len(document.Diff.Ends) != 1 {
		t.Errorf("diff -j: %+v, %v", r, err)
	}
	live("after diff")
	if said := hp.Fail(0, "apply"); !strings.Contains(said, ends) {
		t.Errorf("apply: said %q", said)
	}
	for _, c := range both {
		if err := c.EchoWithin(1000, 2*time.Second); err == nil {
			t.Error("a connection lives beyond the change of its target")
		}
	}

	hp.Run("forward", "replace", "web", "tcp", "80", "to", lab.Server+":8080")
	home.Waiting(t, n.Internet)
	if said := hp.Fail(0, "forward", "disable", "web"); !strings.Contains(said, "ends 1 connection of forward web") || !strings.Contains(said, "disabled web") {
		t.Errorf("disable: said %q", said)
	}
	refuses(t, n.Internet, "80")
	// A disabled forward stays in the list, and its port is free.
	if text := hp.Run("forward", "show"); !strings.Contains(text, "web (disabled)") {
		t.Errorf("forward show:\n%s", text)
	}
	hp.Run("forward", "add", "web2", "tcp", "80", "to", lab.Server+":8080")
	if said := hp.Fail(1, "forward", "enable", "web"); !strings.Contains(said, `80 is taken by forward "web2"`) {
		t.Errorf("enable with a taken port: said %q", said)
	}
	if said := hp.Fail(1, "forward", "add", "web", "tcp", "81", "to", lab.Server); !strings.Contains(said, "is disabled; use") {
		t.Errorf("add with the name of a disabled forward: said %q", said)
	}
	hp.Run("forward", "del", "web2")
	hp.Run("forward", "enable", "web")
	home.Waiting(t, n.Internet)
	if said := hp.Fail(0, "forward", "enable", "web"); !strings.Contains(said, "nothing to do") {
		t.Errorf("enable again: said %q", said)
	}
	var deleted struct {
		Del struct {
			Ends map[string]int
		}
	}
	// Connections that end take a moment to go, so the number is at least that of the live one.
	if err := json.Unmarshal([]byte(hp.Run("-j", "forward", "del", "web")), &deleted); err != nil || deleted.Del.Ends["web"] < 1 {
		t.Errorf("del -j: %+v, %v", deleted, err)
	}
}

// save writes disabled forwards and comments, and the file gives them back.
func TestSaveKeepsDisabledForwards(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	hp.Run("forward", "add", "shop", "tcp", "81", "to", lab.Server, "comment", "closed in winter")
	hp.Run("forward", "disable", "shop")
	hp.Run("save")
	if r, err := hp.Try("diff"); err != nil || r.Code != 0 {
		t.Errorf("diff after save: %+v, %v", r, err)
	}
	hp.Run("reload")
	var document struct {
		Forwards []struct {
			Name, Comment string
			Enabled       bool
		}
	}
	if err := json.Unmarshal([]byte(hp.Run("-j", "forward", "show", "shop")), &document); err != nil || len(document.Forwards) != 1 ||
		document.Forwards[0].Enabled || document.Forwards[0].Comment != "closed in winter" {
		t.Errorf("%+v, %v", document, err)
	}
	hp.Run("forward", "enable", "shop")
	if r, err := hp.Try("diff"); err != nil || r.Code != 3 || !strings.Contains(r.Stdout, "+ forward shop tcp 81 to "+lab.Server+":81 comment \"closed in winter\" (disabled)") {
		t.Errorf("diff: %+v, %v", r, err)
	}
	hp.Run("forward", "del", "shop")
	hp.Run("save")
}
