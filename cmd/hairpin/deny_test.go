// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"hairpin/maps"
	"hairpin/maps/rule"
)

// TestReadDenials: a list is read as a whole or not at all. Of a source that is listed twice the last line counts.
func TestReadDenials(t *testing.T) {
	empty := bytes.Repeat([]byte(strings.Repeat(" ", 4095)+"\n"), maxDenials/4096)
	fill := func(last string, size int) io.Reader {
		return io.MultiReader(bytes.NewReader(empty[:size-len(last)-1]), strings.NewReader("\n"+last))
	}
	const last = "198.51.100.12"
	for _, test := range []struct {
		name  string
		input io.Reader
		count int
		want  string
	}{
		{"two sources, one of them twice", strings.NewReader("192.0.2.1\n192.0.2.2\n192.0.2.1 10m\n"), 2, ""},
		{"as much as may be", fill(last, maxDenials), 1, ""},
		{"a byte more, which would cut an address", fill(last+"3", maxDenials+1), 0, "<stdin>: larger than 128 MiB"},
		{"a wrong line at the limit", fill("none", maxDenials+1), 0, "<stdin>: larger than 128 MiB"},
		{"far more", io.MultiReader(bytes.NewReader(empty), bytes.NewReader(empty)), 0, "<stdin>: larger than 128 MiB"},
		{"nothing", strings.NewReader("# none\n\n"), 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			var said bytes.Buffer
			a := &app{stdin: test.input, stderr: &said}
			denials, err := a.readDenials([]string{stdinPath})
			switch {
			case test.want != "":
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Errorf("%v, want %q", err, test.want)
				}
			case err != nil || len(denials) != test.count:
				t.Errorf("%d sources, %v; want %d", len(denials), err, test.count)
			case test.count == 2:
				source, _ := rule.ParsePrefix("192.0.2.1")
				if want := (maps.Denial{Source: source, Lasts: 10 * time.Minute}); denials[0] != want {
					t.Errorf("the first is %v, want %v", denials[0], want)
				}
			case test.count == 1 && rule.SourceText(denials[0].Source) != last:
				t.Errorf("read %s", denials[0].Source)
			}
			if warned := strings.Contains(said.String(), "lists no source"); warned != (test.name == "nothing") {
				t.Errorf("says %q", &said)
			}
		})
	}
}
