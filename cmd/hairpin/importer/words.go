// SPDX-License-Identifier: Apache-2.0

package importer

import "strings"

// wordLine is a line of words, quoted as in a shell: iptables-save and "uci export" write such lines. A quoted word may contain line
// ends. The package reads them itself because libraries for shell words do not tell where in the text a word is.
type wordLine struct {
	offset int // of the first word
	line   int
	words  []string
	at     []int // the offset of each word
}

// readStatements splits text. The error is a Problem with the place of a quote that is not closed.
func readStatements(name string, data []byte) ([]wordLine, error) {
	s := &scanner{name: name, data: data, line: 1}
	for s.next < len(s.data) {
		if err := s.step(); err != nil {
			return nil, err
		}
	}
	s.end()
	return s.list, nil
}

type scanner struct {
	name string
	data []byte
	next int
	line int
	list []wordLine
	now  wordLine
}

// end ends the statement.
func (s *scanner) end() {
	if len(s.now.words) > 0 {
		s.list = append(s.list, s.now)
	}
	s.now = wordLine{}
}

// step reads a space, a line end, a comment or a word.
func (s *scanner) step() error {
	switch c := s.data[s.next]; c {
	case '\n':
		s.end()
		s.line++
		s.next++
	case ' ', '\t', '\r':
		s.next++
	case '#':
		for s.next < len(s.data) && s.data[s.next] != '\n' {
			s.next++
		}
	default:
		return s.word()
	}
	return nil
}

func (s *scanner) word() error {
	if len(s.now.words) == 0 {
		s.now.offset, s.now.line = s.next, s.line
	}
	start := s.next
	var text strings.Builder
	for s.next < len(s.data) {
		c := s.data[s.next]
		if strings.IndexByte(" \t\r\n", c) >= 0 {
			break
		}
		s.next++
		switch c {
		case '\'', '"':
			if err := s.quoted(c, &text); err != nil {
				return err
			}
		case '\\':
			if s.next < len(s.data) && s.data[s.next] != '\n' {
				text.WriteByte(s.data[s.next])
				s.next++
			}
		default:
			text.WriteByte(c)
		}
	}
	s.now.words, s.now.at = append(s.now.words, text.String()), append(s.now.at, start)
	return nil
}

// quoted reads up to the closing quote. Only double quotes know the backslash.
func (s *scanner) quoted(quote byte, text *strings.Builder) error {
	start := s.next - 1
	for s.next < len(s.data) {
		c := s.data[s.next]
		s.next++
		switch {
		case c == quote:
			return nil
		case c == '\\' && quote == '"' && s.next < len(s.data):
			c = s.data[s.next]
			s.next++
		}
		if c == '\n' {
			s.line++
		}
		text.WriteByte(c)
	}
	return problemAt(s.name, s.data, start, "the quote that begins here is not closed")
}
