// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/maps/config"
)

// TestPlacesOfItems: a problem of a list item has the line of the item, whether reading or validating finds
// it.
func TestPlacesOfItems(t *testing.T) {
	const forward = "[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\nport = 80\nto = \"10.0.0.1\"\n"
	const intercept = "[[intercept]]\nname = \"i\"\nport = 53\nto = \"10.0.0.9\"\n"
	for name, test := range map[string]struct {
		text string
		want []string // places, and the fields of the problems
	}{
		"what an item is": {"[interfaces]\nwan = [\n  \"wan0\", # ] the first\n\n  [1], {}, 7,\n  'x',\n  true,\n]\n", []string{
			`x:6:3: interfaces.wan: it is a list`, `x:6:8: interfaces.wan: it is a table`, `x:6:12: interfaces.wan: "7"`, `x:8:3: interfaces.wan: "true"`,
		}},
		"behind items that are not over on their line": {"interfaces.wan = [\n  [ # [\n    [\"]\"],\n  ], { a = [\n  1], b = \"\"\"\n]\"\"\" },\n  1979-05-27 07:32:00, 1.5,\n]\n", []string{
			`x:3:3: interfaces.wan: it is a list`, `x:5:6: interfaces.wan: it is a table`, `x:8:3: interfaces.wan: "1979-05-27 07:32:00"`, `x:8:24: interfaces.wan: "1.5"`,
		}},
		"interfaces": {"[interfaces]\nwan = [\n  \"wan0\",\n  \"a b\",\n]\nlan = [\n  \"lan0\",\n  \"wan0\",\n]\n", []string{
			`x:5:3: interfaces.wan: "a b" cannot be`, `x:9:3: interfaces.lan: "wan0" is already`,
		}},
		"settings": {"interfaces.wan = \"wan0\"\nicmp.refuse = [\n\"lan\",\n\"dmz\"]\ndatapath.mss_clamp = [\n\"wan0\",\n\"wan1\",\n\"wan2\",\n]\n" +
			"[dns.write]\nhosts = \"/h\"\n[dns.reload]\nhosts = [\n\"a\",\n\"b\\u0000\"]\n", []string{
			`x:5:1: icmp.refuse: "dmz"`, `x:8:1: datapath.mss_clamp: "wan1"`, `x:9:1: datapath.mss_clamp: "wan2"`, `x:16:1: dns.reload.hosts: `,
		}},
		"a forward": {"interfaces.wan = \"wan0\"\n" + forward + "from = [\n\"10.0.0.0/8\",\n\"10.0.0.1/8\",\n\"y\",\n]\nhosts = [\n\"a.b\",\n\"c d\",\n]\n", []string{
			`x:10:1: forward "a": from: "10.0.0.1/8"`, `x:11:1: forward "a": from: "y"`, `x:15:1: forward "a": hosts: "c d"`,
		}},
		"a forward beside its other keys": {"interfaces.wan = \"wan0\"\n" + forward + "from = [\n\"10.0.0.0/8\",\n\"fd00::/8\",\n]\nhosts = [\n\"a.b\",\n\"A.b\",\n]\n", []string{
			`x:10:1: forward "a": from: fd00::/8 is an IPv6`, `x:14:1: forward "a": hosts: a.b is there twice`,
		}},
		"protocols": {"interfaces.wan = \"wan0\"\n[[forward]]\nname = \"a\"\nto = \"10.0.0.1\"\nprotocol = [\n\"tcp\",\n\"udp\",\n\"tcp\",\n]\n", []string{
			`x:9:1: forward "a": protocol: tcp is there twice`,
		}},
		"an intercept": {"interfaces.lan = \"lan0\"\n" + intercept + "protocol = [\n\"tcp\",\n\"sctp\"]\nlan = [\n\"lan0\",\n\"lan7\"]\nexcept = [\n\"10.0.0.3\",\n\"0.0.0.0/0\"]\n", []string{
			`x:9:1: intercept "i": protocol: sctp`, `x:12:1: intercept "i": lan: "lan7"`, `x:15:1: intercept "i": except: 0.0.0.0/0`,
		}},
	} {
		_, err := Parse("x", []byte("version = 1\n"+test.text))
		if err == nil {
			t.Errorf("%s: taken", name)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != len(test.want) {
			t.Errorf("%s: %d problems, want %d:\n%v", name, len(lines), len(test.want), err)
			continue
		}
		for i, line := range lines {
			if !strings.HasPrefix(line, test.want[i]) {
				t.Errorf("%s:\ngot  %s\nwant %s", name, line, test.want[i])
			}
		}
	}
}

// TestPlacesOfUnusualValues: the TOML parser gives no offset for arrays.
func TestPlacesOfUnusualValues(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"quoted key": {"version = 1\n\"datapath\" . 'mode'   =\t[]\n", []string{`x:2:25: datapath.mode: it is a list`}},
		"table":      {"version = 1\nmetrics.listen = { a = 1 }\n", []string{`x:2:18: metrics.listen: it is a table`}},
		"forwards in a list": {"version = 1\ninterfaces.wan = [\"wan0\"]\nforward = [\n  { name = \"a\" },\n  {},\n  [7],\n]\n", []string{
			`x:4:3: forward "a": protocol: it is missing`, `x:4:3: forward "a": to: it is missing`,
			`x:5:3: forward "": name: it is missing`, `x:5:3: forward "": protocol: it is missing`, `x:5:3: forward "": to: it is missing`,
			`x:6:3: forward: it is a list where a table was expected`,
		}},
		"CRLF": {"version = 1\r\n[metrics]\r\nlisten = [\r\n]\r\n", []string{`x:3:10: metrics.listen: it is a list`}},
	} {
		_, err := Parse("x", []byte(test.text))
		if err == nil {
			t.Errorf("%s: taken", name)
			continue
		}
		lines := strings.Split(err.Error(), "\n")
		for _, want := range test.want {
			if !strings.Contains("\n"+err.Error(), "\n"+want) {
				t.Errorf("%s:\n%v\nlacks\n%s", name, err, want)
			}
		}
		if len(lines) != len(test.want) {
			t.Errorf("%s: %d problems, want %d:\n%v", name, len(lines), len(test.want), err)
		}
	}
}

// TestProblemsStandInTheOrderOfTheFiles: problems are sorted by file, whichever is found first.
func TestProblemsStandInTheOrderOfTheFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hairpin.toml")
	writeFile(t, path, "version = 1\ndatapath.mode = \"x\"\n") // validate finds this problem, after all files are read
	writeFile(t, filepath.Join(dir, DropInDir, "a.toml"), "versoin = 1\n")
	_, err := Load(path)
	if err == nil {
		t.Fatal("taken")
	}
	want := dir + "/hairpin.toml:2:17: datapath.mode: \"x\" is not a mode; possible are auto, xdp, xdp-untagged and tc\n" +
		dir + "/forwards.d/a.toml:1:1: unknown key \"versoin\"; did you mean \"version\"?"
	if err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
}

// TestTheInstalledFileIsTheDefault reads the file that "make install" installs.
func TestTheInstalledFileIsTheDefault(t *testing.T) {
	data, err := os.ReadFile("../dist/hairpin.toml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("hairpin.toml", data)
	if err != nil {
		t.Fatal(err)
	}
	want := config.Default()
	want.Digest, want.WAN, want.LAN = got.Digest, got.WAN, got.LAN
	if diff := cmp.Diff(want, got, values...); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
