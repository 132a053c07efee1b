// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"fmt"
	"strconv"
	"strings"
)

// Ports is a range of ports from First to Last, both included. The zero value means every port, as in a 1:1 forward.
type Ports struct{ First, Last uint16 }

// anyPort stands for every port on the command line (a 1:1 forward).
const anyPort = "any"

// ParsePorts reads "443" or "6000-6010". Ports are decimal numbers from 1 to 65535. Leading zeros are an error, because
// some programs read such numbers as octal.
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

// Every reports whether p is the zero value, which means every port.
func (p Ports) Every() bool { return p == Ports{} }

// Len returns the number of ports: 65536 if p means every port.
func (p Ports) Len() int {
	first, last := p.Bounds()
	return last - first + 1
}

// String formats p as "443" or "6000-6010". It returns "" if p means every port.
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

// Bounds returns the first and the last port: 0 and 65535 if p means every port.
func (p Ports) Bounds() (first, last int) {
	if p.Every() {
		return 0, 65535
	}
	return int(p.First), int(p.Last)
}

// Has reports whether p contains the port.
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

// Within reports whether q contains every port of p and is larger than p.
func (p Ports) Within(q Ports) bool {
	pf, pl := p.Bounds()
	qf, ql := q.Bounds()
	return qf <= pf && pl <= ql && p != q
}
