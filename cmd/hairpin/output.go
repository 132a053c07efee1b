// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"unicode"
)

// documentSchema is the version of the JSON documents: within one, fields are
// only ever added.
const documentSchema = 1

// say talks to the user, on stderr; -q silences it.
func (a *app) say(format string, args ...any) {
	if !a.quiet {
		fmt.Fprintln(a.stderr, printable(fmt.Sprintf(format, args...)))
	}
}

// warn tells of something the user should mend; -q silences it.
func (a *app) warn(format string, args ...any) {
	a.say("warning: "+format, args...)
}

// printJSON writes one document: {"schema":1,"<name>":value}, on one line.
func (a *app) printJSON(name string, value any) error {
	head, err := json.Marshal(name)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	var body strings.Builder
	encoder := json.NewEncoder(&body)
	encoder.SetEscapeHTML(false)
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	_, err = fmt.Fprintf(a.out, "{\"schema\":%d,%s:%s}\n", documentSchema, head, strings.TrimSuffix(body.String(), "\n"))
	return err
}

// table aligns rows of cells in columns, as ip and wg users expect: two spaces
// between them, no frames, nothing after the last.
type table struct {
	writer *tabwriter.Writer
}

func newTable(out io.Writer, header ...string) *table {
	t := &table{tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)}
	t.row(header...)
	return t
}

func (t *table) row(cells ...string) {
	for i, cell := range cells {
		if i > 0 {
			fmt.Fprint(t.writer, "\t")
		}
		if cell == "" {
			cell = "-"
		}
		fmt.Fprint(t.writer, strings.ReplaceAll(printable(cell), "\n", `\n`))
	}
	fmt.Fprint(t.writer, "\n")
}

func (t *table) flush() error {
	return t.writer.Flush()
}

// printable escapes what could move the cursor or change colours: names of
// files and interfaces may hold any byte. Line ends stay.
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

// count is a number with its noun: "1 forward", "2 forwards".
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// clip shortens what a user typed to what fits in a message.
func clip(text string) string {
	const limit = 64
	if len(text) <= limit {
		return text
	}
	return text[:limit] + "..."
}
