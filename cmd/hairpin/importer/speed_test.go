// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// manyRules returns n port forwards in a format: single ports, ranges, clients, two protocols, and an exception before some of them.
func manyRules(format string, n int) string {
	var text strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&text, format+"\n", args...) }
	for i := range n {
		address, port := fmt.Sprintf("203.0.%d.%d", 100+i/6000, i/30%200+1), 1000+i%30*10
		target := fmt.Sprintf("192.168.%d.%d", 1+i/200%50, i%200+2)
		switch format {
		case "nft":
			if i%300 == 0 {
				line(`ip.saddr="198.51.100.%d" ip.daddr=%q tcp=%d return`, i/300%250+1, address, port)
			}
			line(`ip.daddr=%q %s={"range":[%d,%d]} dnat=%s #rule-%d`, address, []string{"tcp", "udp"}[i%2], port, port+i%3, target, i)
		case "iptables":
			line("-A PREROUTING -d %s/32 -p tcp -m tcp --dport %d:%d -m comment --comment rule-%d -j DNAT --to-destination %s", address, port, port+i%3, i, target)
		case "uci":
			line("config redirect\n option name 'rule-%d'\n option src 'wan'\n option src_dip '%s'\n option src_dport '%d-%d'\n option dest_ip '%s'\n option proto 'tcp'", i, address, port, port+i%3, target)
		case "pfsense":
			line("%s", pfOther("wan", "<any/>", fmt.Sprintf("<address>%s</address><port>%d-%d</port>", address, port, port+i%3), target, fmt.Sprint(port), ""))
		}
	}
	switch format {
	case "nft":
		return ruleset("chain prerouting prerouting -100\n" + text.String())
	case "iptables":
		return natTable(text.String())
	case "uci":
		return firewall(text.String())
	}
	return pfConfig("pfsense", "", text.String())
}

// importMany imports n rules, and prints the file. It returns the processor time of this process.
func importMany(tb testing.TB, format, rules string, n int) time.Duration {
	var before, after unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &before); err != nil {
		tb.Fatal(err)
	}
	result, err := Import(format, "rules", []byte(rules), usual)
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := result.TOML(format); err != nil {
		tb.Fatal(err)
	}
	if len(result.Forwards) != n || len(result.Left) != 0 {
		tb.Fatalf("%d forwards, want %d; left %v", len(result.Forwards), n, result.Left[:min(3, len(result.Left))])
	}
	if err := unix.Getrusage(unix.RUSAGE_SELF, &after); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(after.Utime.Nano() - before.Utime.Nano())
}

// TestTimeGrowsWithTheRules: ten times as many rules take about ten times as long, not a hundred times.
func TestTimeGrowsWithTheRules(t *testing.T) {
	const few, many, most = 1000, 10_000, 35
	for _, format := range Formats() {
		t.Run(format, func(t *testing.T) {
			fewRules, manyRules := manyRules(format, few), manyRules(format, many)
			// The quickest of several runs: what disturbs a run makes it longer.
			short, long := time.Hour, time.Hour
			for range 3 {
				short, long = min(short, importMany(t, format, fewRules, few)), min(long, importMany(t, format, manyRules, many))
			}
			short = max(short, time.Millisecond) // the clock's step
			t.Logf("%d rules: %v, %d rules: %v", few, short, many, long)
			if long > most*short {
				t.Errorf("%d rules take %v, %d rules take %v: more than %d times as long", few, short, many, long, most)
			}
		})
	}
}

func BenchmarkImport(b *testing.B) {
	for _, format := range Formats() {
		rules := manyRules(format, 10_000)
		b.Run(format, func(b *testing.B) {
			for b.Loop() {
				importMany(b, format, rules, 10_000)
			}
		})
	}
}
