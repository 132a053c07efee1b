// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"errors"
	"strings"
	"testing"
	"unicode"

	"hairpin/cmd/hairpin/toml"
)

// fuzzImport checks what is true for every input: a result is a file that hairpin takes, with a forward for each of the result; an
// error names a place in the input, or interfaces that are not known.
func fuzzImport(t *testing.T, format, rules string) {
	result, err := Import(format, "rules", []byte(rules), usual)
	if err != nil {
		var problem *Problem
		switch {
		case result != nil:
			t.Fatalf("a result with the error %v", err)
		case !errors.As(err, &problem):
			t.Fatalf("an error without a place: %v", err)
		case problem.Line < 1 || problem.Line > strings.Count(rules, "\n")+1 || problem.Column < 1:
			t.Fatalf("line %d, column %d is not in the input: %v", problem.Line, problem.Column, err)
		}
		return
	}
	text, err := result.TOML(format)
	if err != nil {
		t.Fatal(err)
	}
	config, err := toml.Parse("import.toml", text)
	if err != nil {
		t.Fatalf("hairpin refuses the file: %v\n%s", err, text)
	}
	if len(config.All()) != len(result.Forwards) {
		t.Fatalf("the file has %d forwards, but the result has %d\n%s", len(config.All()), len(result.Forwards), text)
	}
	if i := strings.IndexFunc(string(text), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
		t.Fatalf("the file has a character that is not fit for a terminal: %q", text[max(0, i-20):])
	}
	left := map[string]bool{}
	for _, l := range result.Left {
		left[l.Place] = true
	}
	for _, name := range result.Names {
		if left[name] {
			t.Fatalf("%s is left, but is to be removed", name)
		}
	}
}

func FuzzNFT(f *testing.F) {
	for _, c := range nftCases() {
		f.Add(c.rules)
	}
	f.Fuzz(func(t *testing.T, rules string) { fuzzImport(t, "nft", rules) })
}

func FuzzIPTables(f *testing.F) {
	for _, c := range iptablesCases() {
		f.Add(c.rules)
	}
	f.Fuzz(func(t *testing.T, rules string) { fuzzImport(t, "iptables", rules) })
}

func FuzzUCI(f *testing.F) {
	for _, c := range uciCases() {
		f.Add(c.rules)
	}
	f.Fuzz(func(t *testing.T, rules string) { fuzzImport(t, "uci", rules) })
}

func FuzzPfSense(f *testing.F) {
	for _, c := range pfCases() {
		f.Add(c.rules)
	}
	f.Fuzz(func(t *testing.T, rules string) { fuzzImport(t, "pfsense", rules) })
}
