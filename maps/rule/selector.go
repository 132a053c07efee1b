// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// SelectorSyntax is the grammar of ParseSelector. Each word may appear once.
const SelectorSyntax = "forward NAME | proto P | src CIDR | dst CIDR | port N[-N] | path wan|hairpin|local"

// SelectorWords are the words of SelectorSyntax that begin a condition.
func SelectorWords() []string { return []string{"forward", "proto", "src", "dst", "port", "path"} }

// Selector picks connections. Every field that is set must match. The zero value picks all connections.
type Selector struct {
	Forward     string
	Protocol    Protocol
	Source      netip.Prefix // contains the client's address
	Destination netip.Prefix // contains the external address or the target address
	Ports       Ports        // contain the external port or the target port; the zero value is every port
	Path        string       // one of PathNames, "" for every path
}

// ParseSelector reads the arguments of the `conn` commands (SelectorSyntax). The error joins one Problem for each
// mistake.
func ParseSelector(args []string) (Selector, error) {
	var s Selector
	var problems []error
	seen := map[string]bool{}
	for ; len(args) > 0; args = args[min(2, len(args)):] {
		word := args[0]
		var err error
		switch {
		case !slices.Contains(SelectorWords(), word):
			err = fmt.Errorf("%s does not select connections; %s", Quote(word), Suggest(word, SelectorWords()...))
		case len(args) == 1:
			err = fmt.Errorf("no value after %q; selectors are %s", word, SelectorSyntax)
		case seen[word]:
			err = fmt.Errorf("%q is there twice", word)
		default:
			err = s.set(word, args[1])
		}
		seen[word] = true
		if err != nil {
			problems = append(problems, &Problem{Index: -1, Message: err.Error()})
		}
	}
	if err := errors.Join(problems...); err != nil {
		return Selector{}, err
	}
	return s, nil
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
	case "src":
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
	}
	return err
}

// pathMeanings explains the words of PathNames.
const pathMeanings = "the paths are wan (from the Internet), hairpin (from a LAN to the external address) and local (from the router itself)"

// PathNames lists the paths by which a connection reaches its forward, in the order of enum conn_path.
func PathNames() []string { return []string{"wan", "hairpin", "local"} }

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
	add("src", s.Source.String(), s.Source.IsValid())
	add("dst", s.Destination.String(), s.Destination.IsValid())
	add("port", s.Ports.String(), !s.Ports.Every())
	add("path", s.Path, s.Path != "")
	return strings.Join(words, " ")
}
