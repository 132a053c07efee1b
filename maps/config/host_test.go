// SPDX-License-Identifier: Apache-2.0

package config_test

import (
	"fmt"
	"testing"

	"hairpin/maps/mapstest"
)

func TestHostsOfForwards(t *testing.T) {
	const web, web6 = "web tcp 443 to 10.0.0.1 host www.example.org,example.org", "web6 tcp 443 to fd00::1 host www.example.org"
	for name, test := range map[string]struct {
		lines []string
		want  string
	}{
		"both families":      {[]string{web, web6}, ""},
		"several forwards":   {[]string{web, "quic udp 443 to 10.0.0.1 host www.example.org", "http tcp 80 to 10.0.0.1 host www.example.org,example.org"}, ""},
		"another target":     {[]string{web, "mail tcp 25 to 10.0.0.2 host mail.example.org,example.org"}, `forward "mail": hosts: example.org is also a host of forward "web" (x:0), whose target is 10.0.0.1, not 10.0.0.2`},
		"another IPv6 one":   {[]string{web6, web, "mail tcp 25 to fd00::2 host www.example.org"}, `forward "mail": hosts: www.example.org is also a host of forward "web6" (x:0), whose target is fd00::1, not fd00::2`},
		"another port of it": {[]string{web, "alt tcp 8443 to 10.0.0.1:9443 host www.example.org"}, ""},
	} {
		c := mapstest.Config(t, test.lines...)
		for i := range c.Forwards {
			c.Forwards[i].Source = fmt.Sprintf("x:%d", i)
		}
		err := c.Validate()
		if test.want == "" && err != nil || test.want != "" && !mapstest.Contains(err, test.want) {
			t.Errorf("%s: error %v, want %q", name, err, test.want)
		}
	}
}
