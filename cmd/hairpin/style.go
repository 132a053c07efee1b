// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"
	"golang.org/x/text/width"

	"hairpin/maps/rule"
)

// The values of --color.
const (
	colorAuto   = "auto"
	colorAlways = "always"
	colorNever  = "never"
)

func colorModes() []string { return []string{colorAuto, colorAlways, colorNever} }

// checkColor fails for a value of --color that is not one of colorModes.
func checkColor(mode string) error {
	if !slices.Contains(colorModes(), mode) {
		return fmt.Errorf("--color %s is not known; %s", rule.Quote(mode), rule.Suggest(mode, colorModes()...))
	}
	return nil
}

// style is the number of an SGR attribute (ECMA-48): "31" is red. "" is plain text.
type style string

const (
	stylePlain  style = ""
	styleBold   style = "1"
	styleRed    style = "31"
	styleGreen  style = "32"
	styleYellow style = "33"
	styleGray   style = "90"
)

// painter says whether an output gets colors.
type painter bool

// newPainter returns the painter of an output. With colorAuto the output gets colors if it is a terminal that knows colors, and
// NO_COLOR is not set (https://no-color.org).
func newPainter(mode string, out io.Writer, getenv func(string) string) painter {
	switch mode {
	case colorAlways:
		return true
	case colorNever:
		return false
	}
	file, isFile := out.(*os.File)
	if !isFile || getenv == nil || getenv("NO_COLOR") != "" || getenv("TERM") == "dumb" {
		return false
	}
	_, err := unix.IoctlGetTermios(int(file.Fd()), unix.TCGETS)
	return err == nil
}

// paint returns text in this style. The text must be printable already.
func (p painter) paint(s style, text string) string {
	if !bool(p) || s == stylePlain || text == "" {
		return text
	}
	return "\x1b[" + string(s) + "m" + text + "\x1b[0m"
}

// cellStyle returns the style of a cell in the column with this header.
func cellStyle(header, cell string) style {
	switch header {
	case "STATE":
		return stateStyle(cell)
	case "REFUSED":
		if cell != "0" {
			return styleYellow
		}
	}
	return stylePlain
}

// stateStyle returns the style of the state of an interface or a connection.
func stateStyle(state string) style {
	switch state {
	case "attached", rule.StateEstablished:
		return styleGreen
	case "pending", rule.StateHalfOpen:
		return styleYellow
	case "detached", rule.StateEnded:
		return styleRed
	case rule.StateClosing:
		return styleGray
	}
	return stylePlain
}

// displayWidth returns the number of columns that printable text takes on a terminal.
func displayWidth(text string) (columns int) {
	for _, r := range text {
		columns += runeWidth(r)
	}
	return columns
}

func runeWidth(r rune) int {
	if r < 0x80 {
		return 1
	}
	if unicode.In(r, unicode.Mn, unicode.Me) { // combining marks
		return 0
	}
	switch width.LookupRune(r).Kind() {
	case width.EastAsianWide, width.EastAsianFullwidth:
		return 2
	}
	return 1
}

// pad returns spaces that fill text up to this number of columns.
func pad(text string, columns int) string {
	return strings.Repeat(" ", max(0, columns-displayWidth(text)))
}
