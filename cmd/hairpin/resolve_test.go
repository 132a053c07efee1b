// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/maps"
	"hairpin/maps/rule"
)

func addrs(n int) (list []netip.Addr) {
	for i := range n {
		list = append(list, netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}))
	}
	return list
}

// TestResolveAtOnce: look-ups run at the same time, and each address is asked for once.
func TestResolveAtOnce(t *testing.T) {
	const together = 10
	var mu sync.Mutex
	asked := map[string]int{}
	all := make(chan struct{})
	r := newResolver()
	defer r.close()
	r.lookup = func(ctx context.Context, addr string) ([]string, error) {
		mu.Lock()
		if asked[addr]++; len(asked) == together {
			close(all)
		}
		mu.Unlock()
		select {
		case <-all: // the others have begun, too
			return []string{"host-" + addr + ".", "other."}, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	list := addrs(together)
	r.resolve(append(append([]netip.Addr{{}}, list...), list...))
	r.resolve(list)
	for _, addr := range list {
		if want := "host-" + addr.String(); r.host(addr) != want || asked[addr.String()] != 1 {
			t.Errorf("%s is %q after %d look-ups, want %q after one", addr, r.host(addr), asked[addr.String()], want)
		}
	}
}

// TestResolveEnds: when the time is over, look-ups end, what has no answer stays an address, and nothing more is asked.
func TestResolveEnds(t *testing.T) {
	r := newResolver()
	var end context.CancelFunc
	r.ctx, end = context.WithCancel(context.Background())
	var mu sync.Mutex
	asked := 0
	r.lookup = func(ctx context.Context, addr string) ([]string, error) {
		mu.Lock()
		asked++
		begun := asked
		mu.Unlock()
		if addr == "192.0.2.0" {
			return []string{"first.example."}, nil
		}
		if begun == resolveAtOnce {
			end()
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	list := addrs(200)
	r.resolve(list)
	before := asked
	r.resolve(addrs(255))
	if asked != before || before > 2*resolveAtOnce {
		t.Errorf("%d look-ups, and %d after the end", before, asked-before)
	}
	if r.host(list[0]) != "first.example" || r.host(list[1]) != "192.0.2.1" || r.host(netip.MustParseAddr("192.0.2.254")) != "192.0.2.254" {
		t.Errorf("names %q, %q, %q", r.host(list[0]), r.host(list[1]), r.host(netip.MustParseAddr("192.0.2.254")))
	}
}

func TestResolveTimeIsLimited(t *testing.T) {
	r := newResolver()
	defer r.close()
	r.resolve(nil)
	if end, limited := r.ctx.Deadline(); !limited || resolveTime.Seconds() != 2 || end.IsZero() {
		t.Errorf("look-ups end at %v (%v) after %s", end, limited, resolveTime)
	}
}

// TestNamesInTables: names stand for addresses, with the port; control characters of a name are escaped.
func TestNamesInTables(t *testing.T) {
	at := netip.MustParseAddrPort
	names := map[string]string{"198.51.100.9": "client.example", "2001:db8::1": "v6.example", "192.168.1.20": "evil\x1b[2J"}
	r := newResolver()
	defer r.close()
	r.lookup = func(_ context.Context, addr string) ([]string, error) {
		if names[addr] == "" {
			return nil, errors.New("no such host")
		}
		return []string{names[addr] + "."}, nil
	}
	var out bytes.Buffer
	a := newApp(env{stdout: &out})
	err := a.printConnections(nil, r, eachOf([]maps.Connection{
		{Protocol: rule.TCP, Path: "wan", State: "closing", Client: at("198.51.100.9:5000"), External: at("[2001:db8::1]:443"), Source: at("198.51.100.9:5000"), Target: at("192.168.1.20:80")},
		{Protocol: rule.GRE, Path: "wan", State: "ended", Client: at("198.51.100.9:0"), External: at("203.0.113.1:0"), Source: at("[2001:db8::2]:7"), Target: at("192.168.1.20:0")},
	}))
	if err = errors.Join(err, a.out.Flush()); err != nil {
		t.Fatal(err)
	}
	want := `PROTO  PATH  FORWARD  STATE    CLIENT               EXTERNAL        SOURCE               TARGET           AGE  IDLE  PACKETS  BYTES
tcp    wan   -        closing  client.example:5000  v6.example:443  client.example:5000  evil\x1b[2J:80   0s   0s    0        0
gre    wan   -        ended    client.example       203.0.113.1     [2001:db8::2]:7      evil\x1b[2J      0s   0s    0        0
`
	if diff := cmp.Diff(strings.Join(strings.Fields(want), " "), strings.Join(strings.Fields(out.String()), " ")); diff != "" || strings.Contains(out.String(), "\x1b") {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for target, want := range map[string]string{
		"198.51.100.9:80-90": "client.example:80-90", "198.51.100.9": "client.example", "[2001:db8::1]:443": "v6.example:443",
		"2001:db8::1": "v6.example", "10.0.0.1:80": "10.0.0.1:80",
	} {
		row := forwardRow{Target: target, target: netip.MustParseAddr(strings.Trim(strings.TrimSuffix(strings.TrimSuffix(strings.TrimSuffix(target, ":80"), ":80-90"), ":443"), "[]"))}
		r.resolve([]netip.Addr{row.target})
		if got := row.targetCell(r); got != want {
			t.Errorf("target %s is shown as %s, want %s", target, got, want)
		}
		if got := row.targetCell(nil); got != target {
			t.Errorf("without -r target %s is shown as %s", target, got)
		}
	}
}

// TestResolveNeedsATable: JSON has addresses only.
func TestResolveNeedsATable(t *testing.T) {
	for _, words := range []string{"-j conn show -r", "-j forward show --resolve"} {
		_, stderr, code := try(t, append([]string{"--bpffs", "none"}, strings.Fields(words)...)...)
		if code != exitInvalid || !strings.Contains(stderr, "-r is for tables") {
			t.Errorf("%s: exit code %d, %s", words, code, stderr)
		}
	}
}
