// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"cmp"
	"errors"
	"fmt"
	"strings"

	"github.com/hbollon/go-edlib"
)

// Problem is one mistake in a configuration or in command-line arguments, explained for the user who wrote them.
type Problem struct {
	Index   int    // index of the forward in Config.Forwards, -1 if the problem is not in a forward
	Forward string // name of the forward, "" if the problem is not in a forward
	Kind    string // "forward" or "intercept"; "" means "forward"
	Field   string // key of the configuration file, such as "to" or "timeouts.udp"
	Item    int    // if Field is a list: number of the wrong item, from 1; 0: the whole field
	Message string // what is wrong
}

// Error returns the problem on one line.
func (p *Problem) Error() string {
	var text strings.Builder
	if p.Index >= 0 {
		fmt.Fprintf(&text, "%s %s: ", cmp.Or(p.Kind, "forward"), Quote(p.Forward))
	}
	if p.Field != "" {
		text.WriteString(p.Field + ": ")
	}
	text.WriteString(p.Message)
	return text.String()
}

// itemError is the error of one item of a list; items are counted from 1.
type itemError struct {
	item int
	error
}

// NewProblem returns err as a Problem of a configuration key, without a forward. It sets Item if err is from OfItem.
func NewProblem(field string, err error) *Problem {
	p := &Problem{Index: -1, Field: field, Message: err.Error()}
	var item itemError
	if errors.As(err, &item) {
		p.Item = item.item
	}
	return p
}

// OfItem marks err as the error of the list item with this index (from 0), for NewProblem. It returns nil if err is nil.
func OfItem(index int, err error) error {
	if err == nil {
		return nil
	}
	return itemError{index + 1, err}
}

// Problems returns every Problem in err, an error that may be joined or wrapped, in order.
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

// Quote quotes text from a user or a file for a message: control characters are escaped, and the text is cut after
// 64 characters.
func Quote(text string) string {
	const limit = 64
	if runes := []rune(text[:min(len(text), 4*limit)]); len(runes) > limit || len(text) > 4*limit {
		return fmt.Sprintf("%q...", string(runes[:min(limit, len(runes))]))
	}
	return fmt.Sprintf("%q", text)
}

// Suggest returns a hint for a mistyped word. It names the most similar known word. If no known word is similar, it
// lists the known words, or returns "" if they are more than 16.
func Suggest(word string, known ...string) string {
	best, distance := "", 3
	for _, candidate := range known {
		// A word from a file may be very long, and the comparison takes quadratic time: skip clearly different lengths.
		if len(word) > 2*len(candidate)+distance {
			continue
		}
		// If more than half of the letters differ, the user meant another word. Two swapped neighbours count as one
		// difference.
		if d := edlib.OSADamerauLevenshteinDistance(strings.ToLower(word), candidate); d < distance && 2*d <= len(candidate) {
			best, distance = candidate, d
		}
	}
	switch {
	case best != "":
		return fmt.Sprintf("did you mean %q?", best)
	case len(known) == 1:
		return "only " + known[0] + " is possible here"
	case len(known) > 1 && len(known) <= 16:
		return "possible are " + strings.Join(known[:len(known)-1], ", ") + " and " + known[len(known)-1]
	}
	return ""
}
