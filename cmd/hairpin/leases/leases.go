// SPDX-License-Identifier: Apache-2.0

// Package leases reads the lease files of miniupnpd: the port mappings that programs of the LAN have asked for by UPnP, NAT-PMP or
// PCP, and the pinholes for IPv6.
//
// It only reads files. It never decides whether a mapping becomes a forward: it knows neither the network nor the other forwards.
//
// miniupnpd writes one mapping a line. The fields are the protocol, the external port, the remote host (since miniupnpd 2.3.12 only),
// the target, its port, the time of the end, and a description that the program of the LAN has chosen:
//
//	TCP:3074:192.168.1.50:3074:1789054293:console
//	TCP:3074:198.51.100.7:192.168.1.50:3074:1789054293:console
//
// A pinhole has semicolons, and no external port: protocol, target, its port, remote host, its port, number, time of the end,
// description.
//
//	UDP;2001:db8::50;3074;;0;7;1789054293;console
package leases

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode"

	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/trust"
	"hairpin/maps/rule"
)

const (
	// maxSize is the largest size of a file in bytes: more than 10,000 mappings.
	maxSize = 1 << 20
	// maxLine is the longest line in bytes. miniupnpd itself reads at most 319.
	maxLine = 1024
	// maxProblems is how many problems of a file are kept.
	maxProblems = 16
	// maxDescription is the longest description in bytes. It becomes the comment of a forward.
	maxDescription = 100
	// firstDate is the earliest time of an end, in seconds of Unix time: September 2001. A smaller number is the rest of the lifetime,
	// which a miniupnpd writes that was built with LEASEFILE_USE_REMAINING_TIME.
	firstDate = 1_000_000_000
)

// Lease is a mapping: packets to the port of the external address go to the target.
type Lease struct {
	Protocol    rule.Protocol // TCP or UDP
	Port        uint16
	Target      netip.AddrPort // IPv4
	RemoteHost  string         // the only client on the Internet; "": every client, or the file does not say
	Expires     time.Time      // zero: the mapping stays as long as its line
	Description string         // printable, maybe shortened
	Line        int            // counts from 1
}

// Over reports whether the lifetime of the mapping has ended.
func (l *Lease) Over(now time.Time) bool { return !l.Expires.IsZero() && !now.Before(l.Expires) }

// Problem is a line that could not be read.
type Problem struct {
	Line int // counts from 1
	Text string
}

// String returns the problem on one line.
func (p Problem) String() string { return fmt.Sprintf("line %d: %s", p.Line, p.Text) }

// Content is what a lease file says.
type Content struct {
	Leases   []Lease   // in the order of the lines; a mapping that a later line has replaced is left out
	Pinholes int       // valid lines about IPv6. Their targets have global addresses, which need no translation
	Problems []Problem // the first lines that could not be read
	Bad      int       // number of all lines that could not be read
}

// Reasons why a mapping is not chosen. They are labels of a metric.
const (
	ReasonRemoteHost = "remote_host" // it is for one client on the Internet
	ReasonLimit      = "limit"       // there are too many
	ReasonDuplicate  = "duplicate"   // an earlier file has a mapping of the port
)

// Refusal is a mapping that is not chosen.
type Refusal struct {
	Name   string // of the forward that it would have been
	Reason string
	Text   string
}

// Choose returns the forwards for the mappings of all files whose time is not over, at most limit, and why others are not among them. The
// forwards are for clients of LANs alone: the rules that miniupnpd itself has made serve the Internet.
func Choose(files []Content, now time.Time, limit int) (forwards []rule.Forward, refused []Refusal) {
	taken := map[string]bool{}
	for i := range files {
		for _, l := range files[i].Leases {
			if l.Over(now) {
				continue
			}
			f := l.forward()
			switch {
			case l.RemoteHost != "":
				refused = append(refused, Refusal{f.Name, ReasonRemoteHost, fmt.Sprintf("the mapping is for %s alone", l.RemoteHost)})
			case taken[f.Name]:
				refused = append(refused, Refusal{f.Name, ReasonDuplicate, "another lease file has a mapping of this port"})
			case len(forwards) == limit:
				refused = append(refused, Refusal{f.Name, ReasonLimit, fmt.Sprintf("there are more than %d mappings (leases.max)", limit)})
			default:
				taken[f.Name] = true
				forwards = append(forwards, f)
			}
		}
	}
	return forwards, refused
}

// Name returns the name of the forward for the mapping.
func (l *Lease) Name() string { return fmt.Sprintf("lease-%s-%d", l.Protocol, l.Port) }

// forward returns the forward of a mapping. Of returns the mapping of such a forward.
func (l *Lease) forward() rule.Forward {
	return rule.Forward{
		Name:       l.Name(),
		Protocols:  []rule.Protocol{l.Protocol},
		Ports:      rule.Ports{First: l.Port, Last: l.Port},
		Target:     l.Target.Addr(),
		TargetPort: l.Target.Port(),
		Comment:    l.Description,
		LANOnly:    true,
		Source:     rule.SourceLease,
	}
}

// Of returns the mapping that a forward stands for, without the time of its end and its line: a forward does not have them.
func Of(f rule.Forward) Lease {
	return Lease{Protocol: f.Protocols[0], Port: f.Ports.First, Target: netip.AddrPortFrom(f.Target, f.TargetPorts().First), Description: f.Comment}
}

// NextEnd returns when the time of the next mapping is over; zero: none has an end.
func NextEnd(files []Content, now time.Time) (next time.Time) {
	for i := range files {
		for _, l := range files[i].Leases {
			if !l.Expires.IsZero() && l.Expires.After(now) && (next.IsZero() || l.Expires.Before(next)) {
				next = l.Expires
			}
		}
	}
	return next
}

// Read reads the file at path. A file that does not exist has no mappings: miniupnpd writes it with the first one. Read fails for a
// file that another user could have written, see trust.Check.
func Read(path string) (Content, error) {
	data, err := read(path)
	if errors.Is(err, unix.ENOENT) {
		return Content{}, nil
	}
	if err != nil {
		return Content{}, fmt.Errorf("read leases: %w", err)
	}
	return Parse(data), nil
}

func read(path string) ([]byte, error) {
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if err := trust.Check(path, info); err != nil {
		return nil, err
	}
	data, err := io.ReadAll(io.LimitReader(file, maxSize+1))
	if err == nil && len(data) > maxSize {
		err = fmt.Errorf("%s is larger than %d MiB, the limit for a lease file", path, maxSize>>20)
	}
	return data, err
}

// Parse reads the text of a lease file. Lines that it cannot read do not keep it from reading the others.
func Parse(data []byte) Content {
	var c Content
	last := map[mapping]int{} // index in c.Leases
	for line := 1; len(data) > 0; line++ {
		text, rest, whole := bytes.Cut(data, []byte{'\n'})
		data = rest
		lease, err := parseLine(string(text), whole)
		switch {
		case err != nil:
			c.Bad++
			if len(c.Problems) < maxProblems {
				c.Problems = append(c.Problems, Problem{line, err.Error()})
			}
		case lease == nil && len(text) > 0:
			c.Pinholes++
		case lease != nil:
			lease.Line = line
			at := mapping{lease.Protocol, lease.Port}
			if before, there := last[at]; there {
				c.Leases[before].Line = 0
			}
			last[at] = len(c.Leases)
			c.Leases = append(c.Leases, *lease)
		}
	}
	c.dropReplaced()
	return c
}

// mapping is what miniupnpd knows a mapping by.
type mapping struct {
	rule.Protocol
	port uint16
}

func (c *Content) dropReplaced() {
	kept := c.Leases[:0]
	for _, l := range c.Leases {
		if l.Line != 0 {
			kept = append(kept, l)
		}
	}
	c.Leases = kept
}

// parseLine reads one line; whole says that a newline ends it. It returns nil for a pinhole and for an empty line.
func parseLine(line string, whole bool) (*Lease, error) {
	switch {
	case line == "":
		return nil, nil
	case !whole:
		return nil, errors.New("the line is cut off: no newline ends it")
	case len(line) > maxLine:
		return nil, fmt.Errorf("the line has %d bytes; at most %d are possible", len(line), maxLine)
	}
	if end := strings.IndexAny(line, ":;"); end >= 0 && line[end] == ';' {
		return nil, parsePinhole(line)
	}
	return parseMapping(line)
}

func parseMapping(line string) (*Lease, error) {
	// A description may have colons. With a remote host the target comes one field later, and its place has a port otherwise.
	fields := strings.SplitN(line, ":", 7)
	newer := len(fields) == 7 && strings.Contains(fields[3], ".")
	if !newer {
		fields = strings.SplitN(line, ":", 6)
	}
	if len(fields) < 6 {
		return nil, fmt.Errorf("%s has %d fields; a mapping has at least 6", rule.Quote(line), len(fields))
	}
	var (
		l    Lease
		err  error
		errs []error
	)
	if newer {
		l.RemoteHost, err = parseRemoteHost(fields[2])
		errs = append(errs, err)
		fields = append(fields[:2], fields[3:]...)
	}
	l.Protocol, err = parseProtocol(fields[0])
	errs = append(errs, err)
	l.Port, err = parsePort(fields[1])
	errs = append(errs, err)
	target, err := netip.ParseAddr(fields[2])
	if err != nil || !target.Is4() {
		err = fmt.Errorf("%s is not an IPv4 address", rule.Quote(fields[2]))
	}
	errs = append(errs, err)
	port, err := parsePort(fields[3])
	errs = append(errs, err)
	l.Target = netip.AddrPortFrom(target, port)
	l.Expires, err = parseEnd(fields[4])
	errs = append(errs, err)
	l.Description = printable(fields[5])
	return &l, first(errs)
}

// parsePinhole checks a line about IPv6.
func parsePinhole(line string) error {
	fields := strings.SplitN(line, ";", 8)
	if len(fields) < 8 {
		return fmt.Errorf("%s has %d fields; a pinhole has 8", rule.Quote(line), len(fields))
	}
	_, err := parseProtocol(fields[0])
	errs := []error{err}
	target, err := netip.ParseAddr(fields[1])
	if err != nil || !target.Is6() || target.Is4In6() || target.Zone() != "" {
		err = fmt.Errorf("%s is not an IPv6 address", rule.Quote(fields[1]))
	}
	errs = append(errs, err)
	for _, port := range []string{fields[2], fields[4]} { // 0: every port
		if _, err := strconv.ParseUint(port, 10, 16); err != nil {
			errs = append(errs, fmt.Errorf("%s is not a port", rule.Quote(port)))
		}
	}
	if _, err := strconv.ParseUint(fields[5], 10, 32); err != nil {
		errs = append(errs, fmt.Errorf("%s is not the number of a pinhole", rule.Quote(fields[5])))
	}
	_, err = parseEnd(fields[6])
	return first(append(errs, err))
}

func first(errs []error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func parseProtocol(text string) (rule.Protocol, error) {
	switch text {
	case "TCP":
		return rule.TCP, nil
	case "UDP":
		return rule.UDP, nil
	}
	return 0, fmt.Errorf("%s is not a protocol of mappings; they have TCP or UDP", rule.Quote(text))
}

func parsePort(text string) (uint16, error) {
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil || port == 0 {
		return 0, fmt.Errorf("%s is not a port", rule.Quote(text))
	}
	return uint16(port), nil
}

// parseRemoteHost reads the client that a mapping is for. UPnP writes every client as nothing or as a star.
func parseRemoteHost(text string) (string, error) {
	if text == "" || text == "*" || text == "0.0.0.0" {
		return "", nil
	}
	if host := printable(text); host != text || strings.Contains(text, " ") {
		return "", fmt.Errorf("%s is not a remote host", rule.Quote(text))
	}
	return text, nil
}

// parseEnd reads the time at which a mapping ends. 0 means never.
func parseEnd(text string) (time.Time, error) {
	seconds, err := strconv.ParseUint(text, 10, 32) // miniupnpd's type
	if err != nil {
		return time.Time{}, fmt.Errorf("%s is not a time in seconds", rule.Quote(text))
	}
	if seconds < firstDate {
		return time.Time{}, nil
	}
	return time.Unix(int64(seconds), 0), nil
}

// printable returns a description without characters that a terminal could take for commands, and not too long. A program of the LAN
// has chosen it.
func printable(text string) string {
	clean := strings.Map(func(r rune) rune {
		if r == unicode.ReplacementChar || !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	if len(clean) > maxDescription {
		clean = strings.ToValidUTF8(clean[:maxDescription], "")
	}
	return strings.TrimSpace(clean)
}
