// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/mapstest"
)

func denials(lasts time.Duration, sources ...string) (list []Denial) {
	for _, source := range sources {
		list = append(list, Denial{netip.MustParsePrefix(source), lasts})
	}
	return list
}

func mustDeny(t *testing.T, tables *Tables, lasts time.Duration, sources ...string) {
	t.Helper()
	if _, err := tables.Deny(denials(lasts, sources...)); err != nil {
		t.Fatal(err)
	}
}

func mustUndeny(t *testing.T, tables *Tables, sources ...string) {
	t.Helper()
	for _, d := range denials(0, sources...) {
		if missing, err := tables.Undeny([]netip.Prefix{d.Source}); err != nil || len(missing) > 0 {
			t.Fatalf("%s: missing %v, %v", d.Source, missing, err)
		}
	}
}

// wantDenied compares with "SOURCE", or "SOURCE configured", in any order.
func wantDenied(t *testing.T, tables *Tables, want ...string) {
	t.Helper()
	var got []string
	err := tables.EachDenied(func(d Denied) {
		text := d.Source.String()
		if d.Configured {
			text += " configured"
		}
		if d.Asked {
			text += " asked"
		}
		got = append(got, text)
	})
	slices.Sort(got)
	slices.Sort(want)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("denied are %q, %v; want %q", got, err, want)
	}
}

// TestWhoDenies: the configuration and commands each take back only what is theirs.
func TestWhoDenies(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	c := mapstest.Config(t, "web tcp 80 to 192.168.1.20")
	mustDeny(t, tables, 0, "192.0.2.1/32", "198.51.0.0/16") // before anything was applied
	c.Deny = []netip.Prefix{netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("2001:db8::/32")}
	mustApply(t, tables, c)
	wantDenied(t, tables, "192.0.2.1/32 configured asked", "198.51.0.0/16 asked", "198.51.100.0/24 configured", "2001:db8::/32 configured")
	mustUndeny(t, tables, "192.0.2.1/32", "198.51.0.0/16")
	if missing, err := tables.Undeny(c.Deny); err != nil || !slices.Equal(missing, c.Deny) {
		t.Errorf("missing are %v, %v; want all", missing, err)
	}
	wantDenied(t, tables, "192.0.2.1/32 configured", "198.51.100.0/24 configured", "2001:db8::/32 configured")
	mustDeny(t, tables, time.Hour, "2001:db8::/32", "192.0.2.1/32")
	c.Deny = c.Deny[:1]
	mustApply(t, tables, c)
	wantDenied(t, tables, "192.0.2.1/32 configured asked", "2001:db8::/32 asked")
	again, err := tables.again().Running()
	if err != nil || !slices.Equal(again.Deny, c.Deny) {
		t.Errorf("running is %v, %v", again.Deny, err)
	}
	c.Deny = nil
	mustApply(t, tables, c)
	mustUndeny(t, tables, "192.0.2.1/32", "2001:db8::/32")
	wantDenied(t, tables)
}

// TestDeniedTableGrows: whether sources come one by one or all at once, none is lost.
func TestDeniedTableGrows(t *testing.T) {
	tables := newTables(t, mapstest.SmallSpec(t))
	var want []string
	for i := range 1500 {
		source := fmt.Sprintf("10.1.%d.%d/32", i>>8, i&255)
		want = append(want, source+" asked")
		mustDeny(t, tables, 0, source)
	}
	wantDenied(t, tables, want...)
	var list []string
	for i := range 6000 {
		source := fmt.Sprintf("2001:db8::%x/128", i+1)
		list, want = append(list, source), append(want, source+" asked")
	}
	mustDeny(t, tables, time.Hour, list...)
	wantDenied(t, tables, want...)
	err := tables.EachDenied(func(d Denied) {
		if ends := d.Left > 0; ends != d.Source.Addr().Is6() {
			t.Errorf("%s has another source's time: %s", d.Source, d.Left)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	table, err := openOnly(tables.objs.Denied)
	if err != nil {
		t.Fatal(err)
	}
	defer table.Close()
	if size := table.MaxEntries(); size != 16384 {
		t.Errorf("room for %d, want 16384", size)
	}
	mustUndeny(t, tables, list[0])
	mustDeny(t, tables, 0, "10.1.0.0/32")
}

// TestSmallNetworksDenyAsLongAsLargeOnes whatever the order they come in, and whoever denies them.
func TestSmallNetworksDenyAsLongAsLargeOnes(t *testing.T) {
	d := compile.Denials{}
	for source, asked := range map[string]uint32{
		"10.0.0.0/8": 100, "10.1.0.0/16": 50, "10.1.1.0/24": 200, "10.1.1.128/25": 20, "10.2.0.0/16": 300, "11.0.0.0/8": 10, "11.0.0.0/16": 5,
		"::/0": 40, "2001:db8::/32": 30, "12.0.0.0/8": 1,
	} {
		d[netip.MustParsePrefix(source)] = bpf.HairpinDenial{Asked: asked}
	}
	d[netip.MustParsePrefix("2001:db8:1::/48")] = bpf.HairpinDenial{Configured: 1}
	d.Settle(1)
	want := map[string]uint32{
		"10.0.0.0/8": 100, "10.1.0.0/16": 100, "10.1.1.0/24": 200, "10.1.1.128/25": 200, "10.2.0.0/16": 300, "11.0.0.0/8": 10, "11.0.0.0/16": 10,
		"::/0": 40, "2001:db8::/32": 40, "2001:db8:1::/48": compile.Forever,
	}
	if len(d) != len(want) {
		t.Errorf("%d networks, want %d: what has ended goes", len(d), len(want))
	}
	for source, until := range want {
		if got := d[netip.MustParsePrefix(source)].Until; got != until {
			t.Errorf("%s is denied until %d, want %d", source, got, until)
		}
	}
}
