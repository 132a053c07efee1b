// SPDX-License-Identifier: Apache-2.0

package conformance

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	"hairpin/test/home"
	"hairpin/test/lab"
	"hairpin/test/record"
)

const conformanceFile = "CONFORMANCE.md"

// requirement is one demand of an RFC on a NAT, and the check that measures whether hairpin meets it.
type requirement struct {
	rfc     string
	id      string // as the RFC numbers it, and what part of it this is about
	hairpin bool   // about hairpinning
	level   string // RFC 2119 keyword
	demand  string
	figure  string // what has to be measured
	absent  string // why it is not offered; a check may still show that it really is not there
	check   func(*probe)
}

// The RFC 2119 keywords of the requirements. Those of which a failure fails the test begin with MUST.
const (
	levelMust        = "MUST"
	levelMustNot     = "MUST NOT"
	levelShould      = "SHOULD"
	levelShouldNot   = "SHOULD NOT"
	levelRecommended = "RECOMMENDED"
	levelMay         = "MAY"
)

func (r requirement) name() string { return "RFC " + r.rfc + " " + r.id }

func (r requirement) mandatory() bool { return strings.HasPrefix(r.level, levelMust) }

// The results, as the table names them.
const (
	resultNotOffered = "not offered"
)

// finding is what a check found out.
type finding struct {
	measured, result string
}

// noOutbound is why most of what is not offered is not: it is about traffic that hosts of the LAN start
// towards the Internet, and that hairpin leaves to the kernel.
const noOutbound = "outbound connections are not translated"

// conformanceParts are the RFCs in the order of the report.
var conformanceParts = []struct {
	rfc, title string
	list       []requirement
}{
	{"4787", "UDP", requirements4787},
	{"5382", "TCP", requirements5382},
	{"5508", "ICMP", requirements5508},
	{"7857", "updates of these three", requirements7857},
	{"6888", "what it asks of carriers, as far as it concerns forwards", requirements6888},
}

func requirements() (all []requirement) {
	for _, part := range conformanceParts {
		for _, r := range part.list {
			r.rfc = part.rfc
			all = append(all, r)
		}
	}
	return all
}

// TestConformance measures hairpin against the requirements of the RFCs on NAT behaviour. What they
// demand with MUST has to be there, and the checked-in report has to say what was measured.
func TestConformance(t *testing.T) {
	lab.NeedRoot(t)
	suite := &conformanceSuite{t: t, rigs: map[string]sharedRig{}, lifetimes: map[string]map[string]lifetime{}}
	findings := map[string]finding{}
	all := requirements()
	for _, r := range all {
		if _, twice := findings[r.name()]; twice {
			t.Fatalf("%s is there twice", r.name())
		}
		findings[r.name()] = finding{}
		t.Run(strings.ReplaceAll(r.name(), " ", "_"), func(t *testing.T) { findings[r.name()] = r.examine(t, suite) })
	}
	for name, found := range findings {
		if found.result == "" {
			t.Logf("%s did not run: the report is not compared", name)
			return
		}
	}
	report := conformanceReport(all, findings)
	record.Keep(t, conformanceFile, "make conformance", report)
}

// conformanceSuite is what checks share.
type conformanceSuite struct {
	t         *testing.T
	rigs      map[string]sharedRig
	lifetimes map[string]map[string]lifetime // by mode and kind
}

// examine runs the check in both modes, which have to measure the same.
func (r requirement) examine(t *testing.T, suite *conformanceSuite) finding {
	if r.check == nil {
		return finding{r.absent, resultNotOffered}
	}
	var found [2]finding
	for i, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			p := &probe{TB: t, suite: suite, mode: mode}
			t.Cleanup(func() { found[i] = p.finish(t, r) }) // after all other cleanups, which may fail the check
			p.run(r.check)
		})
	}
	if found[0] != found[1] {
		t.Errorf("TC alone measured %q, with XDP before it %q", found[0].measured, found[1].measured)
		return finding{fmt.Sprintf("TC alone: %s; with XDP: %s", found[0].measured, found[1].measured), record.Fail}
	}
	if r.absent != "" && found[0].result == record.Pass {
		return finding{r.absent + "; " + found[0].measured, resultNotOffered}
	}
	return found[0]
}

// probe is the testing.TB of a check. The failure of a check is a finding, and one of the test only if
// the requirement is a MUST.
type probe struct {
	testing.TB
	suite    *conformanceSuite
	mode     string // of hookModes
	measured string
	problems []string
}

// run calls the check where Fatal can end it alone.
func (p *probe) run(check func(*probe)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		check(p)
	}()
	<-done
}

// measure says what was measured, and whether it is what the requirement demands.
func (p *probe) measure(met bool, format string, args ...any) {
	p.measured = fmt.Sprintf(format, args...)
	if !met {
		p.problems = append(p.problems, p.measured)
	}
}

// finish turns a check that has ended into its finding.
func (p *probe) finish(t *testing.T, r requirement) finding {
	if p.measured == "" {
		p.problems = append(p.problems, "the check measured nothing")
		p.measured = "nothing: the check broke off"
	}
	if len(p.problems) == 0 {
		return finding{p.measured, record.Pass}
	}
	report := t.Logf
	if r.mandatory() || r.absent != "" {
		report = t.Errorf
	}
	report("%s %s: %s\ndemanded: %s\n%s", r.name(), r.level, r.demand, r.figure, strings.Join(p.problems, "\n"))
	return finding{p.measured, record.Fail}
}

// Errorf implements testing.TB.
func (p *probe) Errorf(format string, args ...any) {
	p.problems = append(p.problems, fmt.Sprintf(format, args...))
}

// Error implements testing.TB.
func (p *probe) Error(args ...any) { p.problems = append(p.problems, fmt.Sprint(args...)) }

// Fatalf implements testing.TB.
func (p *probe) Fatalf(format string, args ...any) {
	p.Errorf(format, args...)
	runtime.Goexit()
}

// Fatal implements testing.TB.
func (p *probe) Fatal(args ...any) {
	p.Error(args...)
	runtime.Goexit()
}

// Fail implements testing.TB.
func (p *probe) Fail() { p.Error("failed") }

// FailNow implements testing.TB.
func (p *probe) FailNow() { p.Fatal("failed") }

// Failed implements testing.TB.
func (p *probe) Failed() bool { return len(p.problems) > 0 }

// conformanceReport is the text of CONFORMANCE.md. It holds nothing that differs from run to run.
func conformanceReport(all []requirement, findings map[string]finding) string {
	var text strings.Builder
	text.WriteString(conformancePreface)
	text.WriteString(conformanceSummary(all, findings))
	for _, part := range conformanceParts {
		fmt.Fprintf(&text, "\n## RFC %s: %s\n\n", part.rfc, part.title)
		text.WriteString("| Requirement | Level | Demanded | Figure demanded | Measured | Result |\n|---|---|---|---|---|---|\n")
		for _, r := range all {
			if r.rfc != part.rfc {
				continue
			}
			id := r.id
			if r.hairpin {
				id += " [H]"
			}
			found := findings[r.name()]
			fmt.Fprintf(&text, "| %s | %s | %s | %s | %s | %s |\n", id, r.level, r.demand, r.figure, found.measured, found.result)
		}
	}
	return text.String()
}

const conformancePreface = `# Conformance

What hairpin does, measured against what the RFCs on the behaviour of NATs demand. ` + "`make conformance`" + ` measures
and writes this file; ` + "`make test`" + ` measures too, and fails if a MUST is not met or the file says anything else.
Every check runs twice, with TC alone and with XDP before it, and both have to measure the same. Figures are measured on
the programs as they are loaded; long times are measured on shorter configured ones, as shares of what is configured.

[H]: about hairpinning. Not offered: about what hairpin does not do, mostly the translation of outbound connections.

`

// conformanceSummary counts the results by level.
func conformanceSummary(all []requirement, findings map[string]finding) string {
	results := []string{record.Pass, record.Fail, resultNotOffered}
	counts := map[[2]string]int{}
	for _, r := range all {
		counts[[2]string{r.level, findings[r.name()].result}]++
	}
	var text strings.Builder
	fmt.Fprintf(&text, "| Level | %s |\n|---|---|---|---|\n", strings.ReplaceAll(strings.Join(results, " | "), "*", ""))
	for _, level := range []string{levelMust, levelMustNot, levelShould, levelShouldNot, levelRecommended, levelMay} {
		fmt.Fprintf(&text, "| %s |", level)
		for _, result := range results {
			fmt.Fprintf(&text, " %d |", counts[[2]string{level, result}])
		}
		text.WriteString("\n")
	}
	return text.String()
}
