// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
)

// Answers says whether the target of a forward answers.
type Answers struct {
	ToTarget, FromTarget uint64 // packets of all paths since the forward was added or its behaviour changed
	// Waiting is the number of half-open connections of at least one second without a packet from the target. Answered is the
	// number of connections with one.
	Waiting, Answered int
}

// Answers returns what the targets of the running forwards answered, by the forward's name, and the number of established
// connections of all forwards. It leaves out forwards without traffic. It walks over all connections once.
func (t *Tables) Answers() (found map[string]Answers, established int, err error) {
	found = map[string]Answers{}
	err = t.eachStats(func(name string, _ uint32, s *ForwardStats) error {
		var a Answers
		for _, path := range s.Traffic {
			a.ToTarget += path[0].Packets
			a.FromTarget += path[1].Packets
		}
		found[name] = a
		return nil
	})
	if err != nil {
		return nil, 0, err
	}
	table, err := entries.Open(t.objs)
	if err != nil {
		return nil, 0, err
	}
	w, err := t.newWalk()
	if err != nil {
		return nil, 0, err
	}
	err = w.named(func(opener *layout.Entry, name string) error {
		if stateOf(opener) == StateEstablished {
			established++
		}
		answered, err := isAnswered(table, opener)
		a, counted := found[name]
		if err != nil || !counted {
			return err
		}
		switch {
		case answered:
			a.Answered++
		case derive(opener, w.now).AgeSeconds > 0:
			a.Waiting++
		}
		found[name] = a
		return nil
	})
	return found, established, err
}

// isAnswered reports whether the target has sent a packet of a connection.
func isAnswered(table *entries.Table, opener *layout.Entry) (bool, error) {
	if opener.State != bpf.HairpinConnStateCONN_HALF_OPEN {
		return true, nil
	}
	answer, err := table.Lookup(opener.Answer())
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, fmt.Errorf("look up the answers of a connection: %w", err)
	}
	return err == nil && answer.Serial == opener.Serial && answer.Packets > 0, nil
}
