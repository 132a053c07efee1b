// SPDX-License-Identifier: Apache-2.0

package torture

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/test/record"
)

var long = flag.Bool("long", false, "with -rewrite: two days instead of 20 minutes")

// scenario is a promise, and the ordeal that proves it. Each scenario is in a file of its own.
type scenario struct {
	number   int
	name     string
	demanded string
	// run runs the ordeal, and returns what it counted. It fails the trial if the promise does not hold.
	run func(t *trial) figures
}

// figures are what a scenario has counted, in words for the table.
type figures struct {
	measured string
	demanded string // replaces what the scenario demands, if this form demands more
	nftables string // the same for nftables; "": nftables cannot take part
}

// scenarios returns all scenarios, in the order of the table.
func scenarios() []scenario {
	return []scenario{
		flood, emptying, honest,
		death, unmount,
		upgrade,
		writers,
		steps,
		forgery, shadow, loop,
		fuzz,
		change,
		privilege,
		scrape,
		soak,
	}
}

// scale is the length of a run. Counts and times grow with it, demands do not.
type scale int

const (
	brief scale = iota // for the slow processors of test/kernels
	short              // seconds: make test
	full               // minutes: make torture
	hours              // make torture LONG=1
)

// longer is how much longer the hours are than the minutes.
const longer = 10

// count returns a number of rounds: the hours have more of them.
func (s scale) count(inShort, inFull int) int { return s.choose(inShort, inFull, inFull*longer) }

// choose returns the number for this length.
func (s scale) choose(inShort, inFull, inHours int) int {
	return [...]int{inShort, inShort, inFull, inHours}[s]
}

// size returns a number that does not grow with the hours, such as how many connections there are at the same time.
func (s scale) size(inShort, inFull int) int { return s.choose(inShort, inFull, inFull) }

// slower is how much less than the short form an emulated processor is asked to do.
const slower = 10

// pace returns a number of packets, of all or of a second, for these processors.
func (s scale) pace(count int) int {
	if s == brief {
		return count / slower
	}
	return count
}

// time returns a duration, which grows with the hours.
func (s scale) time(inShort, inFull time.Duration) time.Duration {
	return time.Duration(s.count(int(inShort), int(inFull)))
}

const (
	tortureFile = "TORTURE.md"
	// tortureShort is where the short form writes its table; `make test` prints it.
	tortureShort = "../../bin/torture.md"
)

// TestTorture runs the scenarios. Without -rewrite it runs their short forms. With -rewrite it runs them in full and writes TORTURE.md.
func TestTorture(t *testing.T) {
	s, file := short, tortureShort
	if os.Getenv("HAIRPIN_GUEST") != "" {
		s = brief
	}
	if *record.Rewrite {
		s, file = full, "../"+tortureFile
	}
	if *long {
		s = hours
	}
	var rows []row
	var watched verdict
	for _, sc := range scenarios() {
		t.Run(fmt.Sprintf("%d %s", sc.number, sc.name), func(t *testing.T) {
			tr := newTrial(t, s)
			f := sc.run(tr)
			watched.add(tr.verdict())
			rows = append(rows, row{sc, f})
		})
	}
	whole := len(rows) == len(scenarios()) && !t.Failed()
	rows = append(rows, row{oracle, figures{measured: watched.String()}})
	report := tortureReport(s, rows)
	t.Logf("\n%s", report)
	if !whole {
		t.Logf("not every scenario has run and held: %s is not written", file)
		return
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(report), 0o644); err != nil {
		t.Fatalf("write table: %v", err)
	}
}

// row is a line of the table.
type row struct {
	scenario
	figures
}

// tortureReport returns the text of TORTURE.md.
func tortureReport(s scale, rows []row) string {
	var text strings.Builder
	fmt.Fprintf(&text, torturePreface, release(), runtime.NumCPU(), [...]string{"the form for emulated processors", "the short form", "the full form", "the long form"}[s])
	text.WriteString("| | scenario | demanded | measured | nftables |\n|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&text, "| %d | %s | %s | %s | %s |\n", r.number, r.name, cmp.Or(r.figures.demanded, r.scenario.demanded), r.measured, cmp.Or(r.nftables, "-"))
	}
	return text.String()
}

const torturePreface = `# Torture

This table shows what hairpin promises, and what was counted when the promise was put to the test. ` + "`make torture`" + ` measures and writes
this file. ` + "`make torture LONG=1`" + ` does the same for two days. ` + "`make test`" + ` runs a short form of every scenario, and fails if a promise does not hold.
Where nftables has something equal, it goes through the same ordeal in the same network: DNAT and masquerade, with the default settings of
conntrack. These figures are from Linux %s, %d CPUs, %s.

`

func release() string {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return "of an unknown release"
	}
	return unix.ByteSliceToString(name.Release[:])
}
