// SPDX-License-Identifier: Apache-2.0

package network

import (
	"errors"
	"fmt"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
)

// transferBytes goes over TCP in each direction of each transfer.
const transferBytes = 200_000_000

// transferVariants are the ways that devices and hooks handle checksums and segments.
var transferVariants = []struct {
	mode     string
	offloads lab.Offloads
}{
	{"tc", lab.AsTheyCome},
	{"tc", lab.RouterOff},
	{"tc", lab.AllOff},
	{"xdp", lab.AsTheyCome},
	{"xdp", lab.AllOff},
	{"xdp", lab.AllOffGRO},
	{"xdp", lab.OnGRO},
}

// All kinds of clients move bulk data both ways through a forward, with every way that
// devices and hooks handle checksums and segments.
func TestTransfers(t *testing.T) {
	for _, v := range transferVariants {
		t.Run(fmt.Sprintf("%s, offloads %s", v.mode, v.offloads), func(t *testing.T) {
			n := lab.NewNetwork(t)
			n.SetOffloads(v.offloads)
			n.Server.ServeTCP(":8080")
			udp := n.Server.ServeUDP(":5353")
			home.Start(t, n, v.mode, home.Forwards)
			for _, w := range home.Ways(n) {
				t.Run(w.Name, func(t *testing.T) {
					transfer(t, n.For(t), w, udp)
				})
			}
			if v.offloads == lab.AllOffGRO {
				mostlyXDP(t, n)
			}
			for _, h := range []*lab.Host{n.Internet, n.Client, n.Server, n.Guest, n.Router} {
				for _, protocol := range []string{"Tcp", "Udp"} {
					if bad := h.SNMP(protocol, "InCsumErrors"); bad != "0" {
						t.Errorf("%s counts %s %s checksum errors", h.Name, bad, protocol)
					}
				}
			}
		})
	}
}

// mostlyXDP makes sure that it was XDP that sent: it leaves a packet to TC only now and then.
func mostlyXDP(t *testing.T, n *lab.Network) {
	t.Helper()
	sent, left := home.Scrape(t, n, "hairpin_forward_packets_total"), home.Scrape(t, n, "hairpin_packets_passed_total")
	t.Logf("%.0f packets forwarded, XDP left %.0f to TC", sent, left)
	if left > sent/100 {
		t.Error("XDP leaves packets to TC that it could send itself")
	}
}

func transfer(t *testing.T, n *lab.Network, w home.Way, udp *lab.Echoer) {
	from := w.From.For(t)
	watch := arrivals(w)
	captures := []*lab.Capture{n.Server.Capture("eth0", watch)}
	if w.Addr != home.ServerAddress {
		captures = append(captures, from.Capture("eth0", watch))
	}
	transferTCP(t, from, w)
	transferUDP(t, from, w, udp)
	for _, c := range captures {
		stats := c.Stop()
		t.Logf("%d packets, %d partial checksums, %d bytes", stats.Packets, stats.Partial, stats.Bytes)
		if stats.Bytes < transferBytes {
			t.Errorf("captured %d bytes of a transfer of %d", stats.Bytes, transferBytes)
		}
	}
}

// arrivals returns the check for arriving packets: at the client only answers from the external address, at the server only packets
// with the client address that the forward gives it.
func arrivals(w home.Way) func(*lab.Packet) error {
	return func(p *lab.Packet) error {
		toClient := p.Dst.Addr() == w.Addr && p.Src.Addr() == home.ExternalAddress
		toServer := p.Dst.Addr() == home.ServerAddress && p.Src.Addr() == w.Sees
		if !toClient && !toServer {
			return errors.New("neither an answer of the external address nor from whom the server should see")
		}
		return nil
	}
}

func transferTCP(t *testing.T, from *lab.Host, w home.Way) {
	c, err := from.DialTCP(lab.External+":80", "", lab.Patience)
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer c.Close()
	who, err := c.Who()
	if err != nil || who.Addr() != w.Sees {
		t.Errorf("server sees %v, want %v (%v)", who.Addr(), w.Sees, err)
	}
	if err := c.Upload(transferBytes); err != nil {
		t.Error(err)
	}
	if err := c.Download(transferBytes); err != nil {
		t.Error(err)
	}
}

func transferUDP(t *testing.T, from *lab.Host, w home.Way, udp *lab.Echoer) {
	c, err := from.DialUDP(lab.External+":53", "")
	if err != nil {
		t.Fatalf("connect: %v", err)
	}
	defer c.Close()
	before := udp.Seen()
	sent, err := lab.Exchange(c, 10_000, 1472)
	if err != nil {
		t.Error(err)
	}
	for peer, tally := range udp.Seen() {
		if before[peer] == tally {
			continue
		}
		if peer.Addr() != w.Sees || tally != sent {
			t.Errorf("server saw %+v from %v, want %+v from %v", tally, peer, sent, w.Sees)
		}
	}
}
