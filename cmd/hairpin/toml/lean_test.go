// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestLeanReadingReadsTheSame: reading without positions gives the same rules, in the same order.
func TestLeanReadingReadsTheSame(t *testing.T) {
	block := func(kind, name string, port int) string {
		return fmt.Sprintf("[[%s]]\nname = %q\nprotocol = \"udp\"\nport = %d\nto = \"10.0.0.%d\"\n", kind, name, port, port)
	}
	f, i := func(n int) string { return block("forward", fmt.Sprint("f", n), n) }, func(n int) string { return block("intercept", fmt.Sprint("i", n), n) }
	const head = "version = 1\n[interfaces]\nwan = \"wan0\"\nlan = \"lan0\"\n"
	for name, texts := range map[string][]string{
		"no rules":                 {head},
		"one":                      {head + f(1)},
		"forwards":                 {head + f(1) + f(2) + f(3)},
		"intercepts between":       {head + f(1) + f(2) + i(3) + f(4) + i(5) + f(6)},
		"an intercept first":       {head + i(1) + f(2) + f(3)},
		"settings behind":          {"version = 1\n" + f(1) + f(2) + "[interfaces]\nwan = \"wan0\"\nlan = \"lan0\"\n"},
		"several files":            {head + f(1) + i(2) + f(3), f(4) + f(5) + i(6) + f(7), i(8)},
		"everything":               {full},
		"forwards in a list":       {head + "[x]\n", "forward = [{ name = \"a\", protocol = \"tcp\", port = 1, to = \"10.0.0.1\" }, { name = \"b\", protocol = \"tcp\", port = 2, to = \"10.0.0.1\" }]"},
		"tables of rules, wrong":   {head + f(1) + "[forward.x]\ny = 1\n" + f(2)},
		"a number that is none":    {head + f(1) + "x = 99999999999999999999\n" + f(2)},
		"two wrong ones":           {head + strings.Replace(f(1), "10.0.0.1", "x", 1) + f(2) + strings.Replace(f(3), "udp", "u", 1)},
		"wrong only beside others": {head + f(1) + f(2) + strings.Replace(f(3), "port = 3", "port = 1", 1)},
	} {
		var sources []source
		for n, text := range texts {
			sources = append(sources, source{name: fmt.Sprint(n), data: []byte(text), dropIn: n > 0})
		}
		whole := newReader(false)
		whole.read(sources)
		got, err := parse(sources)
		if (err != nil) != (len(whole.problems) > 0) || err != nil && err.Error() != joinSorted(whole.problems, sources).Error() {
			t.Errorf("%s: %v, want %v", name, err, whole.problems)
		}
		if err != nil {
			continue
		}
		got.Digest = ""
		if diff := cmp.Diff(whole.cfg, got, values...); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// TestReadingHoldsLittle: reading needs little memory in addition to the forwards and the file.
func TestReadingHoldsLittle(t *testing.T) {
	const forwards, each = 20_000, 2048
	var text strings.Builder
	text.WriteString("version = 1\ninterfaces.wan = \"wan0\"\n")
	for i := range forwards {
		fmt.Fprintf(&text, "[[forward]]\nname = \"f%d\"\nprotocol = \"tcp\"\nport = %d\nto = \"10.0.0.1\"\n", i, i+1)
	}
	data := []byte(text.String())
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Parse("x.toml", data); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if allocated := (after.TotalAlloc - before.TotalAlloc) / forwards; allocated > each {
		t.Errorf("%d bytes were allocated for each forward, want at most %d", allocated, each)
	} else {
		t.Logf("%d bytes for each forward", allocated)
	}
}
