// SPDX-License-Identifier: Apache-2.0

package program

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"hairpin/bpf"
	"hairpin/maps"
	"hairpin/test/coverage"
	"hairpin/test/rig"
)

var coverageFile = flag.String("coverage", "", "the file to which the lines of C are written that the tests have run, and those that they have not")

// covered is tests that also show which lines of C they have run, if -coverage asks for it.
type covered struct{ *testing.M }

// Run runs the tests.
func (c covered) Run() int {
	flag.Parse()
	if *coverageFile == "" {
		return c.M.Run()
	}
	seen, err := rig.Cover()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer seen.Close()
	code := c.M.Run()
	report, missed, err := coverageReport(seen)
	if err == nil {
		err = os.WriteFile(*coverageFile, []byte(report), 0o644)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "write the coverage:", err)
		return 1
	}
	if missed != 0 {
		fmt.Fprintf(os.Stderr, "%d lines or reasons were not reached, see %s\n", missed, *coverageFile)
		return 1
	}
	return code
}

func coverageReport(seen *rig.Coverage) (report string, missed int, err error) {
	run, not, blind, err := seen.Lines()
	if err != nil {
		return "", 0, err
	}
	var text strings.Builder
	files := map[string][2]int{}
	for i, lines := range [][]coverage.Line{run, not} {
		for _, line := range lines {
			counts := files[line.File]
			counts[i]++
			files[line.File] = counts
		}
	}
	names := make([]string, 0, len(files))
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		fmt.Fprintf(&text, "| %s | %d | %d |\n", name, files[name][0]+files[name][1], files[name][0])
	}
	for _, line := range not {
		fmt.Fprintf(&text, "%s: %s\n", line, seen.Text(line))
	}
	for _, line := range blind {
		fmt.Fprintf(&text, "no probe: %s: %s\n", line, seen.Text(line))
	}
	for reason := bpf.HairpinReasonREASON_NONE; reason <= bpf.HairpinReasonREASON_SOURCE_RATE; reason++ {
		if !seen.Counted(reason) {
			fmt.Fprintf(&text, "not counted: %s\n", maps.ReasonName(uint32(reason)))
		}
	}
	return text.String(), len(not), nil
}
