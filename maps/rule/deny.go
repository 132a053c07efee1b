// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// maxDenial is the longest time that a source may be denied for, but for ever.
const maxDenial = 10 * 365 * 24 * time.Hour

// ParseDenial reads a source and, if there is one, for how long it is denied; 0 is for ever.
func ParseDenial(words []string) (source netip.Prefix, lasts time.Duration, err error) {
	if len(words) == 0 || len(words) > 2 {
		return source, 0, fmt.Errorf("%s where an address or network was expected, and perhaps a time", Quote(strings.Join(words, " ")))
	}
	if source, err = ParsePrefix(words[0]); err == nil && len(words) == 2 {
		lasts, err = parseLasts(words[1])
	}
	return source, lasts, err
}

// parseLasts reads a duration, or a number of seconds, as ban managers write them.
func parseLasts(text string) (time.Duration, error) {
	lasts, err := time.ParseDuration(text)
	if seconds, number := strconv.ParseInt(text, 10, 64); number == nil {
		lasts, err = time.Duration(min(max(seconds, -1), int64(2*maxDenial/time.Second)))*time.Second, nil
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s is not a time; one looks like 10m, 4h or 600, which is seconds", Quote(text))
	case lasts < 0 || lasts > maxDenial || lasts > 0 && lasts < time.Second:
		return 0, fmt.Errorf("%s is out of range; a time is 1s to %dh, and 0 is for ever", Quote(text), int(maxDenial.Hours()))
	}
	return lasts, nil
}
