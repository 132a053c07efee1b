// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/hbollon/go-edlib"
)

// Problem is one thing wrong with a configuration or with arguments, in words
// for whoever wrote them.
type Problem struct {
	Index   int    // place of the forward in Config.Forwards, -1 if it is not about one
	Forward string // name of the forward, "" if it is not about one
	Kind    string // what the forward is called, "" for "forward"
	Field   string // key of the configuration file, such as "to" or "timeouts.udp"
	Item    int    // place in the list that Field is, from 1; 0 if it is not about one item
	Message string // what is wrong
	Hint    string // what to do, "" if the message says it
}

// Error implements error on one line; text from outside is quoted in it.
func (p *Problem) Error() string {
	var text strings.Builder
	if p.Index >= 0 {
		fmt.Fprintf(&text, "%s %s: ", cmp.Or(p.Kind, "forward"), Quote(p.Forward))
	}
	if p.Field != "" {
		text.WriteString(p.Field + ": ")
	}
	text.WriteString(p.Message)
	if p.Hint != "" {
		text.WriteString("; " + p.Hint)
	}
	return text.String()
}

// itemError is about one item of a list, counted from 1.
type itemError struct {
	item int
	error
}

// NewProblem is err as a Problem of a field, without a forward. An error of an item of the field names the item.
func NewProblem(field string, err error) *Problem {
	p := &Problem{Index: -1, Field: field, Message: err.Error()}
	var item itemError
	if errors.As(err, &item) {
		p.Item = item.item
	}
	return p
}

// OfItem says that err is about an item of a list, counted from 0; nil stays nil.
func OfItem(index int, err error) error {
	if err == nil {
		return nil
	}
	return itemError{index + 1, err}
}

// Problems lists every Problem that err holds, in order.
func Problems(err error) []*Problem {
	var problem *Problem
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		var all []*Problem
		for _, err := range joined.Unwrap() {
			all = append(all, Problems(err)...)
		}
		return all
	}
	if errors.As(err, &problem) {
		return []*Problem{problem}
	}
	return nil
}

// Quote makes text from outside safe and short enough for a message.
func Quote(text string) string {
	const limit = 64
	if runes := []rune(text[:min(len(text), 4*limit)]); len(runes) > limit || len(text) > 4*limit {
		return fmt.Sprintf("%q...", string(runes[:min(limit, len(runes))]))
	}
	return fmt.Sprintf("%q", text)
}

// Suggest is a hint that names the known word closest to a mistyped one, or
// lists the words if none is close and the list is short.
func Suggest(word string, known ...string) string {
	best, distance := "", 3
	for _, candidate := range known {
		// What is much longer is none of the words, and could take very long to compare.
		if len(word) > 2*len(candidate)+distance {
			continue
		}
		// A word that is mostly different letters is another word, not a slip. Two neighbours that were
		// swapped are one slip.
		if d := edlib.OSADamerauLevenshteinDistance(strings.ToLower(word), candidate); d < distance && 2*d <= len(candidate) {
			best, distance = candidate, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	case len(known) == 1:
		return "only " + known[0] + " is possible here"
	case len(known) > 1 && len(known) <= 12:
		return "possible are " + strings.Join(known[:len(known)-1], ", ") + " and " + known[len(known)-1]
	}
	return ""
}
