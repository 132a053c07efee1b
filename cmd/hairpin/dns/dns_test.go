// SPDX-License-Identifier: Apache-2.0

package dns

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// forwards parses lines of "forward add"; the first line has the source x:1.
func forwards(t testing.TB, lines ...string) []rule.Forward {
	t.Helper()
	c := config.Default()
	c.WAN = []string{"wan0", "wan1"}
	for i, line := range lines {
		f, err := rule.ParseForward(strings.Fields(line))
		if err != nil {
			t.Fatal(err)
		}
		f.Source = fmt.Sprintf("x:%d", i+1)
		c.Forwards = append(c.Forwards, f)
	}
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
	return c.Forwards
}

// home returns forwards for IPv4 and IPv6: names with one and with several forwards, and a forward without
// hosts.
func home(t testing.TB) []rule.Forward {
	return forwards(t,
		"web6 tcp 443 to fd00::20 host www.example.org",
		"web tcp 443 to 192.168.1.20 host www.example.org,example.org",
		"http tcp 80 to 192.168.1.20 host example.org",
		"game udp 6000-6010 to 192.168.1.30",
		"six tcp 25 to fd00::30 host six.example.org",
	)
}

func TestNames(t *testing.T) {
	list := home(t)
	addr := netip.MustParseAddr
	want := []Name{
		{"example.org", []netip.Addr{addr("192.168.1.20")}, []string{"web", "http"}},
		{"six.example.org", []netip.Addr{addr("fd00::30")}, []string{"six"}},
		{"www.example.org", []netip.Addr{addr("192.168.1.20"), addr("fd00::20")}, []string{"web6", "web"}},
	}
	got, warnings := Names(list, Options{})
	if diff := cmp.Diff(want, got, cmpopts.EquateComparable(netip.Addr{})); diff != "" || warnings != nil {
		t.Errorf("warnings %v (-want +got)\n%s", warnings, diff)
	}
	if names, _ := Names(nil, Options{}); names == nil || len(names) != 0 {
		t.Errorf("no forwards give %v, want an empty list", names)
	}
}

func TestWarnings(t *testing.T) {
	const web = "web tcp 443 to 192.168.1.20 host www.example.org"
	for name, test := range map[string]struct {
		lines []string
		want  []string
	}{
		"nothing": {[]string{web, "web6 tcp 443 to fd00::20 host www.example.org"}, nil},
		"another port": {[]string{"web tcp 443 to 192.168.1.20:8443 host a.b,b.b,c.b,d.b,e.b"}, []string{
			`x:1: forward "web": hosts: port 443 is 8443 at 192.168.1.20, but DNS carries no port, so LAN clients of a.b, b.b, c.b and 2 more use port 443 there; let the target listen on that port, too, or leave hosts out to reflect these clients`,
		}},
		"shifted range": {[]string{"web tcp 6000-6010 to 192.168.1.20:7000 host a.b"}, []string{`x:1: forward "web": hosts: port 6000-6010 is 7000-7010 at 192.168.1.20`}},
		"without hosts": {[]string{"web tcp 443 to 192.168.1.20:8443", "ssh tcp 22 to 192.168.1.30 from 198.51.100.0/24"}, nil},
		"a port of a 1:1 forward elsewhere": {[]string{"ssh tcp wan0:22 to 192.168.1.30", "all tcp,udp wan0:any to 192.168.1.20 host a.b"}, []string{
			`x:2: forward "all": hosts: port 22 goes to 192.168.1.30 by forward "ssh", not to 192.168.1.20, but DNS has one address for all ports of a.b; give the other target another name`,
		}},
		"a port of every protocol elsewhere": {[]string{"all any wan0:any to 192.168.1.20 host a.b", "ssh tcp wan0:22 to 192.168.1.30"}, []string{`x:1: forward "all": hosts: port 22 goes to 192.168.1.30`}},
		"a protocol of every one elsewhere":  {[]string{"all any wan0:any to 192.168.1.20 host a.b", "gre gre wan0:any to 192.168.1.30"}, []string{`x:1: forward "all": hosts: a part of it goes to 192.168.1.30`}},
		"a range in a range": {[]string{"a tcp 1-100 to 192.168.1.20 host a.b", "b tcp 10-20 to 192.168.1.30 host b.b", "c tcp 15 to 192.168.1.40", "d tcp 21-30 to 192.168.1.20"}, []string{
			`x:1: forward "a": hosts: port 10-20 goes to 192.168.1.30`, `x:2: forward "b": hosts: port 15 goes to 192.168.1.40`,
		}},
		"the same target": {[]string{"all tcp any to 192.168.1.20 host a.b", "ssh tcp 22 to 192.168.1.20"}, nil},
		"another place, protocol or family": {[]string{"all tcp wan0:any to 192.168.1.20 host a.b", "ssh tcp wan1:22 to 192.168.1.30",
			"dns udp wan0:53 to 192.168.1.30", "ssh6 tcp wan0:22 to fd00::30"}, nil},
		"only some may": {[]string{web + " from 198.51.100.0/24"}, []string{
			`x:1: forward "web": hosts: its from list does not contain 192.168.1.20, but LAN clients of www.example.org reach the target directly, so the list does not stop them; leave hosts out to stop them`,
		}},
		"the LAN may, too": {[]string{web + " from 198.51.100.0/24,192.168.0.0/16"}, nil},
		"not reflected":    {[]string{web + " reflect off"}, nil},
	} {
		_, warnings := Names(forwards(t, test.lines...), Options{})
		var got []string
		for _, warning := range warnings {
			got = append(got, warning.String())
		}
		if len(got) != len(test.want) {
			t.Errorf("%s: %d warnings, want %d:\n%s", name, len(got), len(test.want), strings.Join(got, "\n"))
			continue
		}
		for i := range got {
			if !strings.HasPrefix(got[i], test.want[i]) {
				t.Errorf("%s:\ngot  %s\nwant %s", name, got[i], test.want[i])
			}
		}
	}
}

// TestInterceptsAreNobodysNames: an intercept listens at no address that a name has, so it causes no
// warning.
func TestInterceptsAreNobodysNames(t *testing.T) {
	list := append(forwards(t, "all tcp,udp any to 192.168.1.20 host a.b"), rule.Forward{
		Intercept: true, Name: "dns", Protocols: []rule.Protocol{rule.UDP}, Ports: rule.Ports{First: 53, Last: 53}, Target: netip.MustParseAddr("192.168.1.1"),
	})
	if names, warnings := Names(list, Options{}); len(names) != 1 || len(warnings) != 0 {
		t.Errorf("names %v, warnings %v", names, warnings)
	}
}

func TestReach(t *testing.T) {
	asked := 0
	_, warnings := Names(home(t), Options{Reach: func(addr netip.Addr) error {
		asked++
		if addr.Is6() {
			return nil
		}
		return errors.New("it is on the moon")
	}})
	if len(warnings) != 2 || asked != 3 {
		t.Fatalf("%d warnings, asked for %d targets:\n%v", len(warnings), asked, warnings)
	}
	if want := `x:2: forward "web": hosts: LAN clients of www.example.org, example.org do not reach the target: it is on the moon`; warnings[0].String() != want {
		t.Errorf("got  %s\nwant %s", warnings[0], want)
	}
}

const policyHead = `; Written by hairpin dns as bind-rpz. Do not edit: it is replaced. Change the forwards instead.
; Names are relative to the zone's name. For a name in this file BIND answers other record
; types with no data. Names below it keep their public answers.
$TTL 60
@ IN SOA localhost. hostmaster.localhost. 7 3600 600 86400 60
@ IN NS localhost.
`

func TestRender(t *testing.T) {
	names, _ := Names(home(t), Options{})
	const lines = `192.168.1.20 example.org
fd00::30 six.example.org
192.168.1.20 www.example.org
fd00::20 www.example.org
`
	for format, want := range map[config.DNSFormat]string{
		config.DNSHosts:   "# Written by hairpin dns as hosts. Do not edit: it is replaced. Change the forwards instead.\n" + lines + "# End of hairpin dns\n",
		config.DNSDnsmasq: "# Written by hairpin dns as dnsmasq. Do not edit: it is replaced. Change the forwards instead.\n" + lines,
		config.DNSUnbound: `# Written by hairpin dns as unbound. Do not edit: it is replaced. Change the forwards instead.
server:
	local-zone: "example.org." typetransparent
	local-data: "example.org. 60 IN A 192.168.1.20"
	local-zone: "six.example.org." typetransparent
	local-data: "six.example.org. 60 IN AAAA fd00::30"
	local-zone: "www.example.org." typetransparent
	local-data: "www.example.org. 60 IN A 192.168.1.20"
	local-data: "www.example.org. 60 IN AAAA fd00::20"
`,
		config.DNSBindRPZ: policyHead + `example.org IN A 192.168.1.20
six.example.org IN AAAA fd00::30
www.example.org IN A 192.168.1.20
www.example.org IN AAAA fd00::20
`,
	} {
		if diff := cmp.Diff(want, string(File{Format: format, Serial: 7}.Render(names))); diff != "" {
			t.Errorf("%s: (-want +got)\n%s", format, diff)
		}
	}
	view := string(File{Format: config.DNSBindView, Zone: "/var/cache/bind/x.rpz"}.Render(names))
	if !strings.Contains(view, `file "/var/cache/bind/x.rpz";`) || !strings.HasPrefix(view, "// Written by hairpin dns as bind-view.") {
		t.Errorf("view:\n%s", view)
	}
	if view := string(File{Format: config.DNSBindView}.Render(nil)); !strings.Contains(view, `file "hairpin.rpz";`) {
		t.Errorf("view:\n%s", view)
	}
}

// TestOrder: a file does not depend on the order of the forwards.
func TestOrder(t *testing.T) {
	list := home(t)
	names, _ := Names(list, Options{})
	slices.Reverse(list)
	reversed, _ := Names(list, Options{})
	for _, format := range config.DNSFormats() {
		file := File{Format: format}
		if diff := cmp.Diff(string(file.Render(names)), string(file.Render(reversed))); diff != "" {
			t.Errorf("%s:\n%s", format, diff)
		}
	}
}

func TestOurs(t *testing.T) {
	for _, format := range config.DNSFormats() {
		if file := (File{Format: format}).Render(nil); !isOurs(file) {
			t.Errorf("not ours:\n%s", file)
		}
	}
	for _, text := range []string{"", "127.0.0.1 localhost\n", "# Written by hand\n", "x Written by hairpin dns as hosts\n",
		"127.0.0.1 localhost\n# Written by hairpin dns as hosts.\n", "# Written by `hairpin save`, which replaces it as a whole.\n"} {
		if isOurs([]byte(text)) {
			t.Errorf("ours: %q", text)
		}
	}
}

func TestUpdateRaisesTheSerial(t *testing.T) {
	all, _ := Names(home(t), Options{Format: config.DNSBindRPZ})
	file := File{Format: config.DNSBindRPZ}
	at := func(seconds int64) time.Time { return time.Unix(seconds, 0) }
	zoneAt := func(serial uint32) []byte { return File{Format: config.DNSBindRPZ, Serial: serial}.Render(all) }
	for name, test := range map[string]struct {
		previous []byte
		names    []Name
		now      int64
		want     uint32
	}{
		"a new file":              {nil, all, 1000, 1000},
		"an empty file":           {[]byte{}, all, 1000, 1000},
		"the same names":          {zoneAt(500), all, 1000, 500},
		"other names":             {zoneAt(500), all[:1], 1000, 1000},
		"twice in a second":       {zoneAt(1000), all[:1], 1000, 1001},
		"a clock that went back":  {zoneAt(5000), all[:1], 1000, 5001},
		"round the circle":        {zoneAt(1<<32 - 1), all[:1], 1 << 32, 0},
		"the end of the circle":   {zoneAt(1<<32 - 1), all[:1], 1<<32 - 1, 0},
		"a file without a serial": {[]byte(policyHead[:90]), all, 1000, 1000},
	} {
		got := file.update(test.previous, test.names, at(test.now))
		if want := (File{Format: config.DNSBindRPZ, Serial: test.want}).Render(test.names); !bytes.Equal(got, want) {
			t.Errorf("%s: (-want +got)\n%s", name, cmp.Diff(string(want), string(got)))
		}
	}
	plain := File{Format: config.DNSHosts}
	if !bytes.Equal(plain.update(nil, all, at(1)), plain.Render(all)) {
		t.Error("a file without a serial depends on the time")
	}
}

// TestPolicyZoneLeavesOut: exactly the hosts that a policy zone cannot contain are left out.
func TestPolicyZoneLeavesOut(t *testing.T) {
	fitting := strings.Repeat("a.", 120) + "b" // 241 characters
	list := forwards(t, "a tcp 1 to 10.0.0.1 host ok.example,c."+fitting+","+fitting+",a.rpz-ip")
	names, warnings := Names(list, Options{Format: config.DNSBindRPZ})
	if len(names) != 2 || len(warnings) != 2 || !strings.Contains(warnings[0].Message, "has at most 241 characters") ||
		!strings.Contains(warnings[1].Message, "a.rpz-ip is left out") {
		t.Errorf("%d names, warnings %v", len(names), warnings)
	}
	if names, warnings := Names(list, Options{Format: config.DNSUnbound}); len(names) != 4 || warnings != nil {
		t.Errorf("%d names, warnings %v", len(names), warnings)
	}
}

// many returns n names with 192.168 addresses; every tenth name also has an IPv6 address.
func many(n int) []rule.Forward {
	list := make([]rule.Forward, 0, n)
	for i := range n {
		f := rule.Forward{
			Name: fmt.Sprintf("f%d", i), Protocols: []rule.Protocol{rule.TCP}, Ports: rule.Ports{First: 443, Last: 443},
			External: rule.External{Address: netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)})},
			Target:   netip.AddrFrom4([4]byte{192, 168, byte(i >> 8), byte(i)}),
			Hosts:    []string{fmt.Sprintf("host-%d.example.org", i)},
		}
		list = append(list, f)
	}
	return list
}

// BenchmarkTenThousandNames should need at most 100 ms, also on a busy machine.
func BenchmarkTenThousandNames(b *testing.B) {
	list := many(10_000)
	for _, format := range config.DNSFormats() {
		b.Run(string(format), func(b *testing.B) {
			for b.Loop() {
				names, warnings := Names(list, Options{Format: format})
				if file := (File{Format: format}).Render(names); len(names) != len(list) || warnings != nil || len(file) == 0 {
					b.Fatal(len(names), warnings)
				}
			}
			if each := b.Elapsed() / time.Duration(b.N); each > 100*time.Millisecond {
				b.Errorf("%v, and 100 ms is the most", each)
			}
		})
	}
}
