// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var soak = scenario{
	number: 13, name: "Soak: long connections and new ones, while the configuration changes",
	demanded: "0 connections end, 0 are refused; the number of connections, the daemon's memory and its descriptors are back to the start",
	run:      soakLong,
}

const (
	soakConns = 400
	// soakWarmUp is the number of changes before the start. They load what every later change uses again.
	soakWarmUp = 4
	// soakSlack is how much more memory the daemon may have at the end: its heap grows until a collection, which depends on the moment.
	soakSlack = 4 << 20
)

func soakLong(t *trial) figures {
	every := time.Duration(t.choose(4, 15, 60)) * time.Second
	rate, changes := t.size(200, honestRate), t.choose(2, 5, 24*60)
	n := t.newHonest("tc")
	s := &soaking{t, n, lab.NewHairpin(n.Router, ""), t.size(16_384, 131_072)}
	s.hp.Write(s.config(0))
	s.hp.Start()
	for i := range soakWarmUp {
		s.change(i)
	}
	t.watch(n.Network, s.hp)
	memory, _ := s.hp.Memory()

	long, fresh := t.newCrowd(soakConns, n.clients...), n.open(rate)
	long.stream(time.Second)
	begun, pace := time.Now(), time.NewTicker(every)
	defer pace.Stop()
	for i := range changes {
		<-pace.C
		s.change(soakWarmUp + i)
		t.progress(i+1, changes, "changes of the configuration")
	}
	took := time.Since(begun)
	c := fresh.finish(t)
	c.rate = int(float64(c.tried) / took.Seconds())
	ended, _ := long.finish()
	t.none(ended, "long connections ended")
	t.none(c.refused, fmt.Sprintf("of %d new connections did not open", c.tried))

	left := s.settle()
	t.none(left, "connections are left")
	now := s.memory(memory + soakSlack)
	return figures{measured: fmt.Sprintf("%d changes in %v; %d of %d long connections ended; of the new ones %v; %d connections left; memory of the daemon %d KiB, was %d KiB",
		changes, took.Round(time.Second), ended, soakConns, c, left, now>>10, memory>>10)}
}

// soaking is a router whose configuration changes.
type soaking struct {
	*trial
	n              *honestNetwork
	hp             *lab.Hairpin
	maxConnections int
}

// config returns configuration i. Each has another forward and another timeout than the one before.
func (s *soaking) config(i int) string {
	return home.Config("tc", fmt.Sprintf("max_connections = %d\n[timeouts]\ntcp_closing = \"1s\"\nudp = \"%ds\"\n", s.maxConnections, 300+i)+home.Forwards+fmt.Sprintf(`
[[forward]]
name = "extra"
protocol = ["tcp"]
port = "%d"
to = "192.168.1.20:8080"
`, soakPort+i%soakWarmUp))
}

// soakPort is the port of the first of the forwards that come and go.
const soakPort = 9000

// change loads configuration i, and adds and removes a forward. Each is used.
func (s *soaking) change(i int) {
	s.Helper()
	s.hp.Write(s.config(i))
	s.hp.Reload()
	s.use(soakPort + i%soakWarmUp)
	s.hp.Run("forward", "add", "late", "tcp", "8443", "to", lab.Server+":8080")
	s.use(8443)
	s.hp.Run("forward", "del", "late")
}

// use opens a connection to a port and uses it.
func (s *soaking) use(port int) {
	s.Helper()
	c, err := s.n.Internet.DialTCP(fmt.Sprintf("%s:%d", lab.External, port), "", lab.Patience)
	if err != nil {
		s.Errorf("a forward that was just made: %v", err)
		return
	}
	defer c.Close()
	if err := c.EchoWithin(crowdBytes, crowdPatience); err != nil {
		s.Errorf("a forward that was just made: %v", err)
	}
}

// settle waits until the closed connections are removed, and returns how many are left.
func (s *soaking) settle() (left int) {
	s.Helper()
	lab.Eventually(softly{s.T, new(int)}, sweepRound(s.maxConnections)+lab.Patience, func() (err error) {
		if left, err = strconv.Atoi(strings.TrimSpace(s.hp.Run("conn", "count"))); err == nil && left != 0 {
			err = fmt.Errorf("%d connections are left", left)
		}
		return err
	})
	return left
}

// memory waits until the daemon has at most this much memory, and returns how much it has: the runtime gives memory back with a delay.
func (s *soaking) memory(most int) (now int) {
	s.Helper()
	lab.Eventually(softly{s.T, new(int)}, lab.Patience, func() error {
		if now, _ = s.hp.Memory(); now > most {
			return fmt.Errorf("the daemon has %d KiB of memory, want at most %d KiB", now>>10, most>>10)
		}
		return nil
	})
	return now
}
