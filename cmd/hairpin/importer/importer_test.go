// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"bytes"
	"errors"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/google/go-cmp/cmp"

	"hairpin/cmd/hairpin/toml"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// usual are the interfaces of most tests.
var usual = Options{WAN: []string{"wan0"}, LAN: []string{"lan0", "lan1"}}

var usualRouter = []netip.Addr{netip.MustParseAddr("192.168.1.1")}

// importCase is a rule set and its translation.
type importCase struct {
	name    string
	rules   string
	options *Options // nil: usual
	want    []string // forwards as "forward add" takes them
	left    []string // place and a part of the reason
	remove  []string // commands or names, in this order
}

// check compares a translation with what a case wants, and loads it as hairpin loads its file.
func (c importCase) check(t *testing.T, format string) {
	t.Helper()
	options := usual
	if c.options != nil {
		options = *c.options
	}
	result, err := Import(format, "rules", []byte(c.rules), options)
	if err != nil {
		t.Fatal(err)
	}
	var forwards []string
	for _, f := range result.Forwards {
		text := f.Forward.String()
		if f.Intercept {
			text = "intercept " + text
		}
		forwards = append(forwards, text)
	}
	if diff := cmp.Diff(c.want, forwards); diff != "" {
		t.Errorf("forwards (-want +got)\n%s", diff)
	}
	for i, l := range result.Left {
		got := l.Place + ": " + l.Reason
		if i >= len(c.left) || !containsAll(got, c.left[i]) {
			t.Errorf("left %q, want %q", got, c.left)
		}
	}
	if len(result.Left) < len(c.left) {
		t.Errorf("left %d rules, want %q", len(result.Left), c.left)
	}
	if got := slices.Concat(result.Removals, result.Names); c.remove != nil && !slices.Equal(got, c.remove) {
		t.Errorf("removals (-want +got)\n%s", cmp.Diff(c.remove, got))
	}
	text, config := load(t, result, format)
	if err := config.Validate(); err != nil {
		t.Error(err)
	}
	for _, l := range result.Left {
		if !strings.Contains(string(text), l.Place) {
			t.Errorf("the file does not name %s", l.Place)
		}
	}
}

// load writes a translation as a file, and reads the file as hairpin does.
func load(t *testing.T, result *Result, format string) ([]byte, config.Config) {
	t.Helper()
	text, err := result.TOML(format)
	if err != nil {
		t.Fatal(err)
	}
	config, err := toml.Parse("import.toml", text)
	if err != nil {
		t.Fatalf("hairpin refuses the file: %v\n%s", err, text)
	}
	if len(config.All()) != len(result.Forwards) || !slices.Equal(config.WAN, result.WAN) || !slices.Equal(config.LAN, result.LAN) {
		t.Fatalf("the file has %d forwards, WANs %q and LANs %q, but the translation has %d, %q and %q\n%s",
			len(config.All()), config.WAN, config.LAN, len(result.Forwards), result.WAN, result.LAN, text)
	}
	return text, config
}

// containsAll reports whether text has all parts of want, which are separated by " ... ".
func containsAll(text, want string) bool {
	for part := range strings.SplitSeq(want, " ... ") {
		if !strings.Contains(text, part) {
			return false
		}
	}
	return true
}

func runCases(t *testing.T, format string, cases []importCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) { c.check(t, format) })
	}
}

// brokenCase is an input that is no rule set, and what the error says of it.
type brokenCase struct{ name, rules, want string }

func runBroken(t *testing.T, format string, cases []brokenCase) {
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			result, err := Import(format, "rules", []byte(c.rules), usual)
			var problem *Problem
			if !errors.As(err, &problem) || result != nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v with result %v, want %q and none", err, result, c.want)
			}
		})
	}
}

func TestFormats(t *testing.T) {
	if _, err := Import("ntf", "rules", nil, usual); err == nil || !strings.Contains(err.Error(), `did you mean "nft"`) {
		t.Error(err)
	}
	if _, err := Import("nft", "rules", make([]byte, MaxSize+1), usual); err == nil || !strings.Contains(err.Error(), "larger than 64 MiB") {
		t.Error(err)
	}
	if _, err := Import("nft", "rules", []byte("{\n \"ü\xff\""), usual); err == nil || !strings.Contains(err.Error(), "rules:2:4: this byte is not part") {
		t.Error(err)
	}
}

// TestStrangeInterfaceNames: the kernel takes nearly every byte in the name of an interface. TOML 1.0 takes fewer escapes than Go, and
// go-toml some that are no part of TOML 1.0.
func TestStrangeInterfaceNames(t *testing.T) {
	otherEscape := regexp.MustCompile(`\\[^btnfr"\\uU]`)
	for _, name := range []string{"wan\x7f", "wan\x01\a", `wan"\'`, "w\u00e4n", "wan\u0085", "wan\u200b", "wan\U0001d173"} {
		if err := rule.CheckInterfaceName(name); err != nil {
			t.Fatal(err)
		}
		importCase{rules: "*nat\nCOMMIT\n", options: &Options{WAN: []string{name}, LAN: []string{name + "1"}}}.check(t, "iptables")
		text, err := (&Result{WAN: []string{name}}).TOML("iptables")
		if err != nil {
			t.Fatal(err)
		}
		_, line, _ := strings.Cut(string(text), "wan = ")
		line, _, _ = strings.Cut(line, "\n")
		if escape := otherEscape.FindString(strings.ReplaceAll(line, `\\`, "")); escape != "" {
			t.Errorf("%q: TOML 1.0 has no escape %s: %s", name, escape, line)
		}
		if i := unprintable(text); i >= 0 {
			t.Errorf("%q: the file has a character that is not printable: %q", name, text[i:])
		}
	}
}

// TestUnprintableInterfaceOfRules: an interface whose name a terminal could take for commands is taken only if the user names it.
func TestUnprintableInterfaceOfRules(t *testing.T) {
	const rules = "*nat\n:PREROUTING ACCEPT\n:POSTROUTING ACCEPT\n" +
		"-A PREROUTING -i wan\u009b2J -p tcp --dport 80 -j DNAT --to-destination 192.168.1.20\n" +
		"-A PREROUTING -i wan1 -p tcp --dport 81 -j DNAT --to-destination 192.168.1.20\n" +
		"-A POSTROUTING -o wan\u009b2J -j MASQUERADE\n-A POSTROUTING -o wan1 -j MASQUERADE\nCOMMIT\n"
	result, err := Import("iptables", "rules", []byte(rules), Options{LAN: []string{"lan0"}})
	if err != nil {
		t.Fatal(err)
	}
	text, _ := load(t, result, "iptables")
	if i := unprintable(text); i >= 0 || len(result.Forwards) != 1 || len(result.Left) == 0 {
		t.Errorf("%d forwards, left %+v, want 1 and a reason:\n%q", len(result.Forwards), result.Left, text)
	}
}

// unprintable returns the index of the first character that is not fit for a terminal, or -1.
func unprintable(text []byte) int {
	return bytes.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) })
}

func TestRangesOfAddresses(t *testing.T) {
	for _, c := range []struct{ first, last, want string }{
		{"10.0.0.1", "10.0.0.1", "10.0.0.1/32"},
		{"10.0.0.1", "10.0.0.6", "10.0.0.1/32 10.0.0.2/31 10.0.0.4/31 10.0.0.6/32"},
		{"0.0.0.0", "255.255.255.255", "0.0.0.0/0"},
		{"255.255.255.254", "255.255.255.255", "255.255.255.254/31"},
		{"fd00::fffe", "fd00::1:1", "fd00::fffe/127 fd00::1:0/127"},
	} {
		list, ok := readNetworks(c.first, c.last)
		if got := texts(list); !ok || got != c.want {
			t.Errorf("%s to %s: %s, want %s", c.first, c.last, got, c.want)
		}
	}
	for _, c := range [][2]string{{"10.0.0.2", "10.0.0.1"}, {"10.0.0.1", "fd00::1"}, {"10.0.0.1/33", "10.0.0.1/33"}, {"x", "x"}} {
		if list, ok := readNetworks(c[0], c[1]); ok {
			t.Errorf("%q: %v", c, list)
		}
	}
}

// without and the list make up every address, and share none.
func TestAllOtherAddresses(t *testing.T) {
	holes := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.168.1.77/32"), netip.MustParsePrefix("10.1.0.0/16")}
	rest, ok := without(false, holes)
	if !ok {
		t.Fatal("too many")
	}
	all := uint64(0)
	for _, p := range rest {
		all += 1 << (32 - p.Bits())
		if slices.ContainsFunc(holes, p.Overlaps) {
			t.Errorf("%s meets a hole", p)
		}
	}
	if want := uint64(1)<<32 - 1<<24 - 1; all != want {
		t.Errorf("%d addresses, want %d", all, want)
	}
	if list, _ := without(true, []netip.Prefix{netip.MustParsePrefix("::/0")}); len(list) != 0 {
		t.Errorf("nothing is left, but %v", list)
	}
}

func texts(list []netip.Prefix) string {
	words := make([]string, len(list))
	for i, p := range list {
		words[i] = p.String()
	}
	return strings.Join(words, " ")
}
