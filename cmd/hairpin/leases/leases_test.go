// SPDX-License-Identifier: Apache-2.0

package leases

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"hairpin/maps/rule"
)

var values = []cmp.Option{cmpopts.EquateComparable(netip.AddrPort{}), cmpopts.EquateEmpty()}

// console is the mapping of the examples, on its line.
func console(line int) Lease {
	return Lease{
		Protocol: rule.TCP, Port: 3074, Target: netip.MustParseAddrPort("192.168.1.50:3075"), Expires: time.Unix(1789054293, 0),
		Description: "console", Line: line,
	}
}

func with(l Lease, change func(*Lease)) Lease {
	change(&l)
	return l
}

func TestParse(t *testing.T) {
	for name, test := range map[string]struct {
		text     string
		want     []Lease
		pinholes int
		problems []string // words of each, in the order of the lines
	}{
		"nothing":       {text: ""},
		"empty lines":   {text: "\n\n"},
		"old format":    {text: "TCP:3074:192.168.1.50:3075:1789054293:console\n", want: []Lease{console(1)}},
		"new format":    {text: "TCP:3074::192.168.1.50:3075:1789054293:console\n", want: []Lease{console(1)}},
		"any client":    {text: "TCP:3074:*:192.168.1.50:3075:1789054293:console\n", want: []Lease{console(1)}},
		"no address":    {text: "TCP:3074:0.0.0.0:192.168.1.50:3075:1789054293:console\n", want: []Lease{console(1)}},
		"remote host":   {text: "TCP:3074:1.2.3.4:192.168.1.50:3075:1789054293:console\n", want: []Lease{with(console(1), func(l *Lease) { l.RemoteHost = "1.2.3.4" })}},
		"remote name":   {text: "TCP:3074:play.example.org:192.168.1.50:3075:1789054293:console\n", want: []Lease{with(console(1), func(l *Lease) { l.RemoteHost = "play.example.org" })}},
		"UDP":           {text: "UDP:3074:192.168.1.50:3075:1789054293:console\n", want: []Lease{with(console(1), func(l *Lease) { l.Protocol = rule.UDP })}},
		"no end":        {text: "TCP:3074:192.168.1.50:3075:0:console\n", want: []Lease{with(console(1), func(l *Lease) { l.Expires = time.Time{} })}},
		"rest of time":  {text: "TCP:3074:192.168.1.50:3075:600:console\n", want: []Lease{with(console(1), func(l *Lease) { l.Expires = time.Time{} })}},
		"no text":       {text: "TCP:3074:192.168.1.50:3075:1789054293:\n", want: []Lease{with(console(1), func(l *Lease) { l.Description = "" })}},
		"colons":        {text: "TCP:3074:192.168.1.50:3075:1789054293:a:1.2.3.4:b\n", want: []Lease{with(console(1), func(l *Lease) { l.Description = "a:1.2.3.4:b" })}},
		"new, colons":   {text: "TCP:3074::192.168.1.50:3075:1789054293:a;b:c\n", want: []Lease{with(console(1), func(l *Lease) { l.Description = "a;b:c" })}},
		"terminal":      {text: "TCP:3074:192.168.1.50:3075:1789054293: \x1b]0;x\x07\xff\u202e \n", want: []Lease{with(console(1), func(l *Lease) { l.Description = "]0;x" })}},
		"NAT-PMP":       {text: "TCP:3074:192.168.1.50:3075:1789054293:NAT-PMP 3074 tcp\n", want: []Lease{with(console(1), func(l *Lease) { l.Description = "NAT-PMP 3074 tcp" })}},
		"replaced":      {text: "TCP:3074:192.168.1.51:1:0:x\nTCP:3074:192.168.1.50:3075:1789054293:console\n", want: []Lease{console(2)}},
		"UDP besides":   {text: "TCP:3074:192.168.1.50:3075:1789054293:console\nUDP:3074:192.168.1.50:3075:1789054293:console\n", want: []Lease{console(1), with(console(2), func(l *Lease) { l.Protocol = rule.UDP })}},
		"mixed formats": {text: "TCP:3074:192.168.1.50:3075:1789054293:console\nTCP:3075::192.168.1.50:3075:1789054293:console\n", want: []Lease{console(1), with(console(2), func(l *Lease) { l.Port = 3075 })}},
		"pinhole":       {text: "UDP;2001:db8::50;3074;;0;7;1789054293;console\n", pinholes: 1},
		"pinhole, host": {text: "TCP;2001:db8::50;0;2001:db8:1::1;443;0;0;a;b:c\n", pinholes: 1},
		"broken inside": {
			text: "rubbish\nTCP:3074:192.168.1.50:3075:1789054293:console\n\x00\x1b[2J\n", want: []Lease{console(2)},
			problems: []string{`line 1: "rubbish" has 1 fields`, `line 3: "\x00\x1b[2J" has 1 fields`},
		},
		"cut off":           {text: "TCP:3074:192.168.1.50:3075:1789054293:console\nTCP:3076:192.168.1.50:3075:17890", want: []Lease{console(1)}, problems: []string{"line 2: the line is cut off"}},
		"cut off, complete": {text: "TCP:3076:192.168.1.50:3075:1789054293:console", problems: []string{"line 1: the line is cut off"}},
		"protocol":          {text: "UDPLITE:3074:192.168.1.50:3075:0:\n", problems: []string{`"UDPLITE" is not a protocol`}},
		"port 0":            {text: "TCP:0:192.168.1.50:3075:0:\n", problems: []string{`"0" is not a port`}},
		"port too high":     {text: "TCP:65536:192.168.1.50:3075:0:\n", problems: []string{`"65536" is not a port`}},
		"signed port":       {text: "TCP:+1:192.168.1.50:3075:0:\n", problems: []string{`"+1" is not a port`}},
		"target port 0":     {text: "TCP:1:192.168.1.50:0:0:\n", problems: []string{`"0" is not a port`}},
		"target":            {text: "TCP:1:192.168.1.500:1:0:\n", problems: []string{`"192.168.1.500" is not an IPv4 address`}},
		"target, new":       {text: "TCP:1::192.168.1.500:1:0:\n", problems: []string{`"192.168.1.500" is not an IPv4 address`}},
		"end":               {text: "TCP:1:192.168.1.50:1:soon:\n", problems: []string{`"soon" is not a time`}},
		"end too far":       {text: "TCP:1:192.168.1.50:1:4294967296:\n", problems: []string{`"4294967296" is not a time`}},
		"remote host, bad":  {text: "TCP:1:a\x1bb:192.168.1.50:1:0:\n", problems: []string{`"a\x1bb" is not a remote host`}},
		"pinhole, few":      {text: "UDP;2001:db8::50;3074\n", problems: []string{"has 3 fields; a pinhole has 8"}},
		"pinhole, address":  {text: "UDP;::ffff:1.2.3.4;3074;;0;7;0;\n", problems: []string{`"::ffff:1.2.3.4" is not an IPv6 address`}},
		"pinhole, port":     {text: "UDP;2001:db8::50;x;;0;7;0;\n", problems: []string{`"x" is not a port`}},
		"pinhole, number":   {text: "UDP;2001:db8::50;1;;0;x;0;\n", problems: []string{`"x" is not the number`}},
		"pinhole, end":      {text: "UDP;2001:db8::50;1;;0;7;x;\n", problems: []string{`"x" is not a time`}},
		"pinhole, cut off":  {text: "UDP;2001:db8::50;3074;;0;7;1789054293;console", problems: []string{"line 1: the line is cut off"}},
		"long line":         {text: strings.Repeat("x", maxLine+1) + "\n", problems: []string{"has 1025 bytes; at most 1024"}},
	} {
		t.Run(name, func(t *testing.T) {
			got := Parse([]byte(test.text))
			if diff := cmp.Diff(test.want, got.Leases, values...); diff != "" {
				t.Errorf("leases (-want +got):\n%s", diff)
			}
			if got.Pinholes != test.pinholes {
				t.Errorf("%d pinholes, want %d", got.Pinholes, test.pinholes)
			}
			if len(got.Problems) != len(test.problems) || got.Bad != len(test.problems) {
				t.Fatalf("problems %q, %d bad lines, want %q", got.Problems, got.Bad, test.problems)
			}
			for i, words := range test.problems {
				if text := got.Problems[i].String(); !strings.Contains(text, words) {
					t.Errorf("problem %q, want %q", text, words)
				}
			}
		})
	}
}

// TestManyProblems: a file of nothing but broken lines takes no memory for their texts.
func TestManyProblems(t *testing.T) {
	got := Parse([]byte(strings.Repeat("x\n", 100_000)))
	if len(got.Problems) != maxProblems || got.Bad != 100_000 {
		t.Errorf("%d problems, %d bad lines", len(got.Problems), got.Bad)
	}
}

func TestOver(t *testing.T) {
	now := time.Unix(1789054293, 0)
	for _, test := range []struct {
		end  time.Time
		want bool
	}{{time.Time{}, false}, {now.Add(time.Second), false}, {now, true}, {now.Add(-time.Hour), true}} {
		if l := (Lease{Expires: test.end}); l.Over(now) != test.want {
			t.Errorf("end %v: over %v", test.end, l.Over(now))
		}
	}
}

// TestChoose: mappings for one client on the Internet, mappings that another file has, and too many of them are refused. Those whose time is
// over are not there.
func TestChoose(t *testing.T) {
	now := time.Unix(1789054293, 0)
	first := Parse([]byte("TCP:1:192.168.1.50:11:0:one\nTCP:2:192.168.1.50:2:1789054293:over\nUDP:1:192.168.1.50:1:1789054294:\nTCP:3:1.2.3.4:192.168.1.50:3:0:x\n"))
	second := Parse([]byte("TCP:1:192.168.1.51:1:0:again\nTCP:4:192.168.1.51:4:1789054400:\nTCP:5:192.168.1.51:5:0:\n"))
	forwards, refused := Choose([]Content{first, second}, now, 3)
	var got []string
	for _, f := range forwards {
		if !f.LANOnly || !f.IsLease() || f.Reflect != "" || len(f.From) > 0 {
			t.Errorf("%+v", f)
		}
		got = append(got, f.String())
	}
	want := []string{"lease-tcp-1 tcp 1 to 192.168.1.50:11 comment one", "lease-udp-1 udp 1 to 192.168.1.50:1", "lease-tcp-4 tcp 4 to 192.168.1.51:4"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("forwards (-want +got):\n%s", diff)
	}
	got = nil
	for _, r := range refused {
		got = append(got, r.Name+" "+r.Reason)
	}
	if diff := cmp.Diff([]string{"lease-tcp-3 remote_host", "lease-tcp-1 duplicate", "lease-tcp-5 limit"}, got); diff != "" {
		t.Errorf("refused (-want +got):\n%s", diff)
	}
	for _, test := range []struct {
		now  time.Time
		want int64 // Unix time; 0: no end
	}{{now.Add(-time.Hour), 1789054293}, {now, 1789054294}, {now.Add(time.Second), 1789054400}, {now.Add(time.Hour), 0}} {
		next := NextEnd([]Content{first, second}, test.now)
		if next.IsZero() != (test.want == 0) || !next.IsZero() && next.Unix() != test.want {
			t.Errorf("after %v the next end is %v, want %d", test.now, next, test.want)
		}
	}
}

// TestOf: from the forward comes the mapping again, and from the mapping the forward.
func TestOf(t *testing.T) {
	for _, text := range []string{"TCP:1:192.168.1.50:11:0:one\n", "UDP:65535:192.168.1.50:65535:0:\n"} {
		lease := Parse([]byte(text)).Leases[0]
		lease.Line = 0
		if got := Of(lease.forward()); got != lease {
			t.Errorf("%+v, want %+v", got, lease)
		}
	}
}

func TestRead(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "upnp.leases")
	write := func(text string, mode os.FileMode) {
		t.Helper()
		if err := errors.Join(os.WriteFile(path, []byte(text), 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	wantError := func(path string, words string) {
		t.Helper()
		if content, err := Read(path); err == nil || !strings.Contains(err.Error(), words) || len(content.Leases) > 0 {
			t.Errorf("%s: %v, %v, want %q", path, content, err, words)
		}
	}
	if content, err := Read(path); err != nil || len(content.Leases) > 0 {
		t.Errorf("no file: %v, %v", content, err)
	}
	write("TCP:3074:192.168.1.50:3075:1789054293:console\n", 0o644)
	content, err := Read(path)
	if diff := cmp.Diff([]Lease{console(1)}, content.Leases, values...); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	write("TCP:3074:192.168.1.50:3075:1789054293:console\n", 0o646)
	wantError(path, "mode 0646")
	write(strings.Repeat("\n", maxSize+1), 0o644)
	wantError(path, "larger than 1 MiB")
	wantError(dir, "not a regular file")
	pipe := filepath.Join(dir, "pipe")
	if err := unix.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	wantError(pipe, "not a regular file") // and does not wait for a writer
	link := filepath.Join(dir, "link")
	if err := os.Symlink(link, link); err != nil {
		t.Fatal(err)
	}
	wantError(link, "too many levels")
}

// FuzzParse: whatever a lease file has, what is read from it is valid, fit for a terminal, and reads the same when miniupnpd's formats
// write it again.
func FuzzParse(f *testing.F) {
	for _, text := range []string{
		"TCP:3074:192.168.1.50:3075:1789054293:console\n", "UDP:3074::192.168.1.50:3075:0:x\n", "TCP:1:play.example.org:192.168.1.50:1:600:a:b\n",
		"UDP;2001:db8::50;3074;;0;7;1789054293;console\n", "TCP:3074:192.168.1.50:3075:17890", "\n\n:\n;\n", "TCP:1:1.2.3.4:1.2.3.4:1:1:1.2.3.4:1\n",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c := Parse(data)
		lines := strings.Count(string(data), "\n") + 1
		if len(c.Leases)+c.Pinholes+c.Bad > lines || len(c.Problems) > c.Bad {
			t.Fatalf("%d leases, %d pinholes, %d bad lines, %d problems of %d lines", len(c.Leases), c.Pinholes, c.Bad, len(c.Problems), lines)
		}
		for _, p := range c.Problems {
			if text := p.String(); p.Line < 1 || p.Line > lines || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Fatalf("problem %q of %d lines", text, lines)
			}
		}
		line := 0
		for _, l := range c.Leases {
			if l.Line <= line || l.Line > lines {
				t.Fatalf("line %d after line %d of %d", l.Line, line, lines)
			}
			line = l.Line
			checkLease(t, l)
		}
	})
}

func checkLease(t *testing.T, l Lease) {
	for _, text := range []string{l.Description, l.RemoteHost} {
		if len(text) > maxLine || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
			t.Fatalf("not fit for a terminal: %q", text)
		}
	}
	if l.Port == 0 || l.Target.Port() == 0 || !l.Target.Addr().Is4() || l.Protocol != rule.TCP && l.Protocol != rule.UDP {
		t.Fatalf("invalid: %+v", l)
	}
	l.Line = 1
	again := Parse([]byte(l.newer()))
	if diff := cmp.Diff([]Lease{l}, again.Leases, values...); diff != "" {
		t.Fatalf("%q (-want +got):\n%s", l.newer(), diff)
	}
	l.RemoteHost = ""
	again = Parse([]byte(l.older()))
	if diff := cmp.Diff([]Lease{l}, again.Leases, values...); diff != "" {
		t.Fatalf("%q (-want +got):\n%s", l.older(), diff)
	}
}
func (l *Lease) older() string {
	return fmt.Sprintf("%s:%d:%s:%d:%d:%s\n", strings.ToUpper(l.Protocol.String()), l.Port, l.Target.Addr(), l.Target.Port(), l.end(), l.Description)
}

// newer returns the line of a miniupnpd that stores the remote host.
func (l *Lease) newer() string {
	return fmt.Sprintf("%s:%d:%s:%s:%d:%d:%s\n", strings.ToUpper(l.Protocol.String()), l.Port, l.RemoteHost, l.Target.Addr(), l.Target.Port(), l.end(), l.Description)
}

func (l *Lease) end() int64 {
	if l.Expires.IsZero() {
		return 0
	}
	return l.Expires.Unix()
}
