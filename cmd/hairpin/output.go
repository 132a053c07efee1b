// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// documentSchema is the version of the JSON documents. A version may only add fields.
const documentSchema = 1

// say prints a message for the user to stderr; -q silences it.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintln(a.stderr, printable(fmt.Sprintf(format, args...)))
	}
}

const warningPrefix = "warning:"

// warn prints a warning: a message about something that the user should correct. -q silences it.
func (a *app) warn(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintln(a.stderr, a.styledErr.paint(styleYellow, warningPrefix), printable(fmt.Sprintf(format, args...)))
	}
}

// printJSON writes one document: {"schema":1,"<name>":value}, on one line.
func (a *app) printJSON(name string, value any) error {
	body, err := encodeJSON(value)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	_, err = fmt.Fprintf(a.out, "{\"schema\":%d,%q:%s}\n", documentSchema, name, body)
	return err
}

// jsonList prints one JSON document with a list of any length, item by item.
type jsonList struct {
	out   *bufio.Writer
	name  string
	items int
}

func (a *app) newJSONList(name string) *jsonList { return &jsonList{out: a.out, name: name} }

func (l *jsonList) add(item any) error {
	body, err := encodeJSON(item)
	if err != nil {
		return fmt.Errorf("encode %s: %w", l.name, err)
	}
	if l.items++; l.items == 1 {
		l.begin()
	} else {
		l.out.WriteByte(',')
	}
	_, err = l.out.Write(body)
	return err
}

// begin prints the start of the document, with the first item or at the end. So a list that fails earlier
// prints nothing.
func (l *jsonList) begin() { fmt.Fprintf(l.out, "{\"schema\":%d,%q:[", documentSchema, l.name) }

func (l *jsonList) end() error {
	if l.items == 0 {
		l.begin()
	}
	_, err := l.out.WriteString("]}\n")
	return err
}

func encodeJSON(value any) ([]byte, error) {
	var body bytes.Buffer
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	err := encoder.Encode(value)
	return bytes.TrimSuffix(body.Bytes(), []byte{'\n'}), err
}

// tableBlock is the number of rows that a table prints at a time.
const tableBlock = 1024

// table aligns cells in columns, as ip and wg do: two spaces between columns, no lines, no spaces after the
// last column. It prints a block of rows at a time. Each block uses the widest cells up to and including
// this block.
type table struct {
	out    io.Writer
	styled painter
	header []string
	begun  bool // the header is printed
	rows   [][]string
	widths []int // in columns of a terminal
}

func newTable(out io.Writer, header ...string) *table {
	t := &table{out: out, header: header, widths: make([]int, len(header))}
	t.row(header...)
	return t
}

// newTable returns a table on stdout.
func (a *app) newTable(header ...string) *table {
	t := newTable(a.out, header...)
	t.styled = a.styled
	return t
}

// none is what people read instead of an empty list.
const none = "(none)"

func (a *app) printNone() error {
	_, err := fmt.Fprintln(a.out, a.styled.paint(styleGray, none))
	return err
}

func (t *table) row(cells ...string) {
	row := make([]string, len(cells))
	for i, cell := range cells {
		if cell == "" {
			cell = "-"
		}
		row[i] = strings.ReplaceAll(printable(cell), "\n", `\n`)
		t.widths[i] = max(t.widths[i], displayWidth(row[i]))
	}
	if t.rows = append(t.rows, row); len(t.rows) == tableBlock {
		t.flush()
	}
}

// flush prints the rows of the block. The writer keeps its first error, so flush also returns an error of
// an earlier block.
func (t *table) flush() error {
	var block strings.Builder
	for _, row := range t.rows {
		last := len(row) - 1
		for i, cell := range row {
			look := styleBold
			if t.begun {
				look = cellStyle(t.header[i], cell)
			}
			block.WriteString(t.styled.paint(look, cell))
			if i < last {
				block.WriteString(pad(cell, t.widths[i]+2))
			}
		}
		block.WriteByte('\n')
		t.begun = true
	}
	t.rows = t.rows[:0]
	_, err := io.WriteString(t.out, block.String())
	return err
}

// printable escapes control characters: a name of a file or an interface may contain any byte, and control
// characters could move the cursor or change colors. Line ends stay.
func printable(text string) string {
	clean := func(r rune) bool { return r == '\n' || unicode.IsPrint(r) }
	if strings.IndexFunc(text, func(r rune) bool { return r == unicode.ReplacementChar || !clean(r) }) < 0 {
		return text
	}
	var b strings.Builder
	for i, r := range text {
		switch {
		case r == unicode.ReplacementChar && !strings.HasPrefix(text[i:], string(r)):
			fmt.Fprintf(&b, `\x%02x`, text[i])
		case clean(r):
			b.WriteRune(r)
		case r < 0x80:
			fmt.Fprintf(&b, `\x%02x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	return b.String()
}

// count formats a number with its noun: "1 forward", "2 forwards".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// clip shortens an argument for a message.
func clip(text string) string {
	const limit = 64
	if len(text) <= limit {
		return text
	}
	return text[:limit] + "..."
}
