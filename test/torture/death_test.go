// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var death = scenario{
	number: 2, name: "Death of the daemon by kill -9, SIGSTOP, the OOM killer, a crash of the runtime",
	demanded: fmt.Sprintf("0 datagrams lost, of at most %d a second; connections open and expire without the daemon", deathRate),
	run:      dieOften,
}

// deathRate is the number of datagrams a second; each is translated on its way in and on its way back.
const deathRate = 50_000

// deathTimeouts let connections expire while a test waits.
const deathTimeouts = "[timeouts]\ntcp_opening = \"1s\"\n"

// deaths are the ways to take the daemon away. after ends the state, so that a daemon runs.
var deaths = []struct {
	name   string
	rounds int           // of the full form
	away   time.Duration // of the full form
	do     func(d *dying)
	after  func(d *dying)
}{
	{"kill -9", 2, time.Second, func(d *dying) { d.hp.Kill() }, (*dying).restart},
	{"SIGSTOP", 1, 12 * time.Second, func(d *dying) { d.hp.Signal(unix.SIGSTOP) }, func(d *dying) { d.hp.Signal(unix.SIGCONT) }},
	{"OOM kill", 1, time.Second, (*dying).exhaust, (*dying).restart},
	{"crash", 1, time.Second, func(d *dying) {
		d.hp.Signal(unix.SIGSEGV)
		d.hp.Gone()
	}, (*dying).restart},
}

// dying is a router whose daemon dies.
type dying struct {
	*trial
	n      *lab.Network
	hp     *lab.Hairpin
	config string
}

func dieOften(t *trial) figures {
	var said []string
	for _, mode := range t.modes() {
		n := lab.NewNetwork(t)
		n.SetOffloads(home.OffloadsFor(mode))
		n.Server.ServeTCP(":8080")
		config := deathTimeouts + home.Forwards
		d := &dying{t, n, t.start(n, mode, config), home.Config(mode, config)}
		f := t.newFlow(n, t.pace(t.size(deathRate/5, deathRate)))
		var all tally
		for i, how := range deaths {
			for range t.count(1, how.rounds) {
				count := d.die(f, t.time(deathPause, how.away), how.do, how.after)
				t.none(count.lost, fmt.Sprintf("datagrams lost by %s, %s, of %d", how.name, mode, count.sent))
				all.sent, all.lost, all.dropped, all.rate = all.sent+count.sent, all.lost+count.lost, all.dropped+count.dropped, max(all.rate, count.rate)
			}
			t.progress(i+1, len(deaths), "kinds of death, "+mode)
		}
		said = append(said, fmt.Sprintf("%s: %d of %d lost, at %d/s", mode, all.lost, all.sent, all.rate))
	}
	return figures{measured: strings.Join(said, "; "), nftables: "no daemon"}
}

// deathPause is for how long datagrams flow before and after a death.
const deathPause = 200 * time.Millisecond

// die takes the daemon away while datagrams flow, lets connections open and expire, and brings a daemon back.
func (d *dying) die(f *flow, away time.Duration, do, after func(*dying)) tally {
	d.Helper()
	r := f.begin()
	r.wait(deathPause)
	do(d)
	d.openAndExpire()
	r.wait(away)
	after(d)
	r.wait(deathPause)
	return r.end()
}

// expiryPause is the time between two counts of connections: a command for each count takes the CPU time that the flow needs.
const expiryPause = 100 * time.Millisecond

// openAndExpire opens a connection that lives, and half-open ones that expire.
func (d *dying) openAndExpire() {
	d.Helper()
	c, err := d.n.Client.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		d.Errorf("open a connection without daemon: %v", err)
		return
	}
	defer c.Close()
	// Nobody listens at the sources of the SYNs, so their connections stay half-open.
	before := d.halfOpen()
	const opened = 100
	to := lab.Flood{Protocol: unix.IPPROTO_TCP, To: netip.AddrPortFrom(home.ExternalAddress, 80)}
	if _, err := d.n.Internet.SendFlood("eth0", d.n.Router.HardwareAddr("wan0"), to, func(sent int) bool { return sent >= opened }); err != nil {
		d.Fatal(err)
	}
	lab.Eventually(d, lab.Patience, func() error {
		if now := d.halfOpen(); now < before+opened/2 {
			return fmt.Errorf("%d half-open connections, were %d: none has opened without daemon", now, before)
		}
		return nil
	})
	pause := time.NewTicker(expiryPause)
	defer pause.Stop()
	lab.Eventually(d, lab.Patience, func() error {
		<-pause.C
		if now := d.halfOpen(); now > before {
			return fmt.Errorf("%d half-open connections, were %d: they do not expire without daemon", now, before)
		}
		return nil
	})
	if err := c.Echo(10_000); err != nil {
		d.Errorf("a connection that was opened without daemon: %v", err)
	}
}

func (d *dying) halfOpen() int {
	d.Helper()
	count, err := strconv.Atoi(strings.TrimSpace(d.hp.Run("conn", "count", "state", "half-open", "proto", "tcp")))
	if err != nil {
		d.Fatal(err)
	}
	return count
}

func (d *dying) restart() { d.hp.Start() }

// exhaust makes the daemon need more memory than it may have: it reads a configuration of tens of thousands of forwards. The kernel
// kills it in the middle of the reload.
func (d *dying) exhaust() {
	d.Helper()
	group := lab.NewMemoryCgroup(d)
	group.Adopt(d.hp.Pid())
	group.Squeeze(4 << 20)
	var many strings.Builder
	for i := range 30_000 {
		fmt.Fprintf(&many, "[[forward]]\nname = \"many%d\"\nprotocol = [\"tcp\"]\nport = \"%d\"\nto = \"192.168.1.20:8080\"\n", i, 10_000+i)
	}
	d.hp.Write(d.config + many.String())
	d.hp.Signal(unix.SIGHUP)
	d.hp.Gone()
	d.hp.Write(d.config)
}
