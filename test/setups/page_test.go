// SPDX-License-Identifier: Apache-2.0

package setups

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// block is a fenced block of a page.
type block struct {
	section  string // the heading above
	language string
	path     string // of a file; empty: a block of commands or of something else
	text     string
}

// blocksOf returns the fenced blocks of a page of cmd/hairpin/doc. A block whose first line is a comment with a path is a file.
// A script has its path in the second line.
func blocksOf(t *testing.T, page string) (blocks []block) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("../../cmd/hairpin/doc", page))
	if err != nil {
		t.Fatal(err)
	}
	section, open := "", false
	var b block
	for line := range strings.Lines(string(text)) {
		fence, isFence := strings.CutPrefix(strings.TrimSpace(line), "```")
		switch {
		case isFence && !open:
			open, b = true, block{section: section, language: fence}
		case isFence:
			open, blocks = false, append(blocks, b)
		case open:
			if b.text == "" || strings.HasPrefix(b.text, "#!") && strings.Count(b.text, "\n") == 1 {
				b.path = pathIn(line)
			}
			b.text += line
		case strings.HasPrefix(line, "## "):
			section = strings.TrimSpace(line[3:])
		}
	}
	if open || len(blocks) == 0 {
		t.Fatalf("%s: a fence is missing", page)
	}
	return blocks
}

// blocksIn returns the blocks of these sections. Each section has some.
func blocksIn(t *testing.T, blocks []block, sections ...string) (found []block) {
	t.Helper()
	for _, section := range sections {
		before := len(found)
		for _, b := range blocks {
			if b.section == section {
				found = append(found, b)
			}
		}
		if len(found) == before {
			t.Fatalf("the page has no section %q", section)
		}
	}
	return found
}

// pathIn returns the path in a comment such as "# /etc/file" or "<!-- /etc/file -->", or "".
func pathIn(line string) string {
	line = strings.TrimSpace(line)
	line = strings.TrimSuffix(strings.TrimPrefix(strings.TrimPrefix(line, "#"), "<!--"), "-->")
	if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") && !strings.Contains(line, " ") {
		return line
	}
	return ""
}
