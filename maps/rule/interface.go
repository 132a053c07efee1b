// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// CheckInterfaceName accepts the names that the kernel's dev_valid_name() accepts, if they are UTF-8 as configuration
// files require and do not look like an address. dev_valid_name() checks bytes: the second byte of "à", 0xa0, is a
// space for the kernel's isspace().
func CheckInterfaceName(name string) error {
	const limit = 15 // IFNAMSIZ without the final zero
	if name == "" || name == "." || name == ".." || len(name) > limit || !utf8.ValidString(name) ||
		strings.ContainsAny(name, "/:") || slices.ContainsFunc([]byte(name), isSpace) {
		return fmt.Errorf("%s cannot be the name of an interface, which has 1 to %d bytes and no space, slash or colon", Quote(name), limit)
	}
	if looksLikeAddress(name) {
		return fmt.Errorf("%s is an address where the name of an interface was expected", Quote(name))
	}
	return nil
}

// isSpace reports whether the kernel's isspace() (lib/ctype.c) is true for b. It is also true for NUL, which cannot be
// in a name.
func isSpace(b byte) bool { return b == 0 || b >= '\t' && b <= '\r' || b == ' ' || b == 0xa0 }
