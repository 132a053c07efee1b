// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strings"
)

// SelectorSyntax is the grammar of ParseSelector. Each condition may have "not" before it. Without "not" each word may appear once.
const SelectorSyntax = "[not] forward NAME | proto P | client CIDR | dst CIDR | port N[-N] | path wan|hairpin|local | state half-open|established|closing|ended"

// selectorNot inverts the condition that follows.
const selectorNot = "not"

// SelectorWords are the words of SelectorSyntax that begin a condition.
func SelectorWords() []string {
	return []string{"forward", "proto", "client", "dst", "port", "path", "state"}
}

// otherSelectorWords are other words that begin a condition, by their name in SelectorWords.
var otherSelectorWords = map[string]string{"src": "client"}

// The states of a connection.
const (
	StateHalfOpen    = "half-open"
	StateEstablished = "established"
	StateClosing     = "closing"
	StateEnded       = "ended" // its forward or address was removed, or a command ended it; it still keeps its ports
)

// StateNames lists the states of a connection, in the order in which it passes through them.
func StateNames() []string {
	return []string{StateHalfOpen, StateEstablished, StateClosing, StateEnded}
}

// Selector picks connections. Every field that is set must match. The zero value picks all connections that have not ended.
type Selector struct {
	Forward     string
	Protocol    Protocol
	Source      netip.Prefix // contains the client's address
	Destination netip.Prefix // contains the external address or the target address
	Ports       Ports        // contain the external port or the target port; the zero value is every port
	Path        string       // one of PathNames, "" for every path
	State       string       // one of StateNames, "" for every state but StateEnded
	Not         []Selector   // none of these may pick the connection; each has one field set
}

// All reports whether the selector picks all connections that have not ended.
func (s *Selector) All() bool {
	return s.Forward == "" && s.Protocol == 0 && !s.Source.IsValid() && !s.Destination.IsValid() && s.Ports.Every() && s.Path == "" &&
		s.State == "" && len(s.Not) == 0
}

// Forwards yields the names of forwards in the selector, also those after "not".
func (s *Selector) Forwards() iter.Seq[string] {
	return func(yield func(string) bool) {
		if s.Forward != "" && !yield(s.Forward) {
			return
		}
		for i := range s.Not {
			if name := s.Not[i].Forward; name != "" && !yield(name) {
				return
			}
		}
	}
}

// ParseSelector reads the arguments of the `conn` commands (SelectorSyntax). The error joins one Problem for each
// mistake.
func ParseSelector(args []string) (Selector, error) {
	var s Selector
	var problems []error
	seen := map[string]bool{}
	for len(args) > 0 {
		inverted := args[0] == selectorNot
		if inverted {
			args = args[1:]
		}
		if err := s.add(inverted, args, seen); err != nil {
			problems = append(problems, &Problem{Index: -1, Message: err.Error()})
		}
		args = args[min(2, len(args)):]
	}
	if err := errors.Join(problems...); err != nil {
		return Selector{}, err
	}
	return s, nil
}

// add adds the condition at the start of args. seen has the words that came before without "not".
func (s *Selector) add(inverted bool, args []string, seen map[string]bool) error {
	if len(args) == 0 {
		return fmt.Errorf("no condition after %q; selectors are %s", selectorNot, SelectorSyntax)
	}
	word := args[0]
	if name, ok := otherSelectorWords[word]; ok {
		word = name
	}
	switch {
	case inverted && word == selectorNot:
		return fmt.Errorf("%q is there twice in a row; leave both out", selectorNot)
	case !slices.Contains(SelectorWords(), word):
		return fmt.Errorf("%s does not select connections; %s", Quote(word), Suggest(word, SelectorWords()...))
	case len(args) == 1:
		return fmt.Errorf("no value after %q; selectors are %s", args[0], SelectorSyntax)
	case inverted:
		var not Selector
		err := not.set(word, args[1])
		s.Not = append(s.Not, not)
		return err
	case seen[word]:
		return fmt.Errorf("%q is there twice", args[0])
	}
	seen[word] = true
	return s.set(word, args[1])
}

func (s *Selector) set(word, value string) (err error) {
	switch word {
	case "forward":
		s.Forward, err = value, (&Forward{Name: value}).checkName()
	case "proto":
		s.Protocol, err = ParseProtocol(value)
		if s.Protocol == Any {
			err = fmt.Errorf("no connection is of protocol %s; leave proto out to select every protocol", Any)
		}
	case "client":
		s.Source, err = ParsePrefix(value)
	case "dst":
		s.Destination, err = ParsePrefix(value)
	case "port":
		s.Ports, err = ParsePorts(value)
	case "path":
		s.Path = value
		if !slices.Contains(PathNames(), value) {
			// No call of Suggest: it would suggest "wan" for "lan", but a user who writes "lan" means "hairpin".
			err = fmt.Errorf("%s is not a path; %s", Quote(value), pathMeanings)
		}
	case "state":
		s.State = value
		if !slices.Contains(StateNames(), value) {
			err = fmt.Errorf("%s is not a state; %s", Quote(value), Suggest(value, StateNames()...))
		}
	}
	return err
}

// pathMeanings explains the words of PathNames.
const pathMeanings = "the paths are wan (from the Internet), hairpin (from a LAN to the external address) and local (from the router itself)"

// PathNames lists the paths by which a connection reaches its forward, in the order of enum conn_path.
func PathNames() []string { return []string{"wan", "hairpin", "local"} }

// NextSelectorWords returns what may follow args in the grammar of ParseSelector. If a value must follow, value is the word of
// SelectorWords that it belongs to. Otherwise words has the words that may follow.
func NextSelectorWords(args []string) (words []string, value string) {
	inverted := false
	for _, arg := range args {
		switch {
		case value != "":
			value, inverted = "", false
		case arg == selectorNot && !inverted:
			inverted = true
		default:
			value = arg
			if name, ok := otherSelectorWords[arg]; ok {
				value = name
			}
		}
	}
	switch {
	case value != "":
		return nil, value
	case inverted:
		return SelectorWords(), ""
	}
	return append(SelectorWords(), selectorNot), ""
}

// String formats the selector in the grammar of ParseSelector. It returns "" if the selector picks all connections.
func (s Selector) String() string {
	var words []string
	add := func(word, value string, set bool) {
		if set {
			words = append(words, word, value)
		}
	}
	add("forward", s.Forward, s.Forward != "")
	add("proto", s.Protocol.String(), s.Protocol != 0)
	add("client", s.Source.String(), s.Source.IsValid())
	add("dst", s.Destination.String(), s.Destination.IsValid())
	add("port", s.Ports.String(), !s.Ports.Every())
	add("path", s.Path, s.Path != "")
	add("state", s.State, s.State != "")
	for _, not := range s.Not {
		words = append(words, selectorNot, not.String())
	}
	return strings.Join(words, " ")
}
