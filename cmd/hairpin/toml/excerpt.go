// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// Excerpt is the place of a problem in its file.
type Excerpt struct {
	Message  string // Error of the problem
	Number   int    // of the line, from 1
	Line     string // the line without its end, shortened around the wrong part
	From, To int    // the wrong part: offsets in Line; To is at least From
}

// Excerpts returns the excerpts of the problems in err, in their order.
func Excerpts(err error) (list []Excerpt) {
	switch e := err.(type) {
	case *problem:
		return []Excerpt{{Message: e.Error(), Number: e.Line, Line: e.text, From: e.from, To: e.to}}
	case interface{ Unwrap() []error }:
		for _, err := range e.Unwrap() {
			list = append(list, Excerpts(err)...)
		}
	case interface{ Unwrap() error }:
		return Excerpts(e.Unwrap())
	}
	return list
}

// excerptBefore and excerptAfter are how many bytes of a line are shown before and from the wrong part on.
const (
	excerptBefore = 60
	excerptAfter  = 100
	omitted       = "..."
)

// excerpt returns the line of an offset, shortened, and which part of the line is wrong.
func (d *document) excerpt(offset int) (line string, from, to int) {
	number, _ := d.position(offset)
	start := int(d.lines[number-1])
	end := len(d.data)
	if next := bytes.IndexByte(d.data[start:], '\n'); next >= 0 {
		end = start + next
	}
	end = start + len(bytes.TrimSuffix(d.data[start:end], []byte("\r")))
	offset = min(offset, end)
	last := min(wordEnd(d.data[:end], offset), offset+excerptAfter)
	before, after := "", ""
	if offset-start > excerptBefore {
		start, before = runeStart(d.data, offset-excerptBefore, start), omitted
	}
	if end-offset > excerptAfter {
		end, after = runeStart(d.data, offset+excerptAfter, offset), omitted
	}
	last = min(last, end)
	return before + string(d.data[start:end]) + after, len(before) + offset - start, len(before) + last - start
}

// runeStart returns the start of the character at an offset, but at least low.
func runeStart(data []byte, offset, low int) int {
	for offset > low && !utf8.RuneStart(data[offset]) {
		offset--
	}
	return offset
}

// wordEnd returns the end of the string or the word that begins at an offset of a line.
func wordEnd(line []byte, at int) int {
	if at >= len(line) {
		return at
	}
	if quote := line[at]; quote == '"' || quote == '\'' {
		for i := at + 1; i < len(line); i++ {
			switch {
			case line[i] == '\\' && quote == '"':
				i++
			case line[i] == quote:
				return i + 1
			}
		}
		return len(line)
	}
	end := at
	for end < len(line) && strings.IndexByte(" \t=,[]{}#\"'", line[end]) < 0 {
		end++
	}
	if end == at {
		_, size := utf8.DecodeRune(line[at:])
		return at + size
	}
	return end
}
