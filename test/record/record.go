// SPDX-License-Identifier: Apache-2.0

// Package record keeps in files of the repository what tests found out, and compares what they find with the files.
package record

import (
	"flag"
	"os"
	"strings"
	"testing"
)

// Rewrite is set by `make conformance`, `make devices` and `make floods`.
var Rewrite = flag.Bool("rewrite", false, "write what TestConformance, TestDevices or TestFloods finds into CONFORMANCE.md, DEVICES.md or FLOODS.md")

// The results, as the table names them.
const (
	Pass = "pass"
	Fail = "**fail**"
)

// Keep writes what was found to a file with -rewrite. Without, the test fails where the file says anything else; the command
// writes the file anew.
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
		t.Errorf("%s is not what was measured (%s writes it anew):\n%s", file, command, line)
	}
}

// differing lists the lines that only one of two texts has.
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
