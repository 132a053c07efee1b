// SPDX-License-Identifier: Apache-2.0

package rule_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hairpin/maps/mapstest"
	"hairpin/maps/rule"
)

func TestParseForwardReadsWhatStringWrites(t *testing.T) {
	for _, test := range []struct {
		line string
		want rule.Forward
	}{
		{"web tcp 443 to 192.168.1.20:443", rule.Forward{Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: 443, Last: 443}, TargetPort: 443}},
		{"web tcp,udp 203.0.113.1:443 to 192.168.1.20:8443", rule.Forward{
			Protocols: []rule.Protocol{rule.TCP, rule.UDP}, External: rule.External{Address: netip.MustParseAddr("203.0.113.1")},
			Ports: rule.Ports{First: 443, Last: 443}, TargetPort: 8443,
		}},
		{"web udp wan0:6000-6010 to 192.168.1.20:7000-7010 from 10.0.0.0/8,192.0.2.1/32 reflect router", rule.Forward{
			Protocols: []rule.Protocol{rule.UDP}, External: rule.External{Interface: "wan0"}, Ports: rule.Ports{First: 6000, Last: 6010}, TargetPort: 7000,
			From:    []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("192.0.2.1/32")},
			Reflect: rule.ReflectRouter,
		}},
		{"web tcp any to 192.168.1.20 from 10.0.0.0/8 reflect off host www.example.org,example.org", rule.Forward{
			Protocols: []rule.Protocol{rule.TCP}, From: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}, Reflect: rule.ReflectOff,
			Hosts: []string{"www.example.org", "example.org"},
		}},
		{"web tcp any to 192.168.1.20 rate 100/s rate_per_source 20/min host example.org", rule.Forward{
			Protocols: []rule.Protocol{rule.TCP}, Rate: rule.Rate{Count: 100, Per: time.Second}, RatePerSource: rule.Rate{Count: 20, Per: time.Minute},
			Hosts: []string{"example.org"},
		}},
		{"web tcp any to 192.168.1.20 comment shop", rule.Forward{Protocols: []rule.Protocol{rule.TCP}, Comment: "shop"}},
		{"web tcp any to 192.168.1.20 rate_per_source 5/h", rule.Forward{Protocols: []rule.Protocol{rule.TCP}, RatePerSource: rule.Rate{Count: 5, Per: time.Hour}}},
		{"web tcp any to 192.168.1.20", rule.Forward{Protocols: []rule.Protocol{rule.TCP}}},
		{"web tcp wan0:any to 192.168.1.20 reflect off", rule.Forward{
			Protocols: []rule.Protocol{rule.TCP}, External: rule.External{Interface: "wan0"}, Reflect: rule.ReflectOff,
		}},
		{"web sctp 9899-9900 to 192.168.1.20:9899-9900", rule.Forward{Protocols: []rule.Protocol{rule.SCTP}, Ports: rule.Ports{First: 9899, Last: 9900}, TargetPort: 9899}},
		{"web tcp,sctp any to 192.168.1.20", rule.Forward{Protocols: []rule.Protocol{rule.TCP, rule.SCTP}}},
		{"web icmp,gre,esp,ipip,udplite wan0:any to 192.168.1.20 reflect router", rule.Forward{
			Protocols: []rule.Protocol{rule.ICMP, rule.GRE, rule.ESP, rule.IPIP, rule.UDPLite}, External: rule.External{Interface: "wan0"}, Reflect: rule.ReflectRouter,
		}},
		{"web any 203.0.113.7:any to 192.168.1.20", rule.Forward{
			Protocols: []rule.Protocol{rule.Any}, External: rule.External{Address: netip.MustParseAddr("203.0.113.7")},
		}},
	} {
		test.want.Name, test.want.Target = "web", netip.MustParseAddr("192.168.1.20")
		f := mapstest.Forward(t, test.line)
		if diff := cmp.Diff(test.want, f, mapstest.NetipValues); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", test.line, diff)
		}
		if f.String() != test.line {
			t.Errorf("%s: String gives %s", test.line, f)
		}
	}
}

func TestParseForwardTakesShortForms(t *testing.T) {
	for line, want := range map[string]string{
		"a tcp 443 to 192.168.1.20":                                                     "a tcp 443 to 192.168.1.20:443",
		"a tcp 6000-6010 to 192.168.1.20:7000":                                          "a tcp 6000-6010 to 192.168.1.20:7000-7010",
		"a tcp 443 to 192.168.1.20 reflect off from 1.2.3.4":                            "a tcp 443 to 192.168.1.20:443 from 1.2.3.4/32 reflect off",
		"a tcp 80-80 to 192.168.1.20":                                                   "a tcp 80 to 192.168.1.20:80",
		"a tcp 80 to 192.168.1.20 host A.Example.,a.example,bücher.example reflect off": "a tcp 80 to 192.168.1.20:80 reflect off host a.example,xn--bcher-kva.example",
	} {
		if got := mapstest.Forward(t, line).String(); got != want {
			t.Errorf("%s: got %s, want %s", line, got, want)
		}
	}
}

// If the last group of an IPv6 address may be a port, the parser must return an error and not guess.
func TestIPv6WithoutBrackets(t *testing.T) {
	const either = "%q is ambiguous: %s with port %s, or one longer address; write [%[2]s]:%[3]s or [%[1]s]"
	const brackets = "%q is an IPv6 address with a port, which needs brackets; write [%s]:%s"
	for _, test := range []struct{ text, addr, ports, want string }{
		{"fd00:1::20:80", "fd00:1::20", "80", either},
		{"fd00::1:2", "fd00::1", "2", either},
		{"::3:4:5:6:7:8", "::3:4:5:6:7", "8", either},
		{"fd00:1::20:8080", "fd00:1::20", "8080", either},
		{"fd00:1::20:12345", "fd00:1::20", "12345", brackets},
		{"fd00:1::20:6000-6010", "fd00:1::20", "6000-6010", brackets},
		{"1:2:3:4:5:6:7:8:80", "1:2:3:4:5:6:7:8", "80", brackets},
	} {
		want := fmt.Sprintf(test.want, test.text, test.addr, test.ports)
		for line, field := range map[string]string{"a tcp 80 to " + test.text: "to", "a any any to " + test.text: "to", "a tcp " + test.text + " to fd00::9": "external"} {
			_, err := rule.ParseForward(strings.Fields(line))
			if want := `forward "a": ` + field + ": " + want; err == nil || err.Error() != want {
				t.Errorf("%s:\ngot  %v\nwant %s", line, err, want)
			}
		}
		if _, err := rule.ParseExternal(test.text); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("write %s and give the port separately", test.addr)) {
			t.Errorf("external %s: %v", test.text, err)
		}
	}
	for _, text := range []string{
		"fd00:1::20", "::1:0", "fd00::1:0", "fd00::1:ab", "fd00::1:8a", "fd00::1:0080", "fd00::", "2001:db8:0:1:0:0:0:80", "1:2:3:4:5:6:7:8",
		"[fd00::1:80]", "[fd00::1]",
	} {
		want := netip.MustParseAddr(strings.Trim(text, "[]"))
		if f, err := rule.ParseForward([]string{"a", "tcp", "80", "to", text}); err != nil || f.Target != want || f.TargetPort != 0 {
			t.Errorf("to %s: %s, %v", text, f, err)
		}
		if external, err := rule.ParseExternal(text); err != nil || external.Address != want {
			t.Errorf("external %s: %s, %v", text, external, err)
		}
	}
}

// An address that is formatted for a file or for the running document can be parsed again, also if its last group looks like
// a port.
func TestIPv6IsWrittenAsItIsRead(t *testing.T) {
	addr := netip.MustParseAddr("fd00::1:80")
	for _, line := range []string{"a any any to [fd00::1:80]", "a any [fd00::1:80]:any to fd00::9", "a tcp [fd00::1:80]:443 to [fd00::1:90]:443"} {
		if got := mapstest.Forward(t, line).String(); got != line {
			t.Errorf("%s is written as %s", line, got)
		}
	}
	if got, err := rule.ParseExternal(rule.External{Address: addr}.Written()); err != nil || got.Address != addr {
		t.Errorf("written: %s, %v", got, err)
	}
	var read rule.Place
	text, err := rule.AtAddress(addr).MarshalText()
	if err = errors.Join(err, read.UnmarshalText(text)); err != nil || read.Address != addr {
		t.Errorf("document: %s gives %+v, %v", text, read, err)
	}
}

func TestParseForwardSaysWhatIsWrong(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	for line, wants := range map[string][]string{
		"web tcp 443":                                           {"forward needs NAME PROTO"},
		"Web tcp 443 to 10.0.0.1":                               {`name: "Web" is not a name`},
		"we\x1b[31mb tcp 443 to 10.0.0.1":                       {`"we\x1b[31mb" is not a name`},
		long + " tcp 443 to 10.0.0.1":                           {`xxx"... is not a name`},
		"web tpc 443 to 10.0.0.1":                               {`"tpc" is not a supported protocol`, `did you mean "tcp"?`},
		"web ipv6 443 to 10.0.0.1":                              {`"ipv6" is not a supported protocol; a forward is IPv4 or IPv6, as its target is: name tcp, udp or another protocol, and give an IPv6 address as the target`},
		"web ipv4 443 to 10.0.0.1":                              {`"ipv4" is not a supported protocol; a forward is IPv4 or IPv6, as its target is`, `give an IPv4 address as the target`},
		"web tcp6 443 to 10.0.0.1":                              {`"tcp6" is not a supported protocol; write "tcp": a forward is IPv4 or IPv6, as its target is`},
		"web ICMPv6 any to 10.0.0.1":                            {`"ICMPv6" is not a supported protocol; write "icmp": a forward is IPv4 or IPv6, as its target is`},
		"web igmp any to 10.0.0.1":                              {`"igmp" is not a supported protocol; possible are tcp, udp, sctp, icmp, udplite, gre, esp, ipip and any`},
		"web dccp 443 to 10.0.0.1":                              {`"dccp" is not a supported protocol; possible are tcp, udp`},
		"web tcpudp 443 to 10.0.0.1":                            {`"tcpudp" is not a supported protocol; name both: tcp and udp`},
		"web all any to 10.0.0.1":                               {`"all" is not a supported protocol; did you mean "any"?`},
		"web 47 any to 10.0.0.1":                                {`"47" is not a supported protocol; did you mean "gre"?`},
		"web 41 any to 10.0.0.1":                                {`"41" is not a supported protocol; possible are tcp, udp, sctp, icmp, udplite, gre, esp, ipip and any`},
		"web icmp 443 to 10.0.0.1":                              {`port: 443 is given, but protocol icmp has no ports; leave the port out (on the command line write "any")`},
		"web tcp,gre 443 to 10.0.0.1":                           {"port: 443 is given, but protocol gre has no ports", "make another forward for gre"},
		"web any 443 to 10.0.0.1":                               {"port: 443 is given, but protocol any has no ports"},
		"web any,tcp any to 10.0.0.1":                           {"protocol: any means every protocol; leave the others out"},
		"web esp any to 10.0.0.1:4500":                          {"to: target port 4500 is given, but protocol esp has no ports; leave the port out"},
		"web sctp 443 to 10.0.0.1:444":                          {"to: target port 444 differs from external port 443, but ports of sctp cannot change, because its checksum covers them"},
		"web tcp,sctp 80-90 to 10.0.0.1:180":                    {"to: target port 180-190 differs from external port 80-90"},
		"web tcp,tcp 443 to 10.0.0.1":                           {"protocol: tcp is there twice"},
		"web tcp 0 to 10.0.0.1":                                 {`port: "0" is not a port`, "1 to 65535"},
		"web tcp 65536 to 10.0.0.1":                             {`"65536" is not a port`},
		"web tcp -1 to 10.0.0.1":                                {`"" is not a port`},
		"web tcp 80abc to 10.0.0.1":                             {`"80abc" is not a port`},
		"web tcp 080 to 10.0.0.1":                               {`"080" is not a port`},
		"web tcp +80 to 10.0.0.1":                               {`"+80" is not a port`},
		"web tcp 6010-6000 to 10.0.0.1":                         {"runs backwards; write 6000-6010"},
		"web tcp 443 to 010.0.0.1":                              {`to: "010.0.0.1" is not an address`, "no leading zeros"},
		"web tcp 443 to server.lan:80":                          {`"server.lan" is not an address`},
		"web tcp 443 to 10.0.0.1:":                              {"ends where a port was expected"},
		"web tcp 203.0.113.1 to 10.0.0.1":                       {"has no port; write 203.0.113.1:443"},
		"web tcp 203.0.113:80 to 10.0.0.1":                      {`"203.0.113" is not an address`},
		"web tcp eth/0:80 to 10.0.0.1":                          {`"eth/0" cannot be the name of an interface`},
		"web tcp 6000-6010 to 10.0.0.1:7000-7011":               {"target range 7000-7011 has 12 ports, but external range 6000-6010 has 11"},
		"web tcp any to 10.0.0.1:80":                            {"target port 80 needs an external port"},
		"web tcp 443 too 10.0.0.1":                              {`"too" where "to" was expected`},
		"web tcp 443 to 10.0.0.1 form 10.0.0.0/8":               {`"form" is not an option of a forward; did you mean "from"?`},
		"web tcp 443 to 10.0.0.1 from":                          {`no value after "from"`},
		"web tcp 443 to 10.0.0.1 from 10.0.0.1/8":               {"write 10.0.0.0/8"},
		"web tcp 443 to 10.0.0.1 from 10.0.0.0/33":              {"is not a network"},
		"web tcp 443 to 10.0.0.1 reflect stand-in":              {`"stand-in" is not a reflect mode; possible are auto, router, public, prefix and off`},
		"web tcp 443 to 10.0.0.1 host":                          {`no value after "host"`},
		"web tcp 443 to 10.0.0.1 hosts a.b":                     {`"hosts" is not an option of a forward; did you mean "host"?`},
		"web tcp 443 to 10.0.0.1 host *.b,c_d,e.f,":             {`host: "*.b" is a wildcard`, `host: "c_d" is not a host name: it has '_'`, `host: "" is not a host name`},
		"web tcp 443 to 10.0.0.1 host a host b":                 {`"host" is there twice`},
		"web tcp 443 to 10.0.0.1 clients server":                {`"server" is not a value of clients; possible are auto and router`},
		"web tcp 443 to 10.0.0.1 clients":                       {`no value after "clients"`},
		"web tcp 443 to 10.0.0.1 reflect prefix clients router": {`clients: router hides every client`},
		"web tcp 443 to 10.0.0.1 reflect off reflect off":       {`"reflect" is there twice`},
		"W tpc 0 to 1.2.3 from x reflect y":                     {`"W" is not`, `"tpc"`, `"0" is not`, `"1.2.3" is not`, `"x" is not`, `"y" is not`},
	} {
		_, err := rule.ParseForward(strings.Split(line, " "))
		if err == nil {
			t.Errorf("%.80s: taken", line)
			continue
		}
		for _, want := range wants {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("%.80s: error %q lacks %q", line, err, want)
			}
		}
		if strings.ContainsAny(err.Error(), "\x1b") || len(err.Error()) > 1000 {
			t.Errorf("%.80s: error of %d bytes is not fit for a terminal", line, len(err.Error()))
		}
	}
}

func FuzzParseForward(f *testing.F) {
	for _, line := range []string{
		"web tcp,udp wan0:6000-6010 to 192.168.1.20:7000 from 10.0.0.0/8 reflect router",
		"web tcp 443 to 192.168.1.20:8443 reflect public", "web tcp 443 to 192.168.1.20:8443 reflect off clients router", "web any any to 192.168.1.20 reflect prefix",
		"x tcp [2001:db8::1]:443 to 10.0.0.1", "x tcp any to 1.2.3.4", "x tcp,udp [2001:db8::1]:6000-6010 to [fd00::20]:7000 from 2001:db8::/32,::1", "a b c to :", "a b : to ]:[",
		"x tcp 1 to 10.0.0.1 host a.b,C.d. from ::/0", "x any any to [fd00::1:80]", "x tcp fd00::1:80 to fd00::1:8a",
	} {
		f.Add(line)
	}
	f.Fuzz(func(t *testing.T, line string) {
		forward, err := rule.ParseForward(strings.Split(line, " "))
		if err != nil {
			return
		}
		again, err := rule.ParseForward(strings.Fields(forward.String()))
		if err != nil || again.String() != forward.String() {
			t.Fatalf("%q reads as %q, which reads as %q (%v)", line, forward, again, err)
		}
	})
}

func TestParseSelector(t *testing.T) {
	const line = "forward web proto udp client 10.0.0.0/8 dst 203.0.113.1/32 port 443 path hairpin state half-open" +
		" not forward dns not client 10.1.0.0/16 not client 10.2.0.0/16 not port 80-81 not state ended"
	s, err := rule.ParseSelector(strings.Fields(line))
	if err != nil {
		t.Fatal(err)
	}
	if s.String() != line {
		t.Errorf("got %s", s)
	}
	if names := slices.Collect(s.Forwards()); !slices.Equal(names, []string{"web", "dns"}) {
		t.Errorf("the selector names the forwards %q", names)
	}
	if s, err := rule.ParseSelector(nil); err != nil || !s.All() {
		t.Errorf("no words give %v, %v", s, err)
	}
	if s, err := rule.ParseSelector([]string{"src", "10.0.0.0/8"}); err != nil || s.String() != "client 10.0.0.0/8" {
		t.Errorf("src gives %v, %v", s, err)
	}
	for _, word := range []string{"forward a", "proto tcp", "client ::1", "dst ::1", "port 1", "path wan", "state ended", "not path wan"} {
		if s, err := rule.ParseSelector(strings.Fields(word)); err != nil || s.All() {
			t.Errorf("%s: %v, %v, and it picks all connections", word, s, err)
		}
	}
	for line, want := range map[string]string{
		"sorce 10.0.0.0/8":    `"sorce" does not select connections`,
		"prot tcp":            `did you mean "proto"?`,
		"port":                `no value after "port"`,
		"port 0":              `"0" is not a port`,
		"port 6010-6000":      "runs backwards; write 6000-6010",
		"port 6000-":          `"" is not a port`,
		"path lan":            `"lan" is not a path; the paths are wan (from the Internet), hairpin (from a LAN to the external address) and local (from the router itself)`,
		"proto tcp proto udp": `"proto" is there twice`,
		"src 10.0.0.1/8":      "write 10.0.0.0/8",
		"path x port y src z": "\"z\" is not an address",
		"proto any":           "no connection is of protocol any; leave proto out",
		"src ::1 client ::2":  `"client" is there twice`,
		"state closed":        `"closed" is not a state; possible are half-open, established, closing and ended`,
		"state x":             "possible are half-open, established, closing and ended",
		"not":                 `no condition after "not"`,
		"not not port 1":      `"not" is there twice in a row`,
		"not prot tcp":        `did you mean "proto"?`,
		"port 1 not port 0":   `"0" is not a port`,
	} {
		if _, err := rule.ParseSelector(strings.Fields(line)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: error %v lacks %s", line, err, want)
		}
	}
}

// TestNextSelectorWords: completion offers what the grammar takes at each place.
func TestNextSelectorWords(t *testing.T) {
	for line, want := range map[string]string{
		"":                       "forward proto client dst port path state not",
		"not":                    "forward proto client dst port path state",
		"path":                   "value of path",
		"not src":                "value of client",
		"path wan":               "forward proto client dst port path state not",
		"forward not":            "forward proto client dst port path state not", // a forward may have this name
		"path wan not forward":   "value of forward",
		"path wan not forward a": "forward proto client dst port path state not",
	} {
		words, value := rule.NextSelectorWords(strings.Fields(line))
		got := strings.Join(words, " ")
		if value != "" {
			got = "value of " + value
		}
		if got != want {
			t.Errorf("%q: %s, want %s", line, got, want)
		}
	}
}

func TestSuggest(t *testing.T) {
	for word, want := range map[string]string{
		"prot":                     `did you mean "proto"?`,
		"form":                     `did you mean "from"?`, // two neighbouring letters swapped
		"porto":                    `did you mean "proto"?`,
		"FROM":                     `did you mean "from"?`,
		"zebra":                    "possible are from and proto",
		"":                         "possible are from and proto",
		strings.Repeat("x", 1<<20): "possible are from and proto",
	} {
		if got := rule.Suggest(word, "from", "proto"); got != want {
			t.Errorf("%s: %s", word, got)
		}
	}
}
