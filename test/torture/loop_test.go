// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

var loop = scenario{
	number: 6, name: "Two routers that forward one port to each other",
	demanded: fmt.Sprintf("each datagram crosses the cable between the routers at most %d times (its TTL); all datagrams of one source open at most %[1]d connections in total; each of these stays half-open", loopTTL),
	run:      loopOften,
}

const (
	loopPort = 7777
	loopTTL  = 64
)

// loopForward is a forward of loopPort to the other router.
func loopForward(to string) string {
	return fmt.Sprintf("[[forward]]\nname = \"loop\"\nprotocol = [\"udp\"]\nport = \"%d\"\nto = \"%s:%d\"\n", loopPort, to, loopPort)
}

func loopOften(t *trial) figures {
	most, opened, sent := 0, 0, t.choose(20, 100, 1000)
	n := lab.NewNetwork(t)
	n.AddFar(t)
	// Each router has its default route by the cable between them.
	n.Internet.Route("eth0", "0.0.0.0/0", lab.External, "")
	hp := t.start(n, "tc", loopForward(lab.Gateway))
	other := lab.NewHairpin(n.Internet, "version = 1\n[interfaces]\nwan = [\"eth0\"]\nlan = [\"eth1\"]\n[metrics]\nlisten = \"\"\n"+loopForward(lab.External))
	other.Run("attach")
	// How often each datagram has crossed the cable. Its last four bytes are its number.
	crossed, crossings := make([]atomic.Int64, sent), new(atomic.Int64)
	for _, end := range []struct {
		host *lab.Host
		dev  string
	}{{n.Router, "wan0"}, {n.Internet, "eth0"}} {
		end.host.CaptureEarly(end.dev, func(p *lab.Packet) error {
			if number := binary.BigEndian.Uint32(p.Data[len(p.Data)-4:]); p.Dst.Port() == loopPort && int(number) < sent {
				crossed[number].Add(1)
				crossings.Add(1)
			}
			return nil
		})
	}
	wire := n.Internet.Wire("eth0", n.Router.HardwareAddr("wan0"))
	source := netip.MustParseAddrPort("8.7.6.5:40000")
	for number := range sent {
		data := binary.BigEndian.AppendUint32([]byte("round and round "), uint32(number))
		if err := wire.Send(lab.UDP(source, netip.AddrPortFrom(home.ExternalAddress, loopPort), data).Packet()); err != nil {
			t.Fatal(err)
		}
		lab.Eventually(t, lab.Patience, func() error {
			if count := crossed[number].Load(); count < 2 {
				return fmt.Errorf("datagram %d has crossed the cable %d times, want at least 2", number, count)
			}
			return nil
		})
	}
	t.settled(crossings)
	for number := range sent {
		most = max(most, int(crossed[number].Load()))
	}
	for _, hp := range []*lab.Hairpin{hp, other} {
		list := home.Show(t.T, hp, "conn", "show").Connections
		opened += len(list)
		for _, c := range list {
			if c.State != "half-open" {
				t.Errorf("nobody has answered, but there is %+v", c)
			}
		}
	}
	if most > loopTTL {
		t.Errorf("a datagram crosses the cable %d times, want at most %d", most, loopTTL)
	}
	// A router replaces the source of what it sends by its own address and a new port. So each crossing can open a connection.
	if opened > loopTTL {
		t.Errorf("%d datagrams of one source have opened %d connections, want at most %d", sent, opened, loopTTL)
	}
	other.Run("detach", "--all")
	return figures{measured: fmt.Sprintf("%d datagrams: at most %d crossings; %d half-open connections on both together", sent, most, opened)}
}

// settled returns when a count has not changed for a moment.
func (t *trial) settled(count *atomic.Int64) {
	t.Helper()
	const quiet = 200 * time.Millisecond
	last, since := count.Load(), time.Now()
	lab.Eventually(t, lab.Patience, func() error {
		if now := count.Load(); now != last {
			last, since = now, time.Now()
		}
		if time.Since(since) < quiet {
			return fmt.Errorf("packets still cross the cable: %d", last)
		}
		return nil
	})
}
