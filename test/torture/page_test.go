// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestSecurityPage: every scenario that the page about security names exists, and TORTURE.md has a line for every scenario.
func TestSecurityPage(t *testing.T) {
	page, err := os.ReadFile("../../cmd/hairpin/doc/security.md")
	if err != nil {
		t.Fatal(err)
	}
	table, err := os.ReadFile("../" + tortureFile)
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) != 5 {
			continue
		}
		for _, word := range regexp.MustCompile(`^[0-9, ]+`).FindAllString(strings.TrimSpace(cells[3]), 1) {
			for number := range strings.SplitSeq(word, ",") {
				n, err := strconv.Atoi(strings.TrimSpace(number))
				if err != nil {
					continue
				}
				named++
				if !slices.ContainsFunc(scenarios(), func(s scenario) bool { return s.number == n }) {
					t.Errorf("no scenario %d: %s", n, line)
				}
			}
		}
	}
	if named == 0 {
		t.Error("the page names no scenario")
	}
	for _, s := range append(scenarios(), oracle) {
		if begin := "| " + strconv.Itoa(s.number) + " | " + s.name + " |"; !strings.Contains(string(table), begin) {
			t.Errorf("%s has no line that begins %q; make torture writes the file", tortureFile, begin)
		}
	}
}
