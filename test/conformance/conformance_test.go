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
	id      string // the RFC's number of the requirement, and the part that is checked
	hairpin bool   // about hairpinning
	level   string // RFC 2119 keyword
	demand  string
	figure  string // the measurement that meets the requirement
	absent  string // why hairpin does not offer this; a check may prove that hairpin does not do it
	check   func(*probe)
}

// The RFC 2119 keywords of the requirements. The test fails only if a requirement with MUST or MUST NOT fails.
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

// The third result in the table, beside record.Pass and record.Fail.
const (
	resultNotOffered = "not offered"
)

// finding is the result of a check, and the measurement behind it.
type finding struct {
	measured, result string
}

// noOutbound is the reason for most requirements that are not offered: they are about connections that LAN hosts open to the
// Internet. hairpin leaves these connections to the kernel.
const noOutbound = "outbound connections are not translated"

// conformanceParts has the RFCs in the order of the report.
var conformanceParts = []struct {
	rfc, title string
	list       []requirement
}{
	{"4787", "UDP", requirements4787},
	{"5382", "TCP", requirements5382},
	{"5508", "ICMP", requirements5508},
	{"7857", "updates of RFC 4787, 5382 and 5508", requirements7857},
	{"6888", "requirements for carriers that concern forwards", requirements6888},
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

// TestConformance checks the requirements of the RFCs on NAT behaviour. It fails if a MUST is not met, or if the results
// differ from CONFORMANCE.md.
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

// conformanceSuite has the rigs and measured lifetimes that several checks use.
type conformanceSuite struct {
	t         *testing.T
	rigs      map[string]sharedRig
	lifetimes map[string]map[string]lifetime // by mode and kind
}

// examine runs the check in both modes. It is an error if the results differ.
func (r requirement) examine(t *testing.T, suite *conformanceSuite) finding {
	if r.check == nil {
		return finding{r.absent, resultNotOffered}
	}
	var found [2]finding
	for i, mode := range home.Modes {
		t.Run(mode, func(t *testing.T) {
			p := &probe{TB: t, suite: suite, mode: mode}
			t.Cleanup(func() { found[i] = p.finish(t, r) }) // runs after all other cleanups, because a cleanup may fail the check
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

// probe is the testing.TB of a check. A check that fails becomes a finding; the test fails only if the requirement is a MUST,
// or is not offered.
type probe struct {
	testing.TB
	suite    *conformanceSuite
	mode     string // one of home.Modes
	measured string
	problems []string
}

// run calls the check in a goroutine of its own, so that Fatal ends only the check.
func (p *probe) run(check func(*probe)) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		check(p)
	}()
	<-done
}

// measure stores the measurement, and a problem if the requirement is not met.
func (p *probe) measure(met bool, format string, args ...any) {
	p.measured = fmt.Sprintf(format, args...)
	if !met {
		p.problems = append(p.problems, p.measured)
	}
}

// finish returns the finding of a check that has ended.
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

// conformanceReport returns the text of CONFORMANCE.md. The text is equal in every run.
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

This table compares hairpin with the requirements of the RFCs on NAT behaviour. ` + "`make conformance`" + ` measures and writes this
file. ` + "`make test`" + ` measures too; it fails if a MUST is not met, or if a result differs from this file. Every check runs
twice, with TC only and with XDP before TC, and both runs must give equal results. The checks use the loaded programs. Checks of
long times configure shorter times, and measure in percent of the configured time.

[H]: about hairpinning. Not offered: about a function that hairpin does not have, mostly the translation of outbound connections.

`

// conformanceSummary returns the table of how many results there are of each level.
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
