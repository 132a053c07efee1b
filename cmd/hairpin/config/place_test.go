// SPDX-License-Identifier: Apache-2.0

package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/maps"
)

// TestPlacesOfUnusualValues: the TOML parser tells no place of lists.
func TestPlacesOfUnusualValues(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"quoted key": {"version = 1\n\"datapath\" . 'mode'   =\t[]\n", []string{`x:2:25: datapath.mode: it is a list`}},
		"table":      {"version = 1\nmetrics.listen = { a = 1 }\n", []string{`x:2:18: metrics.listen: it is a table`}},
		"forwards in a list": {"version = 1\ninterfaces.wan = [\"wan0\"]\nforward = [\n  { name = \"a\" },\n  {},\n  [7],\n]\n", []string{
			`x:3:11: forward: it is a list where a table was expected`,
			`x:4:3: forward "a": protocol: it is missing`, `x:4:3: forward "a": to: it is missing`,
			`x:5:3: forward "": name: it is missing`, `x:5:3: forward "": protocol: it is missing`, `x:5:3: forward "": to: it is missing`,
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

// TestProblemsStandInTheOrderOfTheFiles, whichever of them is found first.
func TestProblemsStandInTheOrderOfTheFiles(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "hairpin.toml")
	writeFile(t, path, "version = 1\ndatapath.mode = \"x\"\n") // found when all has been read
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

// TestTheInstalledFileIsTheDefault reads what `make install` installs.
func TestTheInstalledFileIsTheDefault(t *testing.T) {
	data, err := os.ReadFile("../dist/hairpin.toml")
	if err != nil {
		t.Fatal(err)
	}
	got, err := Parse("hairpin.toml", data)
	if err != nil {
		t.Fatal(err)
	}
	want := maps.DefaultConfig()
	want.Digest, want.WAN, want.LAN = got.Digest, got.WAN, got.LAN
	if diff := cmp.Diff(want, got, values...); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
