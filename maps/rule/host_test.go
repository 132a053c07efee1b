// SPDX-License-Identifier: Apache-2.0

package rule_test

import (
	"strings"
	"testing"

	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestParseHost(t *testing.T) {
	long := strings.Repeat(strings.Repeat("a", 63)+".", 4)
	for text, want := range map[string]string{
		"www.example.org":         "www.example.org",
		"WWW.Example.ORG.":        "www.example.org",
		"nas":                     "nas",
		"3com.example":            "3com.example", // RFC 1123 2.1
		"a--b.example":            "a--b.example",
		"r3---sn.example":         "r3---sn.example",
		"1.2.3.4x":                "1.2.3.4x",
		"bücher.example":          "xn--bcher-kva.example",
		"BÜCHER.example":          "xn--bcher-kva.example",
		"xn--bcher-kva.example":   "xn--bcher-kva.example",
		"例え。テスト":                  "xn--r8jz45g.xn--zckzah",
		long[:253]:                long[:253],
		strings.Repeat("a", 63):   strings.Repeat("a", 63),
		"localhost.example":       "localhost.example",
		"0xcafe.example":          "0xcafe.example",
		"xn--bcher-kva.R3---sn.x": "xn--bcher-kva.r3---sn.x",
	} {
		if got, err := rule.ParseHost(text); got != want || err != nil {
			t.Errorf("%.80q: %q, %v, want %q", text, got, err, want)
		}
	}
}

func TestParseHostRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                               `"" is not a host name: it is empty`,
		".":                              "it is empty",
		"*":                              "is a wildcard",
		"*.example.org":                  `"*.example.org" is a wildcard, which would also match hosts elsewhere`,
		"www.*.org":                      "is a wildcard",
		"a..b":                           "the part before or between dots is empty",
		".a":                             "the part before or between dots is empty",
		"a..":                            "the part before or between dots is empty",
		"a b":                            "it has ' ', and only letters, digits and dashes may be between dots",
		"a_b.example":                    "it has '_'",
		"_sip._tcp.example":              "it has '_'",
		"a\n.example":                    `it has '\n'`,
		"a\x00b":                         `it has '\x00'`,
		"a\"b":                           "it has '\"'",
		"http://www.example.org":         "it has ':'",
		"www.example.org:443":            "it has ':'",
		"-a.example":                     `"-a" begins or ends with a dash`,
		"a-.example":                     `"a-" begins or ends with a dash`,
		"192.168.1.20":                   "it ends in a number, as an address does",
		"10.1":                           "it ends in a number",
		"123":                            "it ends in a number",
		"a.0x7f":                         "it ends in a number",
		"2001:db8::1":                    "it has ':'",
		"localhost":                      "localhost and names below it mean the asking host itself",
		"a.localhost.":                   "localhost and names below it",
		strings.Repeat("a", 64) + ".x":   `has 64 characters, but the limit between dots is 63`,
		strings.Repeat("a.", 127):        "",
		strings.Repeat("a.", 127) + "a":  "it has 255 characters, but the limit is 253",
		strings.Repeat("ä", 60) + ".x":   "is not a host name",
		"xn--\x80":                       "is not a host name",
		"xn--a-ecp.example":              `"xn--a-ecp" is not a valid internationalized label`,
		"a\u200bb.example.\u2028":        "is not a host name",
		strings.Repeat("x", 1<<20):       "it has 1048576 characters",
		strings.Repeat("ü", 1<<20) + ".": "it has 1048576 characters",
	} {
		host, err := rule.ParseHost(text)
		switch {
		case want == "" && err != nil:
			t.Errorf("%.40q: %v", text, err)
		case want != "" && !mapstest.Contains(err, want):
			t.Errorf("%.40q: %q, error %.200v lacks %q", text, host, err, want)
		case err != nil && len(err.Error()) > 1000:
			t.Errorf("%.40q: an error of %d bytes", text, len(err.Error()))
		}
	}
}

// FuzzParseHost: a name that ParseHost accepts is safe in the files of every name server, and ParseHost returns it unchanged.
func FuzzParseHost(f *testing.F) {
	for _, text := range []string{"www.example.org.", "*.example", "bücher.example", "xn--bcher-kva", "a_b", "1.2.3.4", "a..b", "ß。x", "\u202ea.b"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		host, err := rule.ParseHost(text)
		if err != nil {
			return
		}
		if again, err := rule.ParseHost(host); again != host || err != nil {
			t.Fatalf("%q gives %q, which gives %q, %v", text, host, again, err)
		}
		if len(host) == 0 || len(host) > 253 || strings.Trim(host, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "" {
			t.Fatalf("%q gives %q", text, host)
		}
		for label := range strings.SplitSeq(host, ".") {
			if len(label) == 0 || len(label) > 63 || strings.Trim(label, "-") != label {
				t.Fatalf("%q gives %q with a label %q", text, host, label)
			}
		}
	})
}
