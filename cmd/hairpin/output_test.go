// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/cmd/hairpin/router"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

func TestPrintable(t *testing.T) {
	for text, want := range map[string]string{
		"plain":              "plain",
		"two\nlines":         "two\nlines",
		"Grüße, 世界":          "Grüße, 世界",
		"\x1b[31mred":        `\x1b[31mred`,
		"bell\a tab\t":       `bell\x07 tab\x09`,
		"broken \xff\xfe":    `broken \xff\xfe`,
		"right\u202eto left": `right\u202eto left`,
		"a real \ufffd":      "a real \ufffd",
	} {
		if got := printable(text); got != want {
			t.Errorf("printable(%q) = %q, want %q", text, got, want)
		}
	}
}

// TestTable: any text in a cell leaves the rows and columns intact.
func TestTable(t *testing.T) {
	var out bytes.Buffer
	table := newTable(&out, "NAME", "VALUE", "LAST")
	table.row("a", "", "x")
	table.row("longer", "b\nc\td", "\x1b[2J")
	if err := table.flush(); err != nil {
		t.Fatal(err)
	}
	want := "NAME    VALUE      LAST\n" +
		"a       -          x\n" +
		"longer  b\\nc\\x09d  \\x1b[2J\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
}

// TestTableOfSeveralBlocks: columns of later blocks are aligned with earlier blocks.
func TestTableOfSeveralBlocks(t *testing.T) {
	var out bytes.Buffer
	table := newTable(&out, "NAME", "VALUE")
	table.row("the longest", "x")
	for range 2 * tableBlock {
		table.row("a", "y")
	}
	if err := table.flush(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 2+2*tableBlock || lines[0] != "NAME         VALUE" || lines[len(lines)-1] != "a            y" {
		t.Errorf("%d lines, from %q to %q", len(lines), lines[0], lines[len(lines)-1])
	}
}

// TestForwardJSON: the JSON fields of a forward with few keys and of a forward with all keys.
func TestForwardJSON(t *testing.T) {
	cfg := config.Default()
	cfg.Reflection = rule.ReflectRouter
	var rows []forwardRow
	for _, f := range []rule.Forward{
		{
			Name: "all", Protocols: []rule.Protocol{rule.TCP, rule.UDP}, External: rule.External{Interface: "wan0"},
			Ports: rule.Ports{First: 6000, Last: 6010}, Target: netip.MustParseAddr("192.168.1.20"), TargetPort: 7000,
			From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Reflect: rule.ReflectOff, Source: "a.toml:3",
		},
		{Name: "little", Protocols: []rule.Protocol{rule.TCP}, Target: netip.MustParseAddr("192.168.1.20"), Source: router.SourceCLI},
		{
			Name: "six", Protocols: []rule.Protocol{rule.TCP}, External: rule.External{Address: netip.MustParseAddr("2001:db8::1")},
			Ports: rule.Ports{First: 443, Last: 443}, Target: netip.MustParseAddr("fd00::20"), From: []netip.Prefix{netip.MustParsePrefix("2001:db8::/32")}, Source: router.SourceCLI,
		},
	} {
		rows = append(rows, newForwardRow(cfg, f))
	}
	var out, errs bytes.Buffer
	a := newApp(env{stdout: &out, stderr: &errs})
	if err := a.printJSON("forwards", rows); err != nil {
		t.Fatal(err)
	}
	a.finish(nil)
	want := `{"schema":1,"forwards":[` +
		`{"name":"all","protocol":["tcp","udp"],"external":"wan0","port":"6000-6010","target":"192.168.1.20:7000-7010","reflect":"off","from":["10.0.0.0/8"],"enabled":true,"source":"a.toml:3","connections":0,"packets":0,"bytes":0,"refused":0},` +
		`{"name":"little","protocol":["tcp"],"external":"","port":"any","target":"192.168.1.20","reflect":"router","from":[],"enabled":true,"source":"cli","connections":0,"packets":0,"bytes":0,"refused":0},` +
		`{"name":"six","protocol":["tcp"],"external":"2001:db8::1","port":"443","target":"[fd00::20]:443","reflect":"router","from":["2001:db8::/32"],"enabled":true,"source":"cli","connections":0,"packets":0,"bytes":0,"refused":0}]}` + "\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Errorf("document (-want +got):\n%s", diff)
	}
}

// TestExternalCell: EXTERNAL has the addresses of now with their interfaces, as far as they fit.
func TestExternalCell(t *testing.T) {
	cfg := config.Default()
	cfg.WAN = []string{"wan0", "wan1"}
	at := func(list ...string) (all []netip.Addr) {
		for _, text := range list {
			all = append(all, netip.MustParseAddr(text))
		}
		return all
	}
	v4, v6 := netip.MustParseAddr("192.168.1.20"), netip.MustParseAddr("fd00::20")
	listens := map[rule.Place][]netip.Addr{
		rule.AtWAN("wan0", false): at("203.0.113.2", "203.0.113.3"), rule.AtWAN("wan1", false): at("198.51.100.2"),
		rule.AtWAN("wan0", true): at("2001:db8::2", "2001:db8:1111:2222:3333:4444:5555:6666", "2001:db8:1111:2222:3333:4444:5555:7777"),
	}
	for _, c := range []struct {
		forward rule.Forward
		want    string
		count   int
	}{
		{rule.Forward{Target: v4}, "203.0.113.2, 203.0.113.3 (wan0), 198.51.100.2 (wan1)", 3},
		{rule.Forward{Target: v4, External: rule.External{Interface: "wan1"}}, "198.51.100.2 (wan1)", 1},
		{rule.Forward{Target: v6, External: rule.External{Interface: "wan1"}}, "wan1 (no address)", 0},
		{rule.Forward{Target: v6}, "2001:db8::2, 2001:db8:1111:2222:3333:4444:5555:6666, 1 more", 3},
		{rule.Forward{Target: v4, External: rule.External{Address: netip.MustParseAddr("203.0.113.9")}}, "203.0.113.9", 1},
		{rule.Forward{Target: v4, Intercept: true, LAN: []string{"lan0", "lan1"}}, "any@lan0,lan1", 0},
	} {
		row := newForwardRow(cfg, c.forward)
		row.setListens(cfg, &c.forward, listens)
		if got := row.externalCell(nil); got != c.want || len(row.Listens) != c.count || row.Listens == nil {
			t.Errorf("%v: %q with %d addresses, want %q with %d", c.forward, got, len(row.Listens), c.want, c.count)
		}
	}
	row := newForwardRow(config.Default(), rule.Forward{Target: v4})
	row.setListens(config.Default(), &rule.Forward{Target: v4}, listens)
	if got := row.externalCell(nil); got != "any (no address)" {
		t.Errorf("without a WAN: %q", got)
	}
}
