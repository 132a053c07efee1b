// SPDX-License-Identifier: Apache-2.0

package rule_test

import (
	"fmt"
	"strings"
	"testing"

	"hairpin/maps/rule"
)

func TestServers(t *testing.T) {
	for words, want := range map[string]string{
		"web tcp 443 to 192.168.1.20:8443 to 192.168.1.21:8443":                                  "",
		"web tcp 443 to 192.168.1.20:8443 weight 2 to 192.168.1.21:8443 weight 0 affinity 30m0s": "",
		"web tcp 443 to 192.168.1.20:8443 weight 1":                                              "web tcp 443 to 192.168.1.20:8443",
		"web tcp 443 to 192.168.1.20:8443 weight 5":                                              "web tcp 443 to 192.168.1.20:8443",
		"games udp 6000-6010 to 192.168.1.20:7000-7010 to 192.168.1.21:6000-6010":                "",
		"dns udp 53 to [fd00::1]:53 to [fd00::2]:53":                                             "",
		"all any any to 192.168.1.20 to 192.168.1.21":                                            "",
		"web tcp 443 to 192.168.1.20:443 to 192.168.1.20:444":                                    "",
		"web tcp 443 to 192.168.1.20:8443 to 192.168.1.21":                                       "web tcp 443 to 192.168.1.20:8443 to 192.168.1.21:443",
	} {
		f, err := rule.ParseForward(strings.Fields(words))
		if err != nil {
			t.Errorf("%s: %v", words, err)
			continue
		}
		if want == "" {
			want = words
		}
		if got := f.String(); got != want && strings.ReplaceAll(got, " weight 1", "") != want {
			t.Errorf("%s: written as %s", words, got)
		}
		if problems := f.Check(); len(problems) > 0 {
			t.Errorf("%s: %v", words, problems[0])
		}
	}
}

func TestServersThatCannotBe(t *testing.T) {
	many := "web tcp 443"
	for i := range rule.MaxServers + 1 {
		many += fmt.Sprintf(" to 192.168.%d.%d:443", 1+i/200, 1+i%200)
	}
	for words, says := range map[string]string{
		"web tcp 443 to 192.168.1.20 to fd00::1":                       "fd00::1 is an IPv6 address, but the first server 192.168.1.20 is IPv4",
		"web tcp 443 to 192.168.1.20 to 192.168.1.20":                  "192.168.1.20:443 is there twice",
		"web tcp 443 to 192.168.1.20 to 192.168.1.20:443":              "is there twice",
		"games udp 1-10 to 192.168.1.20:1-10 to 192.168.1.20:5-14":     "192.168.1.20:1-10 and 192.168.1.20:5-14 have ports in common",
		"web tcp 443 to 192.168.1.20 weight 257 to 192.168.1.21":       "257 is not a weight; a weight is 1 to 256",
		"web tcp 443 to 192.168.1.20 weight -1 to 192.168.1.21":        "-1 is not a weight",
		"web tcp 443 to 192.168.1.20 weight 0 to 192.168.1.2 weight 0": "every server has weight 0",
		"games udp 1-10 to 192.168.1.20:1-10 to 192.168.1.21:1-9":      "target range 1-9 has 9 ports",
		"web sctp 443 to 192.168.1.20:443 to 192.168.1.21:444":         "ports of sctp cannot change",
		"web tcp 443 to 192.168.1.20 affinity 30m":                     "affinity: the forward has one server",
		"web tcp 443 to 192.168.1.20 to 192.168.1.21 affinity 1ms":     "1ms is out of range",
		"web tcp 443 to 192.168.1.20 to 192.168.1.21 affinity 1500ms":  "not a whole number of seconds",
		"web tcp 443 to 192.168.1.20 to 127.0.0.1":                     "127.0.0.1 is a loopback address",
		many: "257 servers; at most 256 are possible",
	} {
		f, err := rule.ParseForward(strings.Fields(words))
		if err == nil {
			if problems := f.Check(); len(problems) > 0 {
				err = problems[0]
			}
		}
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%.60s: %v, want %q", words, err, says)
		}
	}
}
