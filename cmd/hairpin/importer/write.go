// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode"

	"hairpin/cmd/hairpin/toml"
)

// TOML returns the translation as a configuration file.
func (r *Result) TOML(format string) ([]byte, error) {
	w := &writer{}
	w.comment("Made by \"hairpin import " + format + "\". Read it before you use it. Nothing was changed on the machine.")
	w.comment("It is a whole /etc/hairpin/hairpin.toml. If you have this file, put the forwards alone into /etc/hairpin/forwards.d/import.toml.")
	w.comment("hairpin sees packets before netfilter: the priorities of chains do not matter, and translated packets do not pass the rules of a firewall.")
	for _, note := range r.Notes {
		w.comment(note)
	}
	w.line("")
	w.line("version = 1")
	w.line("")
	w.line("[interfaces]")
	w.line("wan = [%s]", quoted(r.WAN))
	w.line("lan = [%s]", quoted(r.LAN))
	if err := w.forwards(r.Forwards); err != nil {
		return nil, err
	}
	w.left(r.Left)
	w.removals(r)
	return w.out.Bytes(), nil
}

type writer struct{ out bytes.Buffer }

func (w *writer) line(format string, args ...any) { fmt.Fprintf(&w.out, format+"\n", args...) }

// comment writes a comment of one line. TOML allows no control characters in it.
func (w *writer) comment(text string) {
	w.out.WriteString("# ")
	for _, r := range text {
		if unicode.IsPrint(r) {
			w.out.WriteRune(r)
		} else {
			w.out.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	w.out.WriteByte('\n')
}

func quoted(names []string) string {
	words := make([]string, len(names))
	for i, name := range names {
		words[i] = `"` + escaped(name) + `"`
	}
	return strings.Join(words, ", ")
}

// escaped returns text for a basic string of TOML 1.0. The file may be read in a terminal, so every character that is not printable is
// escaped. go-toml escapes only what TOML demands.
func escaped(text string) string {
	var out strings.Builder
	for _, r := range text {
		switch {
		case r == '"' || r == '\\':
			out.WriteString(`\` + string(r))
		case unicode.IsPrint(r):
			out.WriteRune(r)
		default:
			fmt.Fprintf(&out, `\U%08X`, r)
		}
	}
	return out.String()
}

// forwards writes the forwards, and behind them the intercepts.
func (w *writer) forwards(list []Translated) error {
	for _, intercepts := range []bool{false, true} {
		for i := range list {
			f := &list[i]
			if f.Intercept != intercepts {
				continue
			}
			w.line("")
			w.comment(strings.Join(f.Places, ", "))
			for _, note := range f.Notes {
				w.comment(note)
			}
			table, err := toml.Table(f.Forward)
			if err != nil {
				return err
			}
			w.out.Write(table)
		}
	}
	return nil
}

func (w *writer) left(list []Left) {
	if len(list) == 0 {
		return
	}
	w.line("")
	w.comment("Not translated:")
	for _, l := range list {
		text := "  " + l.Place
		if l.Said != "" {
			text += " (" + clean(l.Said) + ")"
		}
		w.comment(text + ": " + l.Reason)
	}
}

func (w *writer) removals(r *Result) {
	w.line("")
	if len(r.Removals)+len(r.Names) == 0 {
		w.comment("There is no rule to remove.")
		return
	}
	if len(r.Removals) > 0 {
		w.comment("Remove the rules that hairpin replaces, and remove them where they are made, too, or they come back:")
		for _, command := range r.Removals {
			w.comment("  " + command)
		}
	}
	if len(r.Names) > 0 {
		w.comment("Remove the rules that hairpin replaces:")
		for _, name := range r.Names {
			w.comment("  " + name)
		}
	}
}
