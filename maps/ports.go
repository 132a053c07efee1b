// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/rule"
)

// notePorts adds the ports of forwards to map maybe_ports. It must run before the forwards go live.
func (t *Tables) notePorts(forwards []rule.Forward) error {
	var set compile.PortSet
	for i := range forwards {
		set.Add(&forwards[i])
	}
	for place, ports := range set {
		var present bpf.HairpinPortBits
		if ports.Bits == 0 {
			continue
		}
		if err := t.objs.MaybePorts.Lookup(uint32(place), &present); err != nil {
			return fmt.Errorf("read the ports of forwards: %w", err)
		}
		ports.Bits |= present.Bits
		if ports == present {
			continue
		}
		if err := t.objs.MaybePorts.Put(uint32(place), ports); err != nil {
			return fmt.Errorf("store the ports of forwards: %w", err)
		}
	}
	return nil
}

// dropPorts leaves only the ports of this set in map maybe_ports. It must run after the swap to the forwards that have these ports.
func (t *Tables) dropPorts(set *compile.PortSet) error {
	places := make([]uint32, len(set))
	for i := range places {
		places[i] = uint32(i)
	}
	if err := putAll(t.objs.MaybePorts, places, set[:], 1); err != nil {
		return fmt.Errorf("drop the ports of forwards that have gone: %w", err)
	}
	return nil
}
