// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"golang.org/x/net/idna"
)

// Limits of a host name and of one label, in bytes (RFC 1035 2.3.4).
const (
	maxHost  = 253
	maxLabel = 63
)

// ParseHost reads one host name, not a wildcard (RFC 952, RFC 1123 2.1). It returns the name in lower case, without a
// final dot. A name with other than ASCII letters is returned in its ASCII form (RFC 5891).
func ParseHost(text string) (string, error) {
	name := strings.TrimSuffix(text, ".")
	if strings.Contains(name, "*") {
		return "", fmt.Errorf("%s is a wildcard, which would also match hosts elsewhere and does not work in a hosts file; write each name", Quote(text))
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
	return fmt.Errorf("it has %d characters, but the limit is %d", length, maxHost)
}

// checkHost checks a name that is already in lower case.
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
		return errors.New("localhost and names below it mean the asking host itself (RFC 6761 6.3)")
	}
	return nil
}

func checkLabel(label string) error {
	other := strings.TrimLeft(label, "abcdefghijklmnopqrstuvwxyz0123456789-")
	switch {
	case label == "":
		return errors.New("the part before or between dots is empty")
	case len(label) > maxLabel:
		return fmt.Errorf("%s has %d characters, but the limit between dots is %d", Quote(label), len(label), maxLabel)
	case other != "":
		r, _ := utf8.DecodeRuneInString(other)
		return fmt.Errorf("it has %q, and only letters, digits and dashes may be between dots", r)
	case label[0] == '-' || label[len(label)-1] == '-':
		return fmt.Errorf("%s begins or ends with a dash", Quote(label))
	}
	if strings.HasPrefix(label, "xn--") {
		if _, err := idna.Lookup.ToUnicode(label); err != nil {
			return fmt.Errorf("%s is not a valid internationalized label (RFC 5891)", Quote(label))
		}
	}
	return nil
}

// isNumber reports whether inet_aton(3) can read the last label of a name as a number. Programs that use inet_aton(3)
// would take such a name for an address.
func isNumber(label string) bool {
	if hex, ok := strings.CutPrefix(label, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(label, "0123456789") == ""
}
