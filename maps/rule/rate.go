// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Rate is how many connections may be opened in a time, and how many at once. The zero value is any number.
type Rate struct {
	Count uint32
	Per   time.Duration // one of rateUnits
}

// maxRate is the highest number of a rate.
const maxRate = 1_000_000

type rateUnit struct {
	name string
	per  time.Duration
}

var rateUnits = []rateUnit{{"s", time.Second}, {"min", time.Minute}, {"h", time.Hour}}

// ParseRate reads "100/s", "20/min" or "5/h".
func ParseRate(text string) (Rate, error) {
	number, unit, _ := strings.Cut(text, "/")
	count, err := strconv.ParseUint(number, 10, 32)
	i := slices.IndexFunc(rateUnits, func(u rateUnit) bool { return u.name == unit })
	if err != nil || i < 0 || number[0] == '0' && count > 0 {
		return Rate{}, fmt.Errorf("%s is not a rate; one looks like 100/s, 20/min or 5/h", Quote(text))
	}
	r := Rate{Count: uint32(count), Per: rateUnits[i].per}
	return r, r.check()
}

func (r Rate) check() error {
	if r.Count < 1 || r.Count > maxRate {
		return fmt.Errorf("%s is out of range; the number of a rate is 1 to %d", r, maxRate)
	}
	return nil
}

// IsZero reports whether the rate is any number.
func (r Rate) IsZero() bool { return r == Rate{} }

// String is what ParseRate reads, "" for any number.
func (r Rate) String() string {
	for _, unit := range rateUnits {
		if unit.per == r.Per {
			return fmt.Sprintf("%d/%s", r.Count, unit.name)
		}
	}
	return ""
}

// MarshalText implements encoding.TextMarshaler.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *Rate) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*r = Rate{}
		return nil
	}
	rate, err := ParseRate(string(text))
	if err == nil {
		*r = rate
	}
	return err
}

// checkRates refuses a rate for each client that can never be reached.
func checkRates(f *Forward) error {
	all, each := f.Rate, f.RatePerSource
	if all.IsZero() || each.IsZero() || uint64(each.Count)*uint64(all.Per) <= uint64(all.Count)*uint64(each.Per) {
		return nil
	}
	return fmt.Errorf("%s for each client is more than rate, %s, allows all of them together", each, all)
}
