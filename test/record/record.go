// SPDX-License-Identifier: Apache-2.0

// Package record writes the results of tests into files of the repository, and compares later results with these files.
package record

import (
	"flag"
	"os"
	"strings"
	"testing"
)

// Rewrite reports whether tests write their results to the files. `make conformance`, `make devices`, `make floods`, `make torture` and
// `make man` set it.
var Rewrite = flag.Bool("rewrite", false, "write the results of a test to its file, such as those of TestConformance to CONFORMANCE.md")

// The results in the tables.
const (
	Pass = "pass"
	Fail = "**fail**"
)

// Keep writes the report to the file if Rewrite is set. Otherwise it compares the report with the file, and fails the test for each
// line that differs. command is the command that writes the file; the error message names it.
func Keep(t *testing.T, file, command, report string) {
	t.Helper()
	if *Rewrite {
		if err := os.WriteFile(file, []byte(report), 0o644); err != nil {
			t.Fatalf("write report: %v", err)
		}
		return
	}
	recorded, err := os.ReadFile(file)
	if err != nil {
		t.Fatalf("read report: %v", err)
	}
	for _, line := range differing(string(recorded), report) {
		t.Errorf("%s differs from this result; \"%s\" writes the file again:\n%s", file, command, line)
	}
}

// differing returns the lines that are in only one of the two texts, each with the name of this text.
func differing(recorded, measured string) (lines []string) {
	have := map[string]int{}
	for line := range strings.Lines(recorded) {
		have[line]++
	}
	for line := range strings.Lines(measured) {
		if have[line]--; have[line] < 0 {
			lines = append(lines, "measured "+line)
		}
	}
	for line, n := range have {
		if n > 0 {
			lines = append(lines, "recorded "+line)
		}
	}
	return lines
}
