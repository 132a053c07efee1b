// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"hairpin/maps/rule"
)

// problem is an error at a place in a file. Line and column count from 1.
type problem struct {
	File         string
	Line, Column int
	rule.Problem

	// For Excerpts: the line, and the wrong part of it.
	text     string
	from, to int
}

func newProblem(at position, of rule.Problem) *problem {
	p := &problem{File: at.doc.name, Problem: of}
	p.Line, p.Column = at.doc.position(at.offset)
	p.text, p.from, p.to = at.doc.excerpt(at.offset)
	return p
}

// Error implements error: "FILE:LINE:COLUMN: MESSAGE".
func (p *problem) Error() string {
	return fmt.Sprintf("%s:%d:%d: %s", p.File, p.Line, p.Column, p.Problem.Error())
}

// Unwrap returns the problem without its place.
func (p *problem) Unwrap() error { return &p.Problem }

// maxProblems is the largest number of problems in an error: a file with more is probably not a
// configuration.
const maxProblems = 100

// joinSorted joins problems, sorted by file, line and column. Files are in the order of sources.
func joinSorted(problems []*problem, sources []source) error {
	files := map[string]int{}
	for i, s := range sources {
		files[s.name] = i
	}
	slices.SortStableFunc(problems, func(a, b *problem) int {
		return cmp.Or(cmp.Compare(files[a.File], files[b.File]), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	var errs []error
	for _, p := range problems[:min(len(problems), maxProblems)] {
		errs = append(errs, p)
	}
	if more := len(problems) - maxProblems; more > 0 {
		errs = append(errs, fmt.Errorf("and %d more problems", more))
	}
	return errors.Join(errs...)
}
