// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"hairpin/cmd/hairpin/toml"
)

// tabWidth is the number of spaces that an excerpt shows for a tab: a terminal's own tabs depend on the column.
const tabWidth = 4

// renderExcerpt returns the line of a problem with its number, and a second line with carets under the wrong part.
func renderExcerpt(e toml.Excerpt, styled painter) string {
	wrong := excerptText(e.Line[e.From:e.To])
	before := excerptText(e.Line[:e.From])
	carets := strings.Repeat("^", max(1, displayWidth(wrong)))
	number := fmt.Sprint(e.Number)
	return fmt.Sprintf("  %s | %s%s%s\n  %s | %s%s\n",
		number, before, styled.paint(styleRed, wrong), excerptText(e.Line[e.To:]),
		pad("", len(number)), pad("", displayWidth(before)), styled.paint(styleRed, carets))
}

// excerptText returns text as an excerpt shows it. It can be cut at any byte: each part of a broken character is escaped.
func excerptText(text string) string {
	return printable(strings.ReplaceAll(text, "\t", strings.Repeat(" ", tabWidth)))
}

func samePlace(a, b toml.Excerpt) bool {
	return a.Number == b.Number && a.From == b.From && a.Line == b.Line
}
