// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// CheckInterfaceName takes what dev_valid_name() of the kernel does, which looks at bytes: to its isspace()
// the byte 0xa0 of "à" is a space. Names that are not UTF-8 are in no configuration file.
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

// isSpace is isspace() of the kernel (lib/ctype.c), of which NUL is none: it ends a name.
func isSpace(b byte) bool { return b == 0 || b >= '\t' && b <= '\r' || b == ' ' || b == 0xa0 }
