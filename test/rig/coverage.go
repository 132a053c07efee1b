// SPDX-License-Identifier: Apache-2.0

package rig

import (
	"sync"
	"testing"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/test/coverage"
)

// Coverage is what the programs of all rigs have run.
type Coverage struct {
	*coverage.Probes

	mutex   sync.Mutex
	reasons map[bpf.HairpinReason]bool // that were counted
}

// covered collects the coverage of all rigs; nil: nothing is collected.
var covered *Coverage

// Cover makes every rig that is made from now on collect its coverage. Call it before the first test.
func Cover() (*Coverage, error) {
	probes, err := coverage.New()
	if err != nil {
		return nil, err
	}
	covered = &Coverage{Probes: probes, reasons: make(map[bpf.HairpinReason]bool)}
	return covered, nil
}

// Counted reports whether a packet had this reason.
func (c *Coverage) Counted(reason bpf.HairpinReason) bool {
	c.mutex.Lock()
	defer c.mutex.Unlock()
	return c.reasons[reason]
}

// cover adds probes to the programs of a rig.
func (r *Rig) cover(tb testing.TB, spec *ebpf.CollectionSpec) {
	tb.Helper()
	c := covered
	if c == nil {
		return
	}
	c.mutex.Lock()
	defer c.mutex.Unlock()
	for _, program := range spec.Programs {
		if err := c.Add(program); err != nil {
			tb.Fatal(err)
		}
	}
}

// collect collects the reasons of a rig's packets when the test ends.
func (r *Rig) collect(tb testing.TB) {
	tb.Helper()
	c := covered
	if c == nil {
		return
	}
	tb.Cleanup(func() {
		c.mutex.Lock()
		defer c.mutex.Unlock()
		var key bpf.HairpinCounterKey
		var perCPU []uint64
		entries := r.Objects.Counters.Iterate()
		for entries.Next(&key, &perCPU) {
			c.reasons[key.Reason] = true
		}
		if err := entries.Err(); err != nil {
			tb.Errorf("read the counters: %v", err)
		}
	})
}
