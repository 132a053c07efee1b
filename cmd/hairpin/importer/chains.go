// SPDX-License-Identifier: Apache-2.0

package importer

import (
	"errors"
	"fmt"
	"slices"
)

// Limits of the walk through chains.
const (
	maxDepth = 16      // jumps; the kernel's NFT_JUMP_STACK_SIZE
	maxRules = 200_000 // rules that translate or end a chain, counted once for each way that leads to them
	maxSteps = 2_000_000
)

// chain is a chain of nftables or iptables.
type chain struct {
	key      string
	base     bool // a hook calls it
	hook     hook
	priority int
	steps    []step
}

// step is a rule of a chain: a Rule, or a verdict.
type step struct {
	Rule
	verdict verdict
	jump    string // key of the chain of goTo and jumpTo
}

type verdict uint8

const (
	translates verdict = iota // Rule.action
	goesOn                    // nothing that matters here
	accepts
	returns
	jumpsTo
	goesTo
)

// walk lists the rules of all base chains in the order in which packets meet them. A rule of a chain that others jump to has the
// conditions of the jumps, too.
type walk struct {
	chains map[string]*chain
	rules  []Rule
	steps  int
}

func walkChains(chains []*chain) ([]Rule, error) {
	w := &walk{chains: map[string]*chain{}}
	var bases []*chain
	for _, c := range chains {
		w.chains[c.key] = c
		if c.base {
			bases = append(bases, c)
		}
	}
	slices.SortStableFunc(bases, func(a, b *chain) int { return a.priority - b.priority })
	for _, base := range bases {
		start := len(w.rules)
		if err := w.follow(base, base.hook, match{}, nil, 0); err != nil {
			return nil, err
		}
		w.close(start, accepts)
	}
	return w.rules, nil
}

// pending marks a pass whose end is not known yet: the end of the chain (returns) or of the base chain (accepts).
func pending(v verdict) int { return -1 - int(v) }

// close sets the end of the passes that end here.
func (w *walk) close(start int, v verdict) {
	for i := start; i < len(w.rules); i++ {
		if w.rules[i].until == pending(v) {
			w.rules[i].until = len(w.rules)
		}
	}
}

func (w *walk) add(r Rule) error {
	if len(w.rules) == maxRules {
		return errTooMany
	}
	w.rules = append(w.rules, r)
	return nil
}

var errTooMany = errors.New("the chains have too many rules, or jump to each other too often")

func (w *walk) follow(c *chain, at hook, conditions match, inherited []string, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("chain %s: more than %d jumps lead here; the kernel allows no more", c.key, maxDepth)
	}
	start := len(w.rules)
	for i := range c.steps {
		if w.steps++; w.steps > maxSteps {
			return errTooMany
		}
		s := c.steps[i]
		all := s.match.matchesAll()
		s.match, s.hook = conditions.and(s.match), at
		s.problems = join(inherited, s.problems)
		if s.match.never {
			if s.verdict != translates {
				continue
			}
			s.problems = join(s.problems, []string{"no packet matches it: its conditions, with those of the jumps to it, exclude each other"})
		}
		if err := w.step(&s, at, depth); err != nil {
			return err
		}
		if all && (s.verdict == returns || s.verdict == accepts || s.verdict == goesTo) {
			break // no packet gets further
		}
	}
	w.close(start, returns)
	return nil
}

// step follows one rule.
func (w *walk) step(s *step, at hook, depth int) error {
	switch s.verdict {
	case goesOn:
		return nil
	case jumpsTo, goesTo:
		next := w.chains[s.jump]
		if next == nil {
			return fmt.Errorf("%s jumps to the chain %s, which is not there", s.place, s.jump)
		}
		if err := w.follow(next, at, s.match, s.problems, depth+1); err != nil || s.verdict == jumpsTo {
			return err
		}
	}
	r := s.Rule
	switch s.verdict {
	case accepts:
		r.action, r.until = pass, pending(accepts)
	case returns, goesTo:
		r.action, r.until = pass, pending(returns)
	}
	return w.add(r)
}

// matchesAll reports whether the rule has no condition.
func (m *match) matchesAll() bool {
	return m.family == 0 && m.protocols == nil && m.in.any() && m.out.any() && m.source.any() && m.dest.any() && !m.local && m.ports == nil && len(m.others) == 0
}
