// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Limits of names, in bytes (RFC 1035 2.3.4).
const (
	maxHost  = 253
	maxLabel = 63
)

// ParseHost reads the exact name of a host (RFC 952, RFC 1123 2.1). It gives the
// name as servers have it: in lower case, without a final dot, and in the ASCII
// form of RFC 5891 if it has other letters.
func ParseHost(text string) (string, error) {
	name := strings.TrimSuffix(text, ".")
	if strings.Contains(name, "*") {
		return "", fmt.Errorf("%s is a wildcard, which would also catch the names of hosts that are elsewhere, and no hosts file has them; write each name", Quote(text))
	}
	if length := utf8.RuneCountInString(name); length > maxHost {
		return "", notHost(text, tooLong(length))
	}
	if strings.ContainsFunc(name, func(r rune) bool { return r >= utf8.RuneSelf }) {
		ascii, err := idna.Lookup.ToASCII(name)
		if err != nil {
			return "", notHost(text, errors.New(strings.TrimPrefix(err.Error(), "idna: ")))
		}
		name = ascii
	}
	name = strings.ToLower(name)
	if err := checkHost(name); err != nil {
		return "", notHost(text, err)
	}
	return name, nil
}

func notHost(text string, reason error) error {
	return fmt.Errorf("%s is not a host name: %w", Quote(text), reason)
}

func tooLong(length int) error {
	return fmt.Errorf("it has %d characters, and %d is the most", length, maxHost)
}

// checkHost looks at a name in lower case.
func checkHost(name string) error {
	if name == "" {
		return errors.New("it is empty")
	}
	if len(name) > maxHost {
		return tooLong(len(name))
	}
	last := ""
	for label := range strings.SplitSeq(name, ".") {
		if err := checkLabel(label); err != nil {
			return err
		}
		last = label
	}
	switch {
	case isNumber(last):
		return errors.New("it ends in a number, as an address does")
	case last == "localhost":
		return errors.New("localhost and what is below it is every host itself (RFC 6761 6.3)")
	}
	return nil
}

func checkLabel(label string) error {
	other := strings.TrimLeft(label, "abcdefghijklmnopqrstuvwxyz0123456789-")
	switch {
	case label == "":
		return errors.New("there is nothing before or between dots")
	case len(label) > maxLabel:
		return fmt.Errorf("%s has %d characters, and %d is the most between dots", Quote(label), len(label), maxLabel)
	case other != "":
		r, _ := utf8.DecodeRuneInString(other)
		return fmt.Errorf("it has %q, and only letters, digits and dashes may be between dots", r)
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Errorf("%s begins or ends with a dash", Quote(label))
	}
	if strings.HasPrefix(label, "xn--") {
		if _, err := idna.Lookup.ToUnicode(label); err != nil {
			return fmt.Errorf("%s stands for no name in other letters", Quote(label))
		}
	}
	return nil
}

// isNumber reports whether programs that read addresses as inet_aton(3) does
// take a name that ends in this label for one.
func isNumber(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}
