// SPDX-License-Identifier: Apache-2.0

package loader

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestProgramsShareTheirMaps: what one program writes, the others see. Each program is loaded with data sections of its own, and an upgrade
// replaces them, so no program writes a data section.
func TestProgramsShareTheirMaps(t *testing.T) {
	spec, err := newSpec(0)
	if err != nil {
		t.Fatal(err)
	}
	for name, m := range spec.Maps {
		if isData(name) && m.Flags&unix.BPF_F_RDONLY_PROG == 0 {
			t.Errorf("the data section %s, %d bytes, is not read-only", name, m.ValueSize)
		}
	}
}
