// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"fmt"
	"strconv"
	"strings"
)

// Ports is a port or a range of ports, both ends included. The zero value is
// every port, that of a 1:1 forward.
type Ports struct{ First, Last uint16 }

// anyPort is how a 1:1 forward is written on the command line.
const anyPort = "any"

// ParsePorts reads "443" or "6000-6010". Ports are 1 to 65535, in decimal and
// without leading zeros, so that nothing reads as octal.
func ParsePorts(text string) (Ports, error) {
	first, last, ranged := strings.Cut(text, "-")
	if !ranged {
		last = first
	}
	var ports Ports
	var err error
	if ports.First, err = parsePort(first); err != nil {
		return Ports{}, err
	}
	if ports.Last, err = parsePort(last); err != nil {
		return Ports{}, err
	}
	if ports.First > ports.Last {
		return Ports{}, fmt.Errorf("%s runs backwards; write %d-%d", Quote(text), ports.Last, ports.First)
	}
	return ports, nil
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 || text[0] == '0' || text[0] == '+' {
		return 0, fmt.Errorf("%s is not a port; a port is a number from 1 to 65535, a range is written 6000-6010", Quote(text))
	}
	return uint16(port), nil
}

// Every reports whether p means every port.
func (p Ports) Every() bool { return p == Ports{} }

// Len is the number of ports, 65536 for every port.
func (p Ports) Len() int {
	first, last := p.Bounds()
	return last - first + 1
}

// String is "443", "6000-6010", or "" for every port.
func (p Ports) String() string {
	switch {
	case p.Every():
		return ""
	case p.First == p.Last:
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// MarshalText implements encoding.TextMarshaler.
func (p Ports) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (p *Ports) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*p = Ports{}
		return nil
	}
	ports, err := ParsePorts(string(text))
	if err == nil {
		*p = ports
	}
	return err
}

// Bounds are the first and the last port, 0 and 65535 for every port.
func (p Ports) Bounds() (first, last int) {
	if p.Every() {
		return 0, 65535
	}
	return int(p.First), int(p.Last)
}

// Has reports whether a port is one of p.
func (p Ports) Has(port uint16) bool {
	first, last := p.Bounds()
	return first <= int(port) && int(port) <= last
}

// Overlaps reports whether p and q share a port.
func (p Ports) Overlaps(q Ports) bool {
	pf, pl := p.Bounds()
	qf, ql := q.Bounds()
	return pf <= ql && qf <= pl
}

// Within reports whether q holds every port of p and at least one more.
func (p Ports) Within(q Ports) bool {
	pf, pl := p.Bounds()
	qf, ql := q.Bounds()
	return qf <= pf && pl <= ql && p != q
}
