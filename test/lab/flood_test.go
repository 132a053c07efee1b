// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Every packet of a flood is one that a host would accept, and a tuple's packets have the same source.
func TestFloodPacketsAreValid(t *testing.T) {
	for _, protocol := range []uint8{unix.IPPROTO_TCP, unix.IPPROTO_UDP, unix.IPPROTO_ICMP} {
		f := Flood{Protocol: protocol, To: netip.MustParseAddrPort("203.0.113.2:80")}
		for tuple := range uint64(10000) {
			p, err := parsePacket(f.append(nil, tuple), false)
			if err != nil {
				t.Fatalf("%v: %v", p, err)
			}
			again, _ := parsePacket(f.append(nil, tuple), false)
			if protocol == unix.IPPROTO_ICMP {
				if p.ICMP == nil || p.ICMP.Quote == nil || p.ICMP.Quote.Src != f.To || p.ICMP.Quote.Dst.Addr() != p.Src.Addr() {
					t.Fatalf("%v", p)
				}
				continue
			}
			if p.Src != again.Src || p.Dst != f.To {
				t.Fatalf("%v, then %v", p, again)
			}
		}
		f = Flood{Protocol: protocol, From: []netip.Prefix{netip.MustParsePrefix("2001:db8:66::/33")}, To: netip.MustParseAddrPort("[2001:db8::2]:80")}
		for tuple := range uint64(10000) {
			b := f.append(nil, tuple)
			src, length := netip.AddrFrom16([16]byte(b[8:])), int(b[5])
			if !f.From[0].Contains(src) || len(b) != 40+length {
				t.Fatalf("% x: source %v", b, src)
			}
			if s := sum(sum(sum(0, b[8:40]), []byte{0, f.protocol(), 0, byte(length)}), b[40:]); s != 0xffff {
				t.Fatalf("% x: sum is %#04x", b, s)
			}
		}
	}
}

// A flood of fragments has first and last fragments of datagrams that are never complete.
func TestFloodOfFragments(t *testing.T) {
	for _, f := range []Flood{
		{Protocol: unix.IPPROTO_UDP, Fragments: true, To: netip.MustParseAddrPort("203.0.113.2:53")},
		{Protocol: unix.IPPROTO_UDP, Fragments: true, To: netip.MustParseAddrPort("[2001:db8::2]:53"),
			From: []netip.Prefix{netip.MustParsePrefix("2001:db8:66::/33")}},
	} {
		ids := map[uint32]int{}
		for tuple := range uint64(1000) {
			b := f.append(nil, tuple)
			var id uint32
			var offset, more uint16
			header, length := 20, len(b)
			if f.To.Addr().Is6() {
				header, length = 48, 40+int(binary.BigEndian.Uint16(b[4:]))
				word := binary.BigEndian.Uint16(b[42:])
				offset, more, id = word>>3, word&1, binary.BigEndian.Uint32(b[44:])
				if b[6] != unix.IPPROTO_FRAGMENT || b[40] != unix.IPPROTO_UDP {
					t.Fatalf("% x: no fragment of UDP", b)
				}
			} else {
				if _, err := parsePacket(b, false); err != nil {
					t.Fatalf("% x: %v", b, err)
				}
				word := binary.BigEndian.Uint16(b[6:])
				offset, more, id = word&0x1fff, word>>13&1, uint32(binary.BigEndian.Uint16(b[4:]))
			}
			if len(b) != length || tuple%2 == 0 && (offset != 0 || more != 1 || len(b) != header+fragmentBytes) ||
				tuple%2 == 1 && (offset != fragmentBytes/8 || more != 0) {
				t.Fatalf("% x: offset %d, more %d", b, offset, more)
			}
			ids[id]++
		}
		if len(ids) < 900 {
			t.Errorf("%d ids in 1000 fragments", len(ids))
		}
	}
}

// A delayed cable delays, loses nothing, and a burst of connections over it opens unless it has too little time.
func TestDelayedTun(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	const roundTrip = 100 * time.Millisecond
	DelayedTun(a, "tun0", b, "tun0", roundTrip)
	a.Address("tun0", "192.0.2.1/24")
	b.Address("tun0", "192.0.2.2/24")
	b.ServeTCP(":80")
	to := netip.MustParseAddrPort("192.0.2.2:80")
	begun := time.Now()
	c, err := a.DialTCP(to.String(), "", Patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if took := time.Since(begun); took < roundTrip {
		t.Errorf("a handshake took %v, want at least %v", took, roundTrip)
	}
	for _, want := range []struct {
		within time.Duration
		opened int
	}{{Patience, 50}, {3 * roundTrip / 2, 0}} {
		opened, err := a.OpenBurst(Burst{To: to, Count: 50, Over: 50 * time.Millisecond, Within: want.within})
		if err != nil || opened != want.opened {
			t.Errorf("within %v %d connections opened (%v), want %d", want.within, opened, err, want.opened)
		}
	}
}

// A churn opens and closes connections, from every address it may use.
func TestChurn(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	Cable(a, "eth0", b, "eth0")
	a.Address("eth0", "192.0.2.1/24")
	b.Address("eth0", "192.0.2.2/24")
	b.Route("eth0", "0.0.0.0/0", "192.0.2.1", "")
	a.Run("ip", "route", "add", "local", "51.0.0.0/8", "dev", "lo")
	b.ServeTCP(":80")
	const enough = 1000
	done, failed, err := a.ChurnTCP([]netip.Prefix{netip.MustParsePrefix("51.0.0.0/8")}, netip.MustParseAddrPort("192.0.2.2:80"),
		func(done int) bool { return done >= enough })
	if err != nil || failed != 0 || done < enough {
		t.Errorf("%d connections were opened and closed, %d failed (%v); want %d and none", done, failed, err, enough)
	}
}

// Resets of both families are seen where they arrive, and nowhere else.
func TestWatchResets(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	Cable(a, "eth0", b, "eth0")
	for i, h := range []*Host{a, b} {
		h.Sysctl("net/ipv6/conf/all/disable_ipv6", "0")
		h.Address("eth0", []string{"192.0.2.1/24", "192.0.2.2/24"}[i])
		h.Run("ip", "-6", "address", "add", []string{"2001:db8::1/64", "2001:db8::2/64"}[i], "dev", "eth0", "nodad")
	}
	b.ServeTCP(":80")
	arrived, sent := a.WatchResets("eth0"), b.WatchResets("eth0")
	if c, err := a.DialTCP("192.0.2.2:80", "", Patience); err != nil {
		t.Error(err)
	} else if err := c.Echo(100); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
	for _, closed := range []string{"192.0.2.2:81", "[2001:db8::2]:81"} {
		if _, err := a.DialTCP(closed, "", Patience); err == nil {
			t.Errorf("%s accepts", closed)
		}
	}
	if got := arrived.Stop(); len(got) != 2 {
		t.Errorf("arrived: %q, want one of each family", got)
	}
	if got := sent.Stop(); len(got) != 0 {
		t.Errorf("where they were sent: %q, want none", got)
	}
}

// TestWatchInside: packets with inside sources of both families are seen, others are not.
func TestWatchInside(t *testing.T) {
	a, b := NewHost(t, "a"), NewHost(t, "b")
	Cable(a, "eth0", b, "eth0")
	arrived, strangers := a.WatchInside("eth0"), a.WatchStrangers("eth0", netip.MustParseAddr("8.8.8.8"), netip.MustParseAddr("11.0.0.1"))
	to := b.Wire("eth0", a.HardwareAddr("eth0"))
	for _, source := range []string{"192.168.1.20", "10.1.2.3", "127.0.0.1", "203.0.113.2", "11.0.0.1", "192.169.0.1", "8.8.8.8"} {
		header := append([]byte{0x45, 0, 0, 20, 0, 0, 0, 0, 64, 0, 0, 0}, netip.MustParseAddr(source).AsSlice()...)
		Must(to.Send(append(header, 192, 0, 2, 1)))
	}
	for _, source := range []string{"fd00:1::20", "2001:db8::1", "fe80::1"} {
		header := append([]byte{0x60, 0, 0, 0, 0, 0, 59, 64}, netip.MustParseAddr(source).AsSlice()...)
		Must(to.Send(append(header, make([]byte, 16)...)))
	}
	if got := arrived.Stop(); len(got) != 4 {
		t.Errorf("arrived: %q, want the four packets with inside sources", got)
	}
	if got := strangers.Stop(); len(got) != 5 {
		t.Errorf("strangers: %q, want the five IPv4 packets with other sources", got)
	}
}
