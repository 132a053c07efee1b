// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
)

// SetPolicies writes the IPsec policies, if they differ, and ends the connections that a policy protects now. The caller
// must hold the writer lock.
//
// A packet may open a connection while a policy is new:
//
//  1. CPU A asks the old list, which does not protect the packet.
//  2. The writer stores the new list. The write to the outer map returns only when all programs that began before have
//     ended (maybe_wait_bpf_programs), so A has inserted its connection by then.
//  3. The writer walks the connections, finds that of A, and ends it.
//
// A writer that is killed between 2 and 3 leaves the connections. So the list is stored with a mark at its end, until the
// walk is done. There is no walk if the new list protects no packet that the old one did not protect.
func (t *Tables) SetPolicies(policies []config.Policy) error {
	if len(policies) > config.MaxPolicies {
		return fmt.Errorf("there are %d IPsec policies, but the datapath asks at most %d", len(policies), config.MaxPolicies)
	}
	entries := compile.Policies(policies)
	present, err := t.policies()
	if err != nil {
		return err
	}
	if slices.Equal(present, entries) {
		return nil
	}
	if len(entries) == 0 {
		return t.dropPolicies()
	}
	if !mayProtectMore(present, entries) {
		return t.storePolicies(entries)
	}
	if err := t.storePolicies(append(slices.Clone(entries), unfinishedPolicies())); err != nil {
		return err
	}
	if err := t.step("end protected connections", func() error { return t.endProtected(policies) }); err != nil {
		return err
	}
	return t.storePolicies(entries)
}

// unfinishedPolicies is the mark: the last entry of a list whose connections may not be ended yet. It lets packets pass, as
// a packet does that no policy matches. Its mask is of no prefix, so no policy of the kernel gives this entry.
func unfinishedPolicies() (mark bpf.HairpinPolicy) {
	mark.Src.Mask.Bytes[len(mark.Src.Mask.Bytes)-1] = 1
	return mark
}

// mayProtectMore reports whether a new list of policies may protect a packet that the old one does not protect. Such a list
// has a new policy that protects, or lacks a policy that let packets pass, or has them in another order. Policies that
// protect may go, and policies that let pass may come.
func mayProtectMore(old, now []bpf.HairpinPolicy) bool {
	if len(old) > 0 && old[len(old)-1] == unfinishedPolicies() {
		return true
	}
	for _, policy := range now {
		skip := 0
		for skip < len(old) && old[skip].Protects != 0 && old[skip] != policy {
			skip++
		}
		if skip < len(old) && old[skip] == policy {
			old = old[skip+1:]
		} else if policy.Protects != 0 {
			return true
		}
	}
	return slices.ContainsFunc(old, func(policy bpf.HairpinPolicy) bool { return policy.Protects == 0 })
}

// policies returns the stored list.
func (t *Tables) policies() ([]bpf.HairpinPolicy, error) {
	list, err := t.slots.Open(t.objs.Policies, 0)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open IPsec policies: %w", err)
	}
	defer list.Close()
	entries := make([]bpf.HairpinPolicy, list.MaxEntries())
	for i := range entries {
		if err := list.Lookup(uint32(i), &entries[i]); err != nil {
			return nil, fmt.Errorf("read IPsec policies: %w", err)
		}
	}
	return entries, nil
}

func (t *Tables) storePolicies(entries []bpf.HairpinPolicy) error {
	list, err := newInner(bpf.HairpinMapPolicies, uint32(len(entries)))
	if err != nil {
		return err
	}
	defer list.Close()
	keys := make([]uint32, len(entries))
	for i := range keys {
		keys[i] = uint32(i)
	}
	if err := putAll(list, keys, entries, 1); err != nil {
		return fmt.Errorf("write IPsec policies: %w", err)
	}
	if err := t.slots.Store(t.objs.Policies, 0, list); err != nil {
		return fmt.Errorf("store IPsec policies: %w", err)
	}
	return nil
}

func (t *Tables) dropPolicies() error {
	if err := t.slots.Drop(t.objs.Policies, 0); err != nil {
		return fmt.Errorf("drop IPsec policies: %w", err)
	}
	return nil
}

// endProtected ends the connections of which a policy protects the packets of either direction. Their ends get a RST by
// resetEnded, unless the RST itself would be protected.
func (t *Tables) endProtected(policies []config.Policy) error {
	ended := 0
	var failed error
	index := config.NewPolicyIndex(policies)
	err := entries.Each(t.objs, func(e *layout.Entry) {
		leaves := config.Packet{
			Source: layout.AddrPort(e.To.Src, e.To.Sport), Destination: layout.AddrPort(e.To.Dst, e.To.Dport), Protocol: e.Key.Protocol,
		}
		// What goes to the router itself does not leave.
		if failed != nil || e.Flags&bpf.HairpinConnFlagCONN_LOCAL != 0 || !index.Protects(leaves) {
			return
		}
		found, err := t.end(bpf.HairpinEndRequest{Key: e.Key, Serial: e.Serial})
		ended += found
		failed = err
	})
	if err = errors.Join(failed, err); err != nil || ended == 0 {
		return err
	}
	return t.resetEnded()
}
