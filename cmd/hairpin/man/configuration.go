// SPDX-License-Identifier: Apache-2.0

package man

import (
	"fmt"
	"regexp"
	"strings"

	"github.com/cpuguy83/go-md2man/v2/md2man"
)

// What a line of the installed configuration file can be, besides an empty one. A key or a table may be commented out: the line is
// then an example.
var (
	tableLine = regexp.MustCompile(`^(?:# )?(\[\[?[a-z_]+\]\]?)(?: +# ?(.*))?$`)
	keyLine   = regexp.MustCompile(`^(?:# )?([a-z_]+) = (.+?)(?: {2,}# (.*))?$`)
	moreLine  = regexp.MustCompile(`^(?:#? {10,})# ?(.*)$`) // of the comment beside the key or table above
	textLine  = regexp.MustCompile(`^#(?: (.*))?$`)
)

// ownLine matches a line of a comment that begins the explanation of one value, "auto: XDP and TC ...", or a sentence.
var ownLine = regexp.MustCompile(`^([a-z-]+: |[A-Z][a-z]* )`)

// Configuration returns hairpin.toml(5) in the format of man(7), from the text of the installed configuration file. It returns an
// error that names the first line whose meaning is not clear.
func Configuration(file string) ([]byte, error) {
	var page strings.Builder
	title(&page, "hairpin.toml 5", "File Formats")
	section(&page, "NAME")
	page.WriteString("hairpin.toml - configuration of hairpin\n\n")
	section(&page, "DESCRIPTION")
	page.WriteString("The file is in the format TOML. An unknown key, and a value of a wrong type, is an error. " +
		"Each key is shown with its default, or with an example.\n\n")

	w := writer{page: &page}
	for number, line := range strings.Split(file, "\n") {
		if number == 0 {
			continue // the licence
		}
		if !w.line(line) {
			return nil, fmt.Errorf("line %d is no table, key or comment: %s", number+1, line)
		}
	}
	w.end()

	section(&page, "SEE ALSO")
	page.WriteString("**hairpin**(8)\n")
	return md2man.Render([]byte(page.String())), nil
}

// writer collects what belongs together: the lines of a text, or a key with the comment beside it.
type writer struct {
	page *strings.Builder
	text []string
	key  string   // as the file has it: key = value
	said []string // the comment of the key
}

func (w *writer) line(line string) bool {
	if match := moreLine.FindStringSubmatch(line); match != nil {
		if w.key != "" {
			w.said = append(w.said, match[1])
		} else {
			w.text = append(w.text, match[1])
		}
		return true
	}
	if match := tableLine.FindStringSubmatch(line); match != nil {
		above := w.text // the text directly above a table is about the table
		w.text = nil
		w.end()
		fmt.Fprintf(w.page, "# %s\n\n", plain(match[1]))
		w.text = above
		if match[2] != "" {
			w.text = append(w.text, match[2])
		}
		return true
	}
	if match := keyLine.FindStringSubmatch(line); match != nil {
		w.end()
		w.key = match[1] + " = " + strings.TrimSpace(match[2])
		if match[3] != "" {
			w.said = append(w.said, match[3])
		}
		return true
	}
	if strings.TrimSpace(line) == "" {
		w.end()
		return true
	}
	match := textLine.FindStringSubmatch(line)
	if match == nil {
		return false
	}
	if w.key != "" {
		w.end()
	}
	if match[1] == "" || ownLine.MatchString(match[1]) && len(w.text) > 0 && strings.HasSuffix(w.text[len(w.text)-1], ".") {
		w.text = append(w.text, "")
	}
	w.text = append(w.text, match[1])
	return true
}

// end writes what was collected.
func (w *writer) end() {
	prose(w.page, strings.Join(w.text, "\n"))
	if w.key != "" {
		item(w.page, plain(w.key), plain(sentences(w.said)))
	}
	w.text, w.key, w.said = nil, "", nil
}

// sentences joins the lines of a comment. What ownLine matches stays a line of its own.
func sentences(lines []string) string {
	var text strings.Builder
	for i, line := range lines {
		switch {
		case i == 0:
		case ownLine.MatchString(line):
			text.WriteString("  \n")
		default:
			text.WriteString(" ")
		}
		text.WriteString(strings.TrimSpace(line))
	}
	return text.String()
}
