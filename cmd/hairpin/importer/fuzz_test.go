// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"errors"
	"strings"
	"testing"
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
	text, _ := load(t, result, format)
	if i := unprintable(text); i >= 0 {
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

// fuzz starts with the rules of the cases.
func fuzz(f *testing.F, format string, cases []importCase) {
	for _, c := range cases {
		f.Add(c.rules)
	}
	f.Fuzz(func(t *testing.T, rules string) { fuzzImport(t, format, rules) })
}

func FuzzNFT(f *testing.F)      { fuzz(f, "nft", nftCases()) }
func FuzzIPTables(f *testing.F) { fuzz(f, "iptables", iptablesCases()) }
func FuzzUCI(f *testing.F)      { fuzz(f, "uci", uciCases()) }
func FuzzPfSense(f *testing.F)  { fuzz(f, "pfsense", pfCases()) }
