// SPDX-License-Identifier: Apache-2.0

// Package diagnose judges whether forwards can work on a router. It takes facts that were gathered before, and returns findings.
// It looks at no machine itself, so that its tests need no privilege.
package diagnose

import (
	"fmt"
	"slices"
	"strings"
)

// Level says how bad a finding is.
type Level string

// The levels. "hairpin doctor" fails only if there is a problem.
const (
	OK      Level = "ok"
	Warning Level = "warning" // something works otherwise than most people expect
	Problem Level = "problem" // something does not work
	Unknown Level = "unknown" // something could not be looked at
)

// Finding is one result of a check. Its JSON form is part of the output of "hairpin doctor -j".
type Finding struct {
	Level Level  `json:"level"`
	Check string `json:"check"` // the check that made the finding, such as "forwarding"
	Code  string `json:"code"`  // the kind of finding, such as "forwarding-off"; a later version does not change it
	// Forward and Interface are what the finding is about. At most one is set.
	Forward   string `json:"forward,omitempty"`
	Interface string `json:"interface,omitempty"`
	// More is the number of further forwards that the finding is about, besides Forward.
	More int    `json:"more_forwards,omitempty"`
	Text string `json:"text"` // what was looked at, and what is wrong
	// Cure is what to do, or "". Command says that Cure is a command for a shell on the router.
	Cure    string `json:"cure,omitempty"`
	Command bool   `json:"cure_is_command,omitempty"`
}

// Body returns what the finding is about, and the text, without the cure.
func (f Finding) Body() string {
	switch {
	case f.Forward != "" && f.More > 0:
		return fmt.Sprintf("forward %q and %d more: %s", f.Forward, f.More, f.Text)
	case f.Forward != "":
		return fmt.Sprintf("forward %q: %s", f.Forward, f.Text)
	case f.Interface != "":
		return f.Interface + ": " + f.Text
	}
	return f.Text
}

// String returns the finding on one line, with its cure.
func (f Finding) String() string {
	switch {
	case f.Cure == "":
		return f.Body()
	case f.Command:
		return f.Body() + "; run " + f.Cure
	}
	return f.Body() + "; " + f.Cure
}

// Notices returns the findings that a user should read, as text: all but those of level OK.
func Notices(list []Finding) (texts []string) {
	for _, f := range list {
		if f.Level != OK {
			texts = append(texts, f.String())
		}
	}
	return texts
}

// Has reports whether a finding of this level is in a list.
func Has(list []Finding, level Level) bool {
	return slices.ContainsFunc(list, func(f Finding) bool { return f.Level == level })
}

// run sets a cure that is a command.
func (f Finding) run(format string, args ...any) Finding {
	f.Cure, f.Command = fmt.Sprintf(format, args...), true
	return f
}

// advise sets a cure that is no command.
func (f Finding) advise(format string, args ...any) Finding {
	f.Cure, f.Command = fmt.Sprintf(format, args...), false
	return f
}

// group is the forwards that one finding is about. Thousands of forwards may have the same cause.
type group struct {
	first string // name of the first forward
	more  int    // number of the others
}

func (g *group) add(name string) {
	if g.first == "" {
		g.first = name
		return
	}
	g.more++
}

// groups has a group for each cause, in the order of the first forwards.
type groups[K comparable] struct {
	order []K
	of    map[K]*group
}

func (g *groups[K]) add(cause K, forward string) {
	if g.of == nil {
		g.of = map[K]*group{}
	}
	if g.of[cause] == nil {
		g.of[cause] = new(group)
		g.order = append(g.order, cause)
	}
	g.of[cause].add(forward)
}

// each calls finding for every cause, and sets the forwards of what it returns.
func (g *groups[K]) each(finding func(K) Finding) (list []Finding) {
	for _, cause := range g.order {
		f := finding(cause)
		f.Forward, f.More = g.of[cause].first, g.of[cause].more
		list = append(list, f)
	}
	return list
}

// unquoted are the characters that need no quotes in a shell.
const unquoted = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._/=-"

// shellWord returns text as one word of a shell.
func shellWord(text string) string {
	if strings.Trim(text, unquoted) != "" {
		return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
	}
	return text
}

// sysctlCommand returns a shell command for a setting of an interface; sysctl is net.ipv4 or net.ipv6. If the name has dots, as
// lan0.10, slashes must separate the parts of the key (sysctl(8)).
func sysctlCommand(sysctl, ifname, setting string) string {
	key := sysctl + ".conf." + ifname + "." + setting
	if strings.Contains(ifname, ".") {
		key = strings.ReplaceAll(sysctl, ".", "/") + "/conf/" + ifname + "/" + setting
	}
	return "sysctl -w " + shellWord(key)
}
