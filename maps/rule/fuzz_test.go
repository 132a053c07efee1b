// SPDX-License-Identifier: Apache-2.0

package rule_test

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"hairpin/maps/rule"
)

// wantPrintable fails the test if an error has what a terminal would obey, or is too long to read.
func wantPrintable(t *testing.T, err error) {
	t.Helper()
	if strings.ContainsFunc(err.Error(), func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }) {
		t.Fatalf("not fit for a terminal: %q", err)
	}
}

func FuzzParseSelector(f *testing.F) {
	for _, line := range []string{
		"forward web proto udp client 10.0.0.0/8 dst 203.0.113.1/32 port 443 path hairpin state half-open", "not not", "not forward dns not port 80-81",
		"src 2001:db8::/32", "port 0", "port 1-65535", "port", "proto any", "state x state y",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		s, err := rule.ParseSelector(strings.Fields(line))
		if err != nil {
			wantPrintable(t, err)
			return
		}
		again, err := rule.ParseSelector(strings.Fields(s.String()))
		if err != nil || again.String() != s.String() {
			t.Fatalf("%q reads as %q, which reads as %q (%v)", line, s, again, err)
		}
		if s.All() != (s.String() == "") {
			t.Fatalf("%q: %q selects everything: %v", line, s, s.All())
		}
	})
}

func FuzzParseRate(f *testing.F) {
	for _, text := range []string{"100/s", "20/min", "5/h", "0/s", "01/s", "1000001/s", "/s", "1/", "1", "-1/s", "+1/s"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := rule.ParseRate(text)
		if err != nil {
			wantPrintable(t, err)
			return
		}
		if r.String() != text || r.Count < 1 || r.Count > 1_000_000 || r.Per < time.Second || r.Per > time.Hour {
			t.Fatalf("%q reads as %q", text, r)
		}
	})
}

func FuzzParseDenial(f *testing.F) {
	for _, line := range []string{"198.51.100.7 10m", "2001:db8::/32", "10.0.0.0/8 600", "1.2.3.4 -1", "1.2.3.4 0.5s", "1.2.3.4 9999999999999999999", "::ffff:1.2.3.4 1s", "1.2.3.4/24 1h"} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		source, lasts, err := rule.ParseDenial(strings.Split(line, " "))
		if err != nil {
			wantPrintable(t, err)
			return
		}
		if !source.IsValid() || source != source.Masked() || source.Addr().Is4In6() || source.Addr().Zone() != "" {
			t.Fatalf("%q denies %v", line, source)
		}
		if lasts != 0 && lasts < time.Second || lasts > 10*365*24*time.Hour {
			t.Fatalf("%q denies for %v", line, lasts)
		}
		if again, err := rule.ParsePrefix(rule.SourceText(source)); err != nil || again != source {
			t.Fatalf("%q is written as %q, which reads as %v (%v)", line, rule.SourceText(source), again, err)
		}
	})
}

func FuzzParsePorts(f *testing.F) {
	for _, text := range []string{"80", "6000-6010", "6010-6000", "0", "0-1", "65536", "1-65535", "80-80", "-", "+80"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		ports, err := rule.ParsePorts(text)
		if err != nil {
			wantPrintable(t, err)
			return
		}
		if ports.First == 0 || ports.First > ports.Last {
			t.Fatalf("%q reads as %d to %d", text, ports.First, ports.Last)
		}
		if again, err := rule.ParsePorts(ports.String()); !ports.Every() && (err != nil || again != ports) {
			t.Fatalf("%q reads as %q, which reads as %q (%v)", text, ports, again, err)
		}
	})
}
