// SPDX-License-Identifier: Apache-2.0

// Package importer reads rules of other NAT programs, and writes forwards and intercepts that do the same. It has one reader for
// each format. All readers return rules of one type, Rule; one translator makes forwards of them; one writer prints these as a
// configuration file.
//
// What hairpin cannot do is named, with the place of the rule and the reason. The package guesses nothing: a rule whose meaning is
// not certain is not translated. It reads no state of this machine, and changes nothing.
package importer

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
	"unicode/utf8"

	"hairpin/maps/rule"
)

// MaxSize is the largest input in bytes.
const MaxSize = 64 << 20

// Options say what the rules do not.
type Options struct {
	WAN, LAN []string     // interfaces; empty: those that the rules show
	Router   []netip.Addr // addresses of the router in the LAN, at most one of each family: where "redirect" leads
}

// reader reads the rules of one format. name is the name of the input for messages.
type reader func(name string, data []byte) (*found, error)

var readers = []struct {
	format string
	read   reader
}{
	{"nft", readNFT},
	{"iptables", readIPTables},
	{"uci", readUCI},
	{"pfsense", readPfSense},
}

// Formats returns the names of the formats.
func Formats() []string {
	names := make([]string, len(readers))
	for i, r := range readers {
		names[i] = r.format
	}
	return names
}

// CheckFormat returns an error for a name that is not one of Formats.
func CheckFormat(format string) error {
	if !slices.Contains(Formats(), format) {
		return fmt.Errorf("%s is not a format; %s", rule.Quote(format), rule.Suggest(format, Formats()...))
	}
	return nil
}

// Import reads rules in a format and translates them. The error is a Problem if the input is broken; then there is no result.
func Import(format, name string, data []byte, o Options) (*Result, error) {
	if err := CheckFormat(format); err != nil {
		return nil, err
	}
	if len(data) > MaxSize {
		return nil, fmt.Errorf("%s: larger than %d MiB, the limit for an import", name, MaxSize>>20)
	}
	if !utf8.Valid(data) {
		return nil, problemAt(name, data, invalidAt(data), "this byte is not part of a UTF-8 text")
	}
	i := slices.Index(Formats(), format)
	rules, err := readers[i].read(name, data)
	if err != nil {
		return nil, err
	}
	return translate(rules, o)
}

func invalidAt(data []byte) int {
	at := 0
	for at < len(data) {
		r, size := utf8.DecodeRune(data[at:])
		if r == utf8.RuneError && size == 1 {
			break
		}
		at += size
	}
	return at
}

// Problem is a mistake in the input. Line and column count from 1; columns are characters.
type Problem struct {
	Name         string
	Line, Column int
	Message      string
}

// Error implements error: "NAME:LINE:COLUMN: MESSAGE".
func (p *Problem) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", p.Name, p.Line, p.Column, p.Message)
}

// problemAt returns the Problem for a byte of the input.
func problemAt(name string, data []byte, offset int, format string, args ...any) *Problem {
	before := data[:max(0, min(offset, len(data)))]
	line := before[bytes.LastIndexByte(before, '\n')+1:]
	return &Problem{
		Name: name, Line: bytes.Count(before, []byte{'\n'}) + 1, Column: utf8.RuneCount(line) + 1,
		Message: fmt.Sprintf(format, args...),
	}
}
