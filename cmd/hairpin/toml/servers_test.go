// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/maps/rule"
)

// readForwards reads a file with these forwards.
func readForwards(t *testing.T, text string) ([]rule.Forward, error) {
	t.Helper()
	cfg, err := Parse("x", []byte(text))
	return cfg.Forwards, err
}

// TestServers: a list of servers is read as the command line reads them, and what is written is read as the same.
func TestServers(t *testing.T) {
	for to, words := range map[string]string{
		`["192.168.1.20:8443", "192.168.1.21"]`:                                              "to 192.168.1.20:8443 to 192.168.1.21",
		`["192.168.1.20", { target = "192.168.1.21:8443", weight = 2 }]`:                     "to 192.168.1.20 to 192.168.1.21:8443 weight 2",
		`[{ weight = 0, target = "192.168.1.20" }, "192.168.1.21"]` + "\naffinity = \"30m\"": "to 192.168.1.20 weight 0 to 192.168.1.21 affinity 30m",
		`["192.168.1.20:8443"]`: "to 192.168.1.20:8443",
		`"192.168.1.20:8443"`:   "to 192.168.1.20:8443",
	} {
		got, err := readForwards(t, "version = 1\ninterfaces = { wan = [\"wan0\"] }\n[[forward]]\nto = "+to+"\nname = \"web\"\nprotocol = [\"tcp\"]\nport = \"443\"\n")
		if err != nil {
			t.Errorf("%s: %v", to, err)
			continue
		}
		want, err := rule.ParseForward(append([]string{"web", "tcp", "443"}, strings.Fields(words)...))
		if err != nil {
			t.Fatal(err)
		}
		same := cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{}), cmpopts.IgnoreFields(rule.Forward{}, "Source"), cmpopts.EquateEmpty()}
		if diff := cmp.Diff([]rule.Forward{want}, got, same); diff != "" {
			t.Errorf("%s (-as the command line +got)\n%s", to, diff)
		}
		text, err := format(got)
		if err != nil {
			t.Fatal(err)
		}
		again, err := readForwards(t, strings.Replace(string(text), "version = 1\n", "version = 1\ninterfaces = { wan = [\"wan0\"] }\n", 1))
		if err != nil || len(again) != 1 || again[0].String() != got[0].String() {
			t.Errorf("%s: written as\n%s\nand read as %v, %v", to, text, again, err)
		}
	}
}

// TestServersWithMistakes: each mistake is told with its line and column.
func TestServersWithMistakes(t *testing.T) {
	for to, says := range map[string]string{
		`[]`:                             "x:3:6: forward \"web\": to: the list is empty",
		`[1]`:                            "x:3:7: forward \"web\": to: \"1\" is an integer where a string or a table was expected",
		`["192.168.1.20", "nobody"]`:     "x:3:23: forward \"web\": to: \"nobody\" is not an address",
		`["192.168.1.20", { weight=1 }]`: "x:3:23: forward \"web\": to: it has no target",
		`["192.168.1.20", { target="192.168.1.21", weight=257 }]`:     "x:3:23: forward \"web\": to: 257 is not a weight",
		`["192.168.1.20", { target="192.168.1.21", wait=1 }]`:         "\"wait\" is not a key of a server",
		`["192.168.1.20", "192.168.1.20:443"]`:                        "x:3:23: forward \"web\": to: 192.168.1.20:443 is there twice",
		`["192.168.1.20", "192.168.1.21"]` + "\naffinity = 30":        "x:4:12: forward \"web\": affinity: \"30\" is an integer where a duration was expected",
		`["192.168.1.20", "192.168.1.21"]` + "\naffinity = \"1000h\"": "x:4:12: forward \"web\": affinity: 1000h0m0s is out of range",
	} {
		_, err := readForwards(t, "version = 1\n[[forward]]\nto = "+to+"\nname = \"web\"\nprotocol = [\"tcp\"]\nport = \"443\"\n")
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v\nwant %s", to, err, says)
		}
	}
}

// TestAffinityBesideAnotherMistake: a list that could not be read is the only mistake that is told.
func TestAffinityBesideAnotherMistake(t *testing.T) {
	_, err := Parse("x", []byte("version = 1\n[[forward]]\nto = [1]\naffinity = \"30m\"\nname = \"web\"\nprotocol = [\"tcp\"]\nport = \"443\"\n"))
	if err == nil || strings.Contains(err.Error(), "affinity") {
		t.Errorf("%v", err)
	}
}
