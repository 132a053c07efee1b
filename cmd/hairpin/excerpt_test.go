// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/cmd/hairpin/toml"
)

// rendered returns the excerpts of the problems of a configuration.
func rendered(t *testing.T, text string) string {
	t.Helper()
	_, err := toml.Parse("x", []byte(text))
	if err == nil {
		t.Fatalf("%q has no problem", text)
	}
	var all strings.Builder
	for _, e := range toml.Excerpts(invalid(err)) {
		all.WriteString(renderExcerpt(e, false))
	}
	return all.String()
}

// TestExcerpts: the carets are below the wrong part, whatever is before it on the line.
func TestExcerpts(t *testing.T) {
	const head = "version = 1\ninterfaces.wan = [\"wan0\"]\n"
	long := strings.Repeat("x", 200)
	for _, c := range []struct{ name, text, want string }{
		{"a number", head + "metrics.listen = 7\n", `
  3 | metrics.listen = 7
    |                  ^
`},
		{"an item behind a tab", head + "interfaces.lan\t= [\t\"lan0\",\t\"a b\" ] # x\n", `
  3 | interfaces.lan    = [    "lan0",    "a b" ] # x
    |                                     ^^^^^
`},
		{"wide characters, an accent and a combining mark before it", head + "interfaces.lan = [\"世界\", \"é\", \"e\u0301\", \"a b\"]\n", `
  3 | interfaces.lan = ["世界", "é", "e` + "\u0301" + `", "a b"]
    |                                     ^^^^^
`},
		{"wide characters that are wrong", head + "datapath.mode = \"世界\" # 世\n", `
  3 | datapath.mode = "世界" # 世
    |                 ^^^^^^
`},
		{"a quote in the string", head + `datapath.mode = "a\"b" # "` + "\n", `
  3 | datapath.mode = "a\"b" # "
    |                 ^^^^^^
`},
		{"a character that turns the direction of text", head + "# red\ninterfaces.lan = 'a\u202eb c'\n", `
  4 | interfaces.lan = 'a\u202eb c'
    |                  ^^^^^^^^^^^^
`},
		{"broken characters", "version = 1\ndatapath.mode = \"a\xff\xfeb\"\n", `
  2 | datapath.mode = "a\xff\xfeb"
    |                   ^^^^^^^^^
`},
		{"a byte order mark", "\ufeffversion = 1\n", `
  1 | \ufeffversion = 1
    | ^^^^^^^^^^^^^
`},
		{"a syntax error at the end of the line, CR LF", "version = 1\r\n[interfaces\r\nwan = 7\r\n", `
  2 | [interfaces
    |            ^
`},
		{"a key", head + "\t\tversoin.x = 3\n", `
  3 |         versoin.x = 3
    |         ^^^^^^^^^
`},
		{"the name of a section", head + "[[forward]]\nname = \"a\"\nprotocol = \"tcp\"\n", `
  3 | [[forward]]
    |   ^^^^^^^
`},
		{"an empty file", "", `
  1 | 
    | ^
`},
		{"a long line", head + "interfaces.lan = [\"" + long + "\", \"a b\", \"" + long + "\"]\n", `
  3 | interfaces.lan = ["` + long[:99] + `...
    |                   ` + strings.Repeat("^", 100) + `
  3 | ...` + long[:57] + `", "a b", "` + long[:92] + `...
    |    ` + strings.Repeat(" ", 60) + `^^^^^
  3 | ...` + long[:50] + `", "a b", "` + long[:99] + `...
    |    ` + strings.Repeat(" ", 60) + strings.Repeat("^", 100) + `
`},
	} {
		if diff := cmp.Diff(strings.TrimPrefix(c.want, "\n"), rendered(t, c.text)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

// TestReportShowsAllProblems: every problem is reported, and one excerpt follows the problems of one place.
func TestReportShowsAllProblems(t *testing.T) {
	const text = "version = 1\ninterfaces.wan = \"wan0\"\n[[forward]]\nport = 99999\n[metrics]\nlisten = 7\n"
	_, err := toml.Parse("x", []byte(text))
	stderr := &strings.Builder{}
	if code := newApp(env{stdout: &strings.Builder{}, stderr: stderr}).finish(invalid(err)); code != exitInvalid {
		t.Errorf("exit code %d, want %d", code, exitInvalid)
	}
	want := `hairpin: x:3:3: forward "": name: it is missing
hairpin: x:3:3: forward "": protocol: it is missing
hairpin: x:3:3: forward "": to: it is missing
  3 | [[forward]]
    |   ^^^^^^^
hairpin: x:4:8: forward "": port: "99999" is not a port; a port is a number from 1 to 65535, a range is written 6000-6010
  4 | port = 99999
    |        ^^^^^
hairpin: x:6:10: metrics.listen: "7" is an integer where a string was expected
  6 | listen = 7
    |          ^
`
	if diff := cmp.Diff(want, stderr.String()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
