// SPDX-License-Identifier: Apache-2.0

package network

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// standing is a TCP connection and a UDP flow of a host, to the forwards of one family.
type standing struct {
	name string
	echo func(length int) error
	udp  net.Conn
}

// standings opens both families from each host by the external addresses.
func standings(t *testing.T, hosts ...*lab.Host) (list []standing) {
	t.Helper()
	for _, h := range hosts {
		c, err := h.DialTCP(lab.External+":80", "", lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		u, err := h.DialUDP(lab.External+":53", "")
		if err != nil {
			t.Fatal(err)
		}
		c6, err := h.DialTCP("["+lab.External6+"]:80", "", lab.Patience)
		if err != nil {
			t.Fatal(err)
		}
		u6, err := h.DialUDP("["+lab.External6+"]:53", "")
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, standing{h.Name + ", IPv4", c.Echo, u}, standing{h.Name + ", IPv6", c6.Echo, u6})
		t.Cleanup(func() { errors.Join(c.Close(), u.Close(), c6.Close(), u6.Close()) })
	}
	stand(t, list, lab.Patience)
	return list
}

// stand checks that every UDP flow is answered within a time, and then every TCP connection, which may have to wait for its next
// retransmission.
func stand(t *testing.T, list []standing, within time.Duration) {
	t.Helper()
	deadline := time.Now().Add(within)
	for _, s := range list {
		lab.Eventually(t, time.Until(deadline), func() error { return s.answered() })
	}
	lab.Together(len(list), func(i int) {
		if err := list[i].echo(10_000); err != nil {
			t.Errorf("%s: %v", list[i].name, err)
		}
	})
}

// answered sends a datagram and waits a moment for its echo, past echoes of those before.
func (s standing) answered() error {
	data, got := make([]byte, 500), make([]byte, 1000)
	rand.Read(data)
	if _, err := s.udp.Write(data); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	s.udp.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	for {
		n, err := s.udp.Read(got)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		if string(got[:n]) == string(data) {
			return nil
		}
	}
}

// changing is the usual network of both families, served, in which something is going to change.
type changing struct {
	*lab.Network
	hp *lab.Hairpin
}

func newChanging(t *testing.T, mode string) changing {
	t.Helper()
	n := lab.NewNetwork6(t)
	n.SetOffloads(home.OffloadsFor(mode))
	n.Server.ServeTCP(":8080")
	n.Server.ServeUDP(":5353")
	n.Server.ServeTCP("[::]:8080")
	n.Server.ServeUDP("[::]:5353")
	for _, dev := range []string{"wan0", "lan0"} {
		n.Router.Sysctl("net/ipv6/conf/"+dev+"/keep_addr_on_down", "1")
	}
	return changing{n, home.Start(t, n, mode, home.Forwards+home.Forwards6)}
}

// restore gives the router's interfaces what they lose when they go down, and neighbours' hosts what they
// have of it.
func (c changing) restore() {
	c.Router.Up("wan0", "lan0")
	c.Router.Route("wan0", "0.0.0.0/0", lab.Gateway, "")
	c.Router.Route("wan0", "::/0", lab.GatewayLink6, "")
}
