// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
)

// placeKinds has the names of the kinds of places, by enum place_kind.
var placeKinds = [bpf.HairpinPlaceKindPLACES]string{
	bpf.HairpinPlaceKindPLACE_HALF_TCP:    "half-open tcp",
	bpf.HairpinPlaceKindPLACE_HALF_PROVEN: "half-open proven",
	bpf.HairpinPlaceKindPLACE_HALF_OTHER:  "half-open other",
	bpf.HairpinPlaceKindPLACE_TCP:         "established tcp",
	bpf.HairpinPlaceKindPLACE_OTHER:       "established other",
	bpf.HairpinPlaceKindPLACE_CLOSING:     "closing",
}

// Audit compares the datapath's counts of connections with a walk of the tables. Without traffic both must be equal.
type Audit struct {
	Entries int              // entries in the tables, both directions and families
	Orphans int              // entries without an entry of the other direction
	steady  bool             // no connection began, ended or took another place during the walk
	Counted map[string]int64 // connections by kind of place, as the datapath counts them
	Found   map[string]int64 // connections by kind of place, as the walk finds them in the tables
	// drift is counted minus found, by index of rings.
	drift [bpf.HairpinPlaceKindPLACES * 2]int64
}

// ringOf returns the index of the ring in which the connection holds a place.
func ringOf(opener *layout.Entry) uint32 {
	kind, v6 := bpf.HairpinPlaceKindPLACE_CLOSING, uint32(1)
	tcp := opener.Key.Protocol == unix.IPPROTO_TCP
	if layout.IsIPv4(opener.Key) {
		v6 = 0
	}
	switch {
	case opener.State == bpf.HairpinConnStateCONN_HALF_OPEN && !tcp:
		kind = bpf.HairpinPlaceKindPLACE_HALF_OTHER
	case opener.State == bpf.HairpinConnStateCONN_HALF_OPEN && opener.Flags&bpf.HairpinConnFlagCONN_PROVEN != 0:
		kind = bpf.HairpinPlaceKindPLACE_HALF_PROVEN
	case opener.State == bpf.HairpinConnStateCONN_HALF_OPEN:
		kind = bpf.HairpinPlaceKindPLACE_HALF_TCP
	case opener.State == bpf.HairpinConnStateCONN_ESTABLISHED && tcp:
		kind = bpf.HairpinPlaceKindPLACE_TCP
	case opener.State == bpf.HairpinConnStateCONN_ESTABLISHED:
		kind = bpf.HairpinPlaceKindPLACE_OTHER
	}
	return uint32(kind)*2 + v6
}

// ring reads the ring with this index.
func ring(objs *bpf.HairpinObjects, index uint32) (bpf.HairpinRing, error) {
	var r bpf.HairpinRing
	if err := objs.Rings.Lookup(index, &r); err != nil {
		return r, fmt.Errorf("read count of connections: %w", err)
	}
	return r, nil
}

// movements has counters that change whenever a connection begins, ends or takes another place.
type movements struct {
	counts [bpf.HairpinPlaceKindPLACES * 2]int64 // connections of each ring
	events eventCounts
}

func (t *Tables) movements() (m movements, err error) {
	for index := range m.counts {
		r, err := ring(t.objs, uint32(index))
		if err != nil {
			return m, err
		}
		m.counts[index] = r.Count
	}
	events, err := t.eventCounts()
	if err != nil {
		return m, err
	}
	m.events = *events
	return m, nil
}

// Audit walks the tables and compares. With traffic the numbers may differ by the connections that begin or end during
// the walk. Audit also looks up the other direction of each entry.
func (t *Tables) Audit() (Audit, error) {
	table, err := entries.Open(t.objs)
	if err != nil {
		return Audit{}, err
	}
	found, orphans := 0, 0
	var failed error
	audit, err := t.auditCounts(func(visit func(*layout.Entry)) error {
		return entries.Each(t.objs, func(e *layout.Entry) {
			found++
			if orphan, err := isOrphan(table, e); err != nil {
				failed = err
			} else if orphan {
				orphans++
			}
			if e.Opener() {
				visit(e)
			}
		})
	})
	audit.Entries, audit.Orphans = found, orphans
	return audit, errors.Join(err, failed)
}

func isOrphan(table *entries.Table, e *layout.Entry) (bool, error) {
	other, err := table.Lookup(layout.Reversed(e.To))
	if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return false, fmt.Errorf("look up the other direction of a connection: %w", err)
	}
	return other.Serial != e.Serial || other.Opener() == e.Opener(), nil
}

// auditCounts is Audit without Entries and Orphans. walk must visit the openers' entries.
func (t *Tables) auditCounts(walk func(visit func(*layout.Entry)) error) (Audit, error) {
	audit := Audit{Counted: map[string]int64{}, Found: map[string]int64{}}
	before, err := t.movements()
	if err != nil {
		return audit, err
	}
	err = walk(func(opener *layout.Entry) {
		index := ringOf(opener)
		audit.Found[placeKinds[index/2]]++
		audit.drift[index]--
	})
	if err != nil {
		return audit, err
	}
	after, err := t.movements()
	if err != nil {
		return audit, err
	}
	audit.steady = before == after
	for index, count := range after.counts {
		audit.Counted[placeKinds[index/2]] += count
		audit.drift[index] += count
	}
	return audit, nil
}

// repair corrects each count that differs from the tables by the same number in both audits. It returns the sum of the
// corrections. No race that makes a count wrong is known. But if there is one, connections must not be refused for ever.
func (t *Tables) repair(earlier, now Audit) (int, error) {
	if t.objs.HairpinCorrect == nil {
		return 0, nil // the maps are loaded without programs
	}
	repaired := 0
	for index, drift := range now.drift {
		if drift == 0 || drift != earlier.drift[index] {
			continue
		}
		request := bpf.HairpinCorrectRequest{Ring: uint32(index), Change: -drift}
		if _, err := t.objs.HairpinCorrect.Run(&ebpf.RunOptions{Context: request}); err != nil {
			return repaired, fmt.Errorf("correct a count of connections: %w", err)
		}
		repaired += int(max(drift, -drift))
	}
	return repaired, nil
}

// Auditor corrects wrong counts of connections in the datapath.
type Auditor struct {
	tables *Tables
	last   Audit // the last steady audit
	alike  int   // number of consecutive steady audits with equal drift
}

// NewAuditor returns an auditor of tables. Only one goroutine at a time may use the auditor.
func NewAuditor(tables *Tables) *Auditor { return &Auditor{tables: tables} }

// Step audits once. If three steady audits found the same wrong counts, it corrects them and returns the sum of the
// corrections. Audits that are not steady are ignored.
func (a *Auditor) Step() (repaired int, err error) {
	const enough = 3
	now, err := a.tables.auditCounts(func(visit func(*layout.Entry)) error { return entries.EachOpener(a.tables.objs, visit) })
	if err != nil || !now.steady {
		return 0, err
	}
	if now.drift != a.last.drift {
		a.alike = 0
	}
	a.alike++
	earlier := a.last
	a.last = now
	if a.alike < enough {
		return 0, nil
	}
	a.alike = 0
	return a.tables.repair(earlier, now)
}
