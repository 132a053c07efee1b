// SPDX-License-Identifier: Apache-2.0

package gather

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"hairpin/cmd/hairpin/diagnose"
)

// legacyPatience is the longest time for one run of iptables-legacy-save.
const legacyPatience = 5 * time.Second

// legacyFamilies are the programs of iptables-legacy, with the families of their rules, and the files that name their tables.
var legacyFamilies = []struct{ program, family, names string }{
	{"iptables-legacy", "ip", "ip_tables_names"},
	{"ip6tables-legacy", "ip6", "ip6_tables_names"},
}

// Legacy reads the rules of iptables-legacy in this network namespace, by iptables-legacy-save. unseen are tables that exist and could
// not be read; err says why. It needs CAP_DAC_READ_SEARCH or root.
func Legacy() (chains []diagnose.Chain, unseen []string, err error) {
	for _, f := range legacyFamilies {
		names, failed := os.ReadFile("/proc/thread-self/net/" + f.names)
		if errors.Is(failed, fs.ErrNotExist) {
			continue // the module is not loaded
		}
		if failed != nil {
			return nil, nil, fmt.Errorf("list the tables of %s: %w", f.program, failed)
		}
		tables := strings.Fields(string(names))
		if len(tables) == 0 {
			continue // the program would have the kernel load the module of a table
		}
		saved, failed := saveLegacy(f.program + "-save")
		if failed != nil {
			err = errors.Join(err, failed)
			for _, table := range tables {
				unseen = append(unseen, f.family+" "+table)
			}
			continue
		}
		chains = append(chains, parseLegacy(f.program, f.family, saved)...)
	}
	return chains, unseen, err
}

func saveLegacy(program string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), legacyPatience)
	defer cancel()
	saved, err := exec.CommandContext(ctx, program).Output()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w", program, err)
	}
	return saved, nil
}

// legacyHooks are the hooks of the chains that are there from the beginning.
var legacyHooks = map[string]string{
	"PREROUTING": "prerouting", "INPUT": "input", "FORWARD": "forward", "OUTPUT": "output", "POSTROUTING": "postrouting",
}

// legacyPriorities are those of the tables (enum nf_ip_hook_priorities). Chains of one hook of the table nat are never compared with
// chains of another table.
var legacyPriorities = map[string]int{"raw": -300, "mangle": -150, "security": 50}

// parseLegacy reads the output of iptables-save: "*TABLE", then ":CHAIN POLICY [COUNTERS]" for each chain, then "-A CHAIN RULE".
func parseLegacy(program, family string, saved []byte) (chains []diagnose.Chain) {
	table, first := "", 0 // first: index of the table's first chain
	for lines := bufio.NewScanner(bytes.NewReader(saved)); lines.Scan(); {
		line := lines.Text()
		switch {
		case strings.HasPrefix(line, "*"):
			table, first = line[1:], len(chains)
		case strings.HasPrefix(line, ":"):
			name, policy, _ := strings.Cut(line[1:], " ")
			c := diagnose.Chain{Program: program, Family: family, Table: table, Name: name, Drops: strings.HasPrefix(policy, "DROP")}
			if c.Hook = legacyHooks[name]; c.Hook != "" {
				c.Type, c.Priority = "filter", legacyPriorities[table]
				if table == "nat" {
					c.Type = "nat"
				}
			}
			chains = append(chains, c)
		case strings.HasPrefix(line, "-A "):
			words := saveWords(line[len("-A "):])
			at := slices.IndexFunc(chains[first:], func(c diagnose.Chain) bool { return c.Name == words[0] })
			if at < 0 {
				continue
			}
			c := &chains[first+at]
			rule := parseLegacyRule(words[1:])
			rule.Handle = uint64(len(c.Rules)) + 1 // iptables counts the rules of a chain
			c.Rules = append(c.Rules, rule)
		}
	}
	return chains
}

// saveWords splits a line of iptables-save. A word with spaces is in quotes, and has a backslash before quotes and backslashes.
func saveWords(line string) (words []string) {
	var word strings.Builder
	quoted, any := false, false
	for i := 0; i < len(line); i++ {
		switch c := line[i]; {
		case c == '"':
			quoted, any = !quoted, true
		case c == ' ' && !quoted:
			if any {
				words = append(words, word.String())
			}
			word.Reset()
			any = false
		default:
			if c == '\\' && i+1 < len(line) {
				i++
			}
			word.WriteByte(line[i])
			any = true
		}
	}
	if any {
		words = append(words, word.String())
	}
	return append(words, "") // whoever wants the value of an option finds one
}

// withoutCondition are matches of iptables that mean nothing without their options.
var withoutCondition = []string{"tcp", "udp", "comment", "multiport", "conntrack", "state", "addrtype"}

// parseLegacyRule reads the words of a rule. The options of its target are not read.
func parseLegacyRule(words []string) (r diagnose.Rule) {
	for not := false; len(words) > 1; not = false {
		if words[0] == "!" {
			not, words = true, words[1:]
		}
		option, value := words[0], words[min(1, len(words)-1)]
		switch option {
		case "-j", "-g":
			r.Action, r.Chain = legacyAction(value, option == "-g")
			return r
		case "-m":
			if !slices.Contains(withoutCondition, value) {
				r.Conditions = append(r.Conditions, diagnose.Condition{})
			}
		case "--comment":
		default:
			c := legacyCondition(option, value)
			c.Not = not && c.Field != diagnose.FieldOther
			r.Conditions = append(r.Conditions, c)
		}
		words = words[min(2, len(words)):]
		for len(words) > 1 && words[0] != "!" && !strings.HasPrefix(words[0], "-") {
			words = words[1:] // a further value of an option that is not known
		}
	}
	return r
}

// legacyAction returns what a target does. What is no target of iptables is a chain; without this chain, the rule does nothing.
func legacyAction(target string, isGoto bool) (diagnose.Action, string) {
	if action := iptablesTargets[target]; action != diagnose.Nothing {
		return action, ""
	}
	switch {
	case target == "ACCEPT":
		return diagnose.Accept, ""
	case target == "DROP":
		return diagnose.Drop, ""
	case target == "RETURN":
		return diagnose.Return, ""
	case isGoto:
		return diagnose.Goto, target
	}
	return diagnose.Jump, target
}

// legacyCondition returns the condition of an option; one that is not known is of FieldOther.
func legacyCondition(option, value string) diagnose.Condition {
	switch option {
	case "-p":
		return diagnose.Condition{Field: diagnose.FieldProtocol, Numbers: []diagnose.Range{legacyProtocol(value)}}
	case "-d":
		if network, err := netip.ParsePrefix(value); err == nil {
			return diagnose.Condition{Field: diagnose.FieldDestination, Networks: []netip.Prefix{network}}
		}
	case "-i":
		return diagnose.Condition{Field: diagnose.FieldIncoming, Names: []string{legacyName(value)}}
	case "-o":
		return diagnose.Condition{Field: diagnose.FieldOutgoing, Names: []string{legacyName(value)}}
	case "--dport", "--dports", "--ports":
		c := diagnose.Condition{Field: diagnose.FieldPort}
		for text := range strings.SplitSeq(value, ",") {
			first, last, _ := strings.Cut(text, ":")
			from, err := strconv.ParseUint(first, 10, 16)
			to, failed := strconv.ParseUint(cmp.Or(last, first), 10, 16)
			if err != nil || failed != nil {
				return diagnose.Condition{}
			}
			c.Numbers = append(c.Numbers, diagnose.Range{First: uint32(from), Last: uint32(to)})
		}
		return c
	case "--ctstate", "--state":
		return legacyState(value)
	case "--ctstatus":
		if value == "DNAT" {
			return diagnose.Condition{Field: diagnose.FieldStatus, Numbers: []diagnose.Range{{First: statusDNAT}}}
		}
	}
	return diagnose.Condition{}
}

// legacyName returns the name of an interface as conditions have it.
func legacyName(name string) string {
	if prefix, all := strings.CutSuffix(name, "+"); all {
		return prefix + "*"
	}
	return name
}

// legacyProtocol returns the number of a protocol. Only TCP and UDP matter; every other name gets a number that no packet of a
// forward with ports has.
func legacyProtocol(name string) diagnose.Range {
	number, err := strconv.ParseUint(name, 10, 8)
	switch {
	case name == "tcp":
		number = 6
	case name == "udp":
		number = 17
	case err != nil:
		number = 255
	}
	return diagnose.Range{First: uint32(number), Last: uint32(number)}
}

// legacyStates are the bits of conntrack's states, as conditions have them.
var legacyStates = map[string]uint32{"INVALID": 1, "ESTABLISHED": 2, "RELATED": 4, "NEW": 8, "UNTRACKED": 64}

func legacyState(names string) diagnose.Condition {
	bits := uint32(0)
	for name := range strings.SplitSeq(names, ",") {
		switch {
		case name == "DNAT":
			return diagnose.Condition{Field: diagnose.FieldStatus, Numbers: []diagnose.Range{{First: statusDNAT}}}
		case legacyStates[name] == 0:
			return diagnose.Condition{}
		}
		bits |= legacyStates[name]
	}
	return diagnose.Condition{Field: diagnose.FieldState, Numbers: []diagnose.Range{{First: bits}}}
}
