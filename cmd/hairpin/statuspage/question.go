// SPDX-License-Identifier: Apache-2.0

package statuspage

import (
	"errors"
	"net/url"
	"strconv"
	"strings"
	"unicode/utf8"

	"hairpin/maps/rule"
)

// The limits of a question.
const (
	defaultRows   = 100
	maxRows       = 500
	maxFilter     = 64 // bytes
	maxQueryBytes = 512
)

// question is what a request asks for.
type question struct {
	filter string // lower case; only forwards that contain this text
	limit  int    // forwards at most
}

var errQuestion = errors.New(`the parameters are "filter", up to 64 bytes of text, and "limit", 0 to 500; each at most once`)

// parseQuestion reads the query of a URL.
func parseQuestion(query string) (question, error) {
	q := question{limit: defaultRows}
	if len(query) > maxQueryBytes {
		return q, errQuestion
	}
	values, err := url.ParseQuery(query)
	if err != nil {
		return q, errQuestion
	}
	for name, list := range values {
		if len(list) != 1 || !q.set(name, list[0]) {
			return q, errQuestion
		}
	}
	return q, nil
}

func (q *question) set(name, value string) bool {
	switch name {
	case "filter":
		q.filter = strings.ToLower(value)
		return len(value) <= maxFilter && utf8.ValidString(value)
	case "limit":
		limit, err := strconv.ParseUint(value, 10, 16)
		q.limit = int(limit)
		return err == nil && limit <= maxRows
	}
	return false
}

// takes reports whether a forward contains the text of the filter. The name is looked at first, as the other texts must be made.
func (q *question) takes(f *rule.Forward) bool {
	contains := func(text string) bool { return strings.Contains(strings.ToLower(text), q.filter) }
	if q.filter == "" || contains(f.Name) || contains(f.Comment) || contains(f.Ports.String()) || contains(f.TargetString()) {
		return true
	}
	for _, s := range f.Servers() {
		if contains(f.ServerString(s)) {
			return true
		}
	}
	for _, host := range f.Hosts {
		if contains(host) {
			return true
		}
	}
	return false
}
