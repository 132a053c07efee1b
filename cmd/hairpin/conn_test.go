// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/netip"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/maps"
	"hairpin/maps/rule"
)

// TestPrintConnections: without ports only the address is printed; an echo connection shows its identifier
// on the client's side. Rows are sorted by protocol number, external address and client.
func TestPrintConnections(t *testing.T) {
	at := netip.MustParseAddrPort
	list := []maps.Connection{
		{
			Protocol: rule.TCP, Path: "wan", Forward: "web", State: maps.StateEstablished,
			Client: at("198.51.100.9:5000"), External: at("203.0.113.1:443"), Source: at("198.51.100.9:5000"), Target: at("192.168.1.20:8443"),
			AgeSeconds: 7440, IdleSeconds: 7, Packets: 17, Bytes: 6000,
		},
		{
			Protocol: rule.ICMP, Path: "hairpin", Forward: "ping", State: maps.StateEstablished,
			Client: at("192.168.1.50:77"), External: at("203.0.113.1:0"), Source: at("192.168.1.1:78"), Target: at("192.168.1.20:0"),
		},
		{
			Protocol: rule.GRE, Path: "wan", Forward: "tunnel", State: maps.StateHalfOpen,
			Client: at("198.51.100.9:0"), External: at("203.0.113.1:0"), Source: at("198.51.100.9:0"), Target: at("192.168.1.20:0"),
		},
		{
			Protocol: rule.ICMP, Path: "wan", Forward: "ping", State: maps.StateEstablished,
			Client: at("[2001:db8::9]:77"), External: at("[2001:db8::1]:0"), Source: at("[2001:db8::9]:77"), Target: at("[fd00::20]:0"),
		},
	}
	var out bytes.Buffer
	a := newApp(env{stdout: &out})
	if err := a.printConnections(nil, nil, eachOf(list)); err != nil {
		t.Fatal(err)
	}
	if err := a.out.Flush(); err != nil {
		t.Fatal(err)
	}
	want := `PROTO  PATH     FORWARD  STATE        CLIENT             EXTERNAL         SOURCE             TARGET             AGE     IDLE  PACKETS  BYTES
icmp   hairpin  ping     established  192.168.1.50:77    203.0.113.1      192.168.1.1:78     192.168.1.20       0s      0s    0        0
icmp   wan      ping     established  [2001:db8::9]:77   2001:db8::1      [2001:db8::9]:77   fd00::20           0s      0s    0        0
tcp    wan      web      established  198.51.100.9:5000  203.0.113.1:443  198.51.100.9:5000  192.168.1.20:8443  2h4m0s  7s    17       6000
gre    wan      tunnel   half-open    198.51.100.9       203.0.113.1      198.51.100.9       192.168.1.20       0s      0s    0        0
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

// eachOf visits the connections of a list, as Tables.EachConnection does.
func eachOf(list []maps.Connection) func(func(*maps.Connection)) error {
	return func(visit func(*maps.Connection)) error {
		for i := range list {
			visit(&list[i])
		}
		return nil
	}
}

func TestPrintNoConnections(t *testing.T) {
	for _, c := range []struct {
		json bool
		want string
	}{{false, "(none)\n"}, {true, "{\"schema\":1,\"connections\":[]}\n"}} {
		var out bytes.Buffer
		a := newApp(env{stdout: &out})
		a.json = c.json
		if err := errors.Join(a.printConnections(nil, nil, eachOf(nil)), a.out.Flush()); err != nil || out.String() != c.want {
			t.Errorf("JSON %v: %q, %v, want %q", c.json, &out, err, c.want)
		}
	}
}

// discarded is a writer that counts lines, and measures the growth of the memory in use.
type discarded struct {
	before, most uint64
	writes       int
	lines        int
	head         []byte
}

func (d *discarded) Write(text []byte) (int, error) {
	d.lines += bytes.Count(text, []byte{'\n'})
	if len(d.head) < 4096 {
		d.head = append(d.head, text...)
	}
	if d.writes++; d.writes%1024 == 0 {
		d.most = max(d.most, heapInUse()-d.before)
	}
	return len(text), nil
}

func heapInUse() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

// TestPrintManyConnections: a listing holds few connections in memory, and its columns stay aligned.
func TestPrintManyConnections(t *testing.T) {
	const many, room = 200_000, 8 << 20
	each := func(visit func(*maps.Connection)) error {
		c := maps.Connection{
			Protocol: rule.TCP, Path: "wan", Forward: "web", State: maps.StateEstablished,
			External: netip.MustParseAddrPort("203.0.113.1:443"), Source: netip.MustParseAddrPort("198.51.100.9:5000"), Target: netip.MustParseAddrPort("192.168.1.20:8443"),
		}
		for i := range many {
			c.Client = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 5000)
			visit(&c)
		}
		return nil
	}
	for _, json := range []bool{false, true} {
		out := &discarded{before: heapInUse()}
		a := newApp(env{stdout: out})
		a.json = json
		if err := errors.Join(a.printConnections(nil, nil, each), a.out.Flush()); err != nil {
			t.Fatal(err)
		}
		if want := map[bool]int{false: many + 1, true: 1}[json]; out.lines != want {
			t.Errorf("JSON %v: %d lines, want %d", json, out.lines, want)
		}
		if out.most > room {
			t.Errorf("JSON %v: %d bytes were in use, want at most %d", json, out.most, room)
		}
		if !json {
			rows := strings.Split(string(out.head), "\n")
			if at := strings.Index(rows[0], "EXTERNAL"); strings.Index(rows[20], "203.0.113.1") != at {
				t.Errorf("rows are not aligned:\n%s\n%s", rows[0], rows[20])
			}
		}
	}
}

// TestJSONList: a list that is written item by item gives the same document as printJSON.
func TestJSONList(t *testing.T) {
	for _, items := range [][]string{{}, {"a"}, {"a", "<b>", "c\n"}} {
		var one, all bytes.Buffer
		a := newApp(env{stdout: &one})
		list := a.newJSONList("letters")
		for _, item := range items {
			if err := list.add(item); err != nil {
				t.Fatal(err)
			}
		}
		b := newApp(env{stdout: &all})
		if err := errors.Join(list.end(), a.out.Flush(), b.printJSON("letters", items), b.out.Flush()); err != nil {
			t.Fatal(err)
		}
		if one.String() != all.String() || !json.Valid(one.Bytes()) {
			t.Errorf("%q, want %q", &one, &all)
		}
	}
}
