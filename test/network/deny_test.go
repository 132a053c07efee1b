// SPDX-License-Identifier: Apache-2.0

package network

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// client is a host that asks for the web server, and the source that the router sees.
type client struct {
	name     string
	host     *lab.Host
	source   string
	network  string // of the source, without the router's addresses
	external string
}

func clients(n *lab.Network) []client {
	return []client{
		{"Internet", n.Internet, lab.InternetSource, "198.51.100.0/24", lab.External},
		{"LAN", n.Client, lab.Client, "192.168.1.48/29", lab.External},
		{"Internet, IPv6", n.Internet, lab.InternetSource6, "2001:db8:9::/48", "[" + lab.External6 + "]"},
		{"LAN, IPv6", n.Client, lab.Client6, "fd00:1::50/127", "[" + lab.External6 + "]"},
	}
}

// asks opens a connection to the web server.
func (c client) asks(patience time.Duration) error {
	conn, err := c.host.DialTCP(c.external+":80", "", patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Echo(100)
}

// silence is how long nobody has to answer where nobody should.
const silence = 400 * time.Millisecond

// isRefused wants a client to get no connection: by silence or by an error.
func (c client) isRefused(t *testing.T, when string) {
	t.Helper()
	if err := c.asks(silence); !isTimeout(err) && !errors.Is(err, syscall.EHOSTUNREACH) {
		t.Errorf("%s, %s: %v, want no connection", c.name, when, err)
	}
}

func (c client) isServed(t *testing.T, when string) {
	t.Helper()
	if err := c.asks(lab.Patience); err != nil {
		t.Errorf("%s, %s: %v", c.name, when, err)
	}
}

// TestDenied: a denied source opens nothing, and its connections end at once. Nobody else notices.
func TestDenied(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"tc", "xdp"} {
		n := lab.NewNetwork6(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		n.Server.ServeTCP("[::]:8080")
		hp := home.Start(t, n, mode, home.Forwards+home.Forwards6)
		for i, c := range clients(n) {
			other := clients(n)[(i+1)%4]
			for _, source := range []string{c.source, c.network} {
				t.Run(mode+", "+c.name+", "+source, func(t *testing.T) {
					waiting, unconcerned := home.WaitingAt(t, c.host, c.external), home.WaitingAt(t, other.host, other.external)
					hp := hp.For(t)
					hp.Run("deny", "add", source)
					hears(t, waiting)
					c.isRefused(t, "denied")
					other.isServed(t, "not denied")
					if err := unconcerned.Echo(100); err != nil {
						t.Errorf("the connection of %s: %v", other.name, err)
					}
					if got := home.Scrape(t, n, "hairpin_packets_dropped_total", `reason="denied"`); got == 0 {
						t.Error("nothing is counted as denied")
					}
					hp.Run("deny", "del", source)
					c.isServed(t, "no longer denied")
				})
			}
		}
	}
}

// denied are the rows of `deny show`.
func denied(t *testing.T, hp *lab.Hairpin) map[string]bool {
	t.Helper()
	var d struct {
		Denied []struct {
			Source     string
			Configured bool
		}
	}
	if err := json.Unmarshal([]byte(hp.Run("--json", "deny", "show")), &d); err != nil {
		t.Fatal(err)
	}
	rows := map[string]bool{}
	for _, row := range d.Denied {
		rows[row.Source] = row.Configured
	}
	return rows
}

// TestDenialEndsByItself: at its time, whether a daemon runs or not. A shorter time within a network that is denied
// for longer changes nothing.
func TestDenialEndsByItself(t *testing.T) {
	t.Parallel()
	n := lab.NewNetwork6(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeTCP("[::]:8080")
	hp := home.Start(t, n, "tc", home.Forwards+home.Forwards6)
	hp.Kill()
	for _, c := range clients(n) {
		before := time.Now()
		hp.Run("deny", "add", c.source, "5")
		lab.Eventually(t, 5*time.Second+lab.Patience, func() error { return c.asks(silence) })
		if took := time.Since(before); took < 5*time.Second {
			t.Errorf("%s is served after %s", c.name, took)
		}
	}
	if rows := denied(t, hp); len(rows) > 0 {
		t.Errorf("shown although their time is over: %v", rows)
	}
	for _, c := range clients(n) {
		hp.Run("deny", "add", c.network, "1h")
		inner := strings.SplitN(c.network, "/", 2)[0] + "/" + map[bool]string{true: "128", false: "31"}[strings.Contains(c.network, ":")]
		if strings.Contains(c.network, "198.51.100") {
			inner = "198.51.100.8/29"
		}
		hp.Run("deny", "add", inner, "1s")
	}
	lab.Eventually(t, 10*time.Second, func() error {
		if rows := denied(t, hp); len(rows) != len(clients(n)) {
			return fmt.Errorf("denied are %v", rows)
		}
		return nil
	})
	for _, c := range clients(n) {
		c.isRefused(t, "in a network that is denied for longer")
	}
}

// TestDeniedByTheFile: what the file denies and what commands deny are kept apart, over reloads, a restart and an upgrade.
func TestDeniedByTheFile(t *testing.T) {
	const file = "[deny]\nsources = [\"" + lab.InternetSource + "\", \"2001:db8:9::/48\"]\n"
	n := lab.NewNetwork6(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeTCP("[::]:8080")
	forwards := home.Forwards + home.Forwards6
	hp := home.Start(t, n, "tc", forwards)
	all := clients(n)
	waiting, waiting6 := home.WaitingAt(t, n.Internet, lab.External), home.WaitingAt(t, n.Internet, "["+lab.External6+"]")
	hp.Run("deny", "add", lab.Client)
	hp.Write(home.Config("tc", file+forwards))
	if said := hp.Fail(3, "diff"); said != "" {
		t.Errorf("diff says %s", said)
	}
	hp.Reload()
	hears(t, waiting)
	hears(t, waiting6)
	want := map[string]bool{lab.InternetSource: true, "2001:db8:9::/48": true, lab.Client: false}
	check := func(when string) {
		t.Helper()
		if rows := denied(t, hp); fmt.Sprint(rows) != fmt.Sprint(want) {
			t.Errorf("%s: denied are %v, want %v", when, rows, want)
		}
		for i, is := range []bool{true, true, true, false} {
			if is {
				all[i].isRefused(t, when)
			} else {
				all[i].isServed(t, when)
			}
		}
	}
	check("after a reload")
	hp.Kill()
	hp.Start()
	check("after a restart")
	hp.Run("upgrade")
	check("after an upgrade")
	if said := hp.Fail(1, "deny", "del", lab.InternetSource); !strings.Contains(said, "denied by the configuration: remove it from deny.sources in "+hp.File) {
		t.Errorf("del says %s", said)
	}
	check("after a refusal")
	hp.Run("deny", "add", lab.InternetSource)
	hp.Write(home.Config("tc", forwards))
	hp.Reload()
	want = map[string]bool{lab.InternetSource: false, lab.Client: false}
	if rows := denied(t, hp); fmt.Sprint(rows) != fmt.Sprint(want) {
		t.Errorf("without the key: denied are %v, want %v", rows, want)
	}
	all[0].isRefused(t, "denied by a command, too")
	all[2].isServed(t, "in the file no longer")
	hp.Run("deny", "del", lab.InternetSource)
	all[0].isServed(t, "deleted")
	hp.Fail(3, "deny", "del", lab.InternetSource)
}

// TestDenyAsks: what is most likely a mistake wants --yes.
func TestDenyAsks(t *testing.T) {
	n := lab.NewNetwork6(t)
	hp := home.Start(t, n, "tc", home.Forwards)
	for source, why := range map[string]string{
		"0.0.0.0/0": "every IPv4 address", "::/0": "every IPv6 address", lab.RouterLAN: "contains this router's address", "192.168.1.0/24": "192.168.1.0/24 contains this router's address " + lab.RouterLAN + " (lan0)",
		lab.External: "this router's address", "127.0.0.0/8": "(lo)", lab.RouterLAN6: "this router's address", "fd00:1::/64": "this router's address",
	} {
		if said := hp.Fail(1, "deny", "add", source, "10m"); !strings.Contains(said, why) || !strings.Contains(said, "--yes") {
			t.Errorf("%s: %s\nlacks %q", source, said, why)
		}
		hp.Run("deny", "add", "--yes", source, "10m")
	}
	if rows := denied(t, hp); len(rows) != 8 {
		t.Errorf("denied are %v", rows)
	}
	hp.Write(home.Config("tc", "[deny]\nsources = [\""+lab.RouterLAN+"\"]\n"+home.Forwards))
	const warning = "warning: deny.sources: 192.168.1.1 contains this router's address 192.168.1.1 (lan0)"
	for _, command := range []string{"check", "apply", "status"} {
		r, err := hp.Try(command)
		if err != nil || r.Code != 0 || !strings.Contains(r.Stdout+r.Stderr, warning) {
			t.Errorf("%s: code %d, %v\n%s%s\nlacks %q", command, r.Code, err, r.Stdout, r.Stderr, warning)
		}
	}
}

// TestDenyTwice: a source that is named twice counts once, and what is not denied is an error only without --if-denied.
func TestDenyTwice(t *testing.T) {
	n := lab.NewNetwork(t)
	hp := home.Start(t, n, "tc", "[deny]\nsources = [\"192.0.2.1\"]\n"+home.Forwards)
	try := func(input string, code int, want string, args ...string) {
		t.Helper()
		r := hp.TryInput(input, args...)
		if r.Code != code || !strings.Contains(r.Stdout+r.Stderr, want) || want == "" && r.Stdout+r.Stderr != "" {
			t.Errorf("%q: code %d, want %d\n%s%s\nlacks %q", args, r.Code, code, r.Stdout, r.Stderr, want)
		}
	}
	try("198.51.100.7\n198.51.100.8\n198.51.100.7 1h\n", 0, "denied 2 sources", "deny", "add", "-")
	try("", 0, `"source":"198.51.100.7","configured":false,"asked":true,"left_seconds":3`, "--json", "deny", "show")
	try("198.51.100.7\n198.51.100.7 2h\n", 0, "denied 198.51.100.7 for 2h0m0s", "deny", "add", "-")
	try("# nobody\n\n", 0, "warning: <stdin> lists no source", "deny", "add", "-")
	try("", 0, "198.51.100.7 is denied no longer\n198.51.100.8 is denied no longer\n", "deny", "del", "198.51.100.7", "198.51.100.7", "198.51.100.8", "198.51.100.7")
	try("", 3, "198.51.100.7", "deny", "del", "198.51.100.7", "198.51.100.7")
	try("", 1, "denied by the configuration", "deny", "del", "192.0.2.1")
	try("", 0, "", "deny", "del", "--if-denied", "198.51.100.7", "192.0.2.1")
	try("", 0, `"removed":0`, "--json", "deny", "del", "--if-denied", "198.51.100.7", "192.0.2.1")
	hp.Run("deny", "add", "192.0.2.1", "1h")
	try("", 0, "192.0.2.1 stays denied by the configuration", "deny", "del", "--if-denied", "192.0.2.1")
	if rows := denied(t, hp); len(rows) != 1 || !rows["192.0.2.1"] {
		t.Errorf("denied are %v", rows)
	}
}

// TestDenyMany: a list of 100,000 addresses is taken at once, the table grows, and every one of it is denied.
func TestDenyMany(t *testing.T) {
	const count = 100_000
	n := lab.NewNetwork6(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeTCP("[::]:8080")
	hp := home.Start(t, n, "tc", home.Forwards+home.Forwards6)
	all := clients(n)
	waiting := home.WaitingAt(t, n.Internet, lab.External)
	var list strings.Builder
	list.WriteString("# a list\n\n")
	for i := range count {
		fmt.Fprintf(&list, "10.%d.%d.%d 1h # one\n", i>>16, i>>8&255, i&255)
	}
	hp.Run("deny", "add", "10.255.255.1")
	began := time.Now()
	hp.RunInput(list.String(), "deny", "add", "-")
	t.Logf("%d addresses in %s", count, time.Since(began))
	if err := waiting.Echo(100); err != nil {
		t.Errorf("a connection of nobody on the list: %v", err)
	}
	all[0].isServed(t, "not on the list")
	began = time.Now()
	hp.Run("deny", "add", lab.InternetSource, "10m")
	t.Logf("one more in %s", time.Since(began))
	hears(t, waiting)
	all[0].isRefused(t, "one more")
	if rows := denied(t, hp); len(rows) != count+2 {
		t.Errorf("%d sources are denied, want %d", len(rows), count+2)
	}
	if said := hp.Fail(1, "--wait", "0s", "deny", "add", "-", "10m"); !strings.Contains(said, "after -") {
		t.Errorf("says %s", said)
	}
}

// hairpinOnPath makes a directory with a program "hairpin" that is this one with its options.
func hairpinOnPath(t *testing.T, hp *lab.Hairpin) string {
	t.Helper()
	dir := t.TempDir()
	script := fmt.Sprintf("#!/bin/sh\nexec %s -c %s --bpffs %s \"$@\"\n", lab.Binary(t), hp.File, hp.Dir)
	if err := os.WriteFile(filepath.Join(dir, "hairpin"), []byte(script), fs.FileMode(0o755)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestFail2banBans: fail2ban bans who fails at the server's log, and lets them in again.
func TestFail2banBans(t *testing.T) {
	t.Parallel()
	n := lab.NewNetwork6(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeTCP("[::]:8080")
	hp := home.Start(t, n, "tc", home.Forwards+home.Forwards6)
	dir := t.TempDir()
	action, err := os.ReadFile("../../cmd/hairpin/dist/fail2ban/action.d/hairpin.conf")
	lab.Must(err)
	log := filepath.Join(dir, "auth.log")
	for name, text := range map[string]string{
		"fail2ban.conf": "[Definition]\nloglevel = INFO\nlogtarget = STDERR\nsyslogsocket = auto\nsocket = " + dir + "/socket\npidfile = " + dir + "/pid\n" +
			"dbfile = None\ndbpurgeage = 1d\n",
		"jail.conf": "[INCLUDES]\n[DEFAULT]\n[web]\nenabled = true\nbackend = polling\nfilter = web\nlogpath = " + log +
			"\nmaxretry = 2\nfindtime = 1h\nbantime = 1h\naction = hairpin\nusedns = no\n",
		"filter.d/web.conf":     "[Definition]\nfailregex = ^ refused <HOST>$\ndatepattern = {^LN-BEG}EPOCH\n",
		"action.d/hairpin.conf": string(action),
		"../auth.log":           "",
	} {
		path := filepath.Join(dir, "etc", name)
		lab.Must(os.MkdirAll(filepath.Dir(path), 0o755))
		lab.Must(os.WriteFile(path, []byte(text), 0o644))
	}
	fail2ban := func(args ...string) []string {
		return append([]string{"fail2ban-client", "-c", filepath.Join(dir, "etc"), "-s", dir + "/socket", "-p", dir + "/pid"}, args...)
	}
	server := n.Router.StartWith([]string{"PATH=" + hairpinOnPath(t, hp) + ":" + os.Getenv("PATH")}, "", fail2ban("-f", "start")...)
	lab.Eventually(t, 3*lab.Patience, func() error {
		r, err := n.Router.Try(fail2ban("status", "web")...)
		if err != nil || r.Code != 0 {
			return fmt.Errorf("fail2ban has not begun: %v\n%s", err, r.Stderr)
		}
		return nil
	})
	for _, c := range clients(n) {
		c.isServed(t, "before it fails")
		file, err := os.OpenFile(log, os.O_APPEND|os.O_WRONLY, 0)
		lab.Must(err)
		for range 2 {
			fmt.Fprintf(file, "%d refused %s\n", time.Now().Unix(), c.source)
		}
		lab.Must(file.Close())
		lab.Eventually(t, 2*lab.Patience, func() error {
			if rows := denied(t, hp); len(rows) != 1 {
				return fmt.Errorf("denied are %v", rows)
			}
			return nil
		})
		c.isRefused(t, "banned")
		n.Router.Run(fail2ban("set", "web", "unbanip", c.source)...)
		lab.Eventually(t, 2*lab.Patience, func() error { return c.asks(silence) })
	}
	for _, ban := range []struct {
		time string
		ever bool
	}{{"-1", true}, {"600", false}} {
		n.Router.Run(fail2ban("set", "web", "bantime", ban.time)...)
		n.Router.Run(fail2ban("set", "web", "banip", lab.InternetSource)...)
		lab.Eventually(t, 2*lab.Patience, func() error {
			out := hp.Run("--json", "deny", "show")
			if !strings.Contains(out, lab.InternetSource) || strings.Contains(out, "left_seconds") == ban.ever {
				return fmt.Errorf("banned for %s: %s", ban.time, out)
			}
			return nil
		})
		hp.Run("deny", "del", lab.InternetSource) // as if its time was over
		n.Router.Run(fail2ban("set", "web", "unbanip", lab.InternetSource)...)
	}
	if log := server.Stdout.String() + server.Stderr.String(); strings.Contains(log, "ERROR") {
		t.Errorf("fail2ban says\n%s", log)
	}
}

// TestCrowdSecBans: the script does what CrowdSec's custom bouncer asks it for.
func TestCrowdSecBans(t *testing.T) {
	t.Parallel()
	n := lab.NewNetwork6(t)
	n.Server.ServeTCP(":8080")
	n.Server.ServeTCP("[::]:8080")
	hp := home.Start(t, n, "tc", home.Forwards+home.Forwards6)
	bouncer := func(args ...string) lab.Result {
		t.Helper()
		words := append([]string{"env", "PATH=" + hairpinOnPath(t, hp) + ":" + os.Getenv("PATH"), "../../cmd/hairpin/dist/crowdsec/hairpin-bouncer"}, args...)
		r, err := n.Router.Try(words...)
		lab.Must(err)
		return r
	}
	for _, c := range clients(n) {
		for _, source := range []string{c.source, c.network} {
			if r := bouncer("add", source, "14399", "crowdsecurity/http-probing", `{"value":"x"}`); r.Code != 0 {
				t.Errorf("add: code %d\n%s", r.Code, r.Stderr)
			}
			c.isRefused(t, "banned")
			for range 2 { // the second time it has gone already
				if r := bouncer("del", source, "14399", "crowdsecurity/http-probing", `{"value":"x"}`); r.Code != 0 {
					t.Errorf("del: code %d\n%s", r.Code, r.Stderr)
				}
			}
			c.isServed(t, "no longer banned")
		}
	}
	if r := bouncer("add", "none"); r.Code == 0 || !strings.Contains(r.Stderr, `"none" is not an address`) {
		t.Errorf("what is no address: code %d\n%s", r.Code, r.Stderr)
	}
	if r := bouncer("del", "none"); r.Code == 0 || !strings.Contains(r.Stderr, `"none" is not an address`) {
		t.Errorf("what is no address: code %d\n%s", r.Code, r.Stderr)
	}
	// A decision with less than a second left, and one without a time.
	bouncer("add", lab.InternetSource, "0", "crowdsecurity/http-probing", "{}")
	lab.Eventually(t, lab.Patience, func() error {
		if rows := denied(t, hp); len(rows) != 0 {
			return fmt.Errorf("denied are %v", rows)
		}
		return nil
	})
	bouncer("add", lab.InternetSource)
	if out := hp.Run("--json", "deny", "show"); !strings.Contains(out, lab.InternetSource) || strings.Contains(out, "left_seconds") {
		t.Errorf("denied for ever is %s", out)
	}
	// What the file denies, too, stays denied, and is no error.
	hp.Write(home.Config("tc", "[deny]\nsources = [\""+lab.InternetSource+"\"]\n"+home.Forwards))
	hp.Reload()
	for range 2 {
		if r := bouncer("del", lab.InternetSource, "14399"); r.Code != 0 {
			t.Errorf("del of what the file denies: code %d\n%s", r.Code, r.Stderr)
		}
	}
	if rows := denied(t, hp); !rows[lab.InternetSource] {
		t.Errorf("denied are %v", rows)
	}
}
