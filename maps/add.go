// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Add adds a forward to the running configuration without building new tables. Apply builds all tables, which takes
// longer with more forwards. Add returns false, without a change to the running configuration, if the forward is not
// simple enough (Document.Takes), meets another forward, does not fit, or is invalid. Then the caller uses Apply, which
// adds the forward or returns the reason. The caller must hold the writer lock.
//
// The forward shares no port with another forward, so its entries can be written into the live tables one by one. The
// write of the live generation, raised by two so that the slot stays the same, makes the forward part of the running
// configuration. A writer may be killed at any step, as in Apply. Before that write the forward is not added. After it,
// the next writer writes the missing entries.
func (t *Tables) Add(f rule.Forward) (bool, error) {
	running, generation, err := t.outline()
	if err != nil {
		return false, err
	}
	if err := t.finish(running); err != nil {
		return false, err
	}
	doc, err := t.extend(running, f)
	if doc == nil || err != nil {
		return false, err
	}
	text := doc.LastAddition()
	if chunkCount(len(text)) > 1 {
		return false, nil
	}
	id := doc.EpochRefs[len(doc.EpochRefs)-1].ID
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"make counters", func() error { return t.zeroStats([]uint32{id}) }},
		{"add target", func() error { return t.addTarget(layout.ToAddr(f.Target)) }},
		{"add ports", func() error { return t.notePorts([]rule.Forward{f}) }},
		{"make buckets", func() error {
			ref := doc.EpochRefs[len(doc.EpochRefs)-1:]
			return t.makeBuckets([]rule.Forward{f}, ref, ref)
		}},
		{"store addition", func() error { return t.storeAddition(&doc.Document, generation, text) }},
		{"swap", func() error {
			return t.objs.Live.Put(uint32(0), bpf.HairpinLive{Generation: generation + 2})
		}},
	} {
		err := t.step(step.name, step.do)
		if errors.Is(err, unix.E2BIG) {
			return false, nil // a table is full; Apply makes room or returns an error
		}
		if err != nil {
			return false, err
		}
	}
	t.mu.Lock()
	t.cached, t.cachedAt = doc, generation+2
	t.mu.Unlock()
	if err := t.finish(doc); err != nil {
		return true, fmt.Errorf("%w: %w", ErrUnfinished, err)
	}
	return true, nil
}

// extend returns the running document with f added, or nil if only Apply can add f.
func (t *Tables) extend(running *compile.Outline, f rule.Forward) (*compile.Outline, error) {
	if running.Added == compile.AdditionsRoom || !running.Takes(f) {
		return nil, nil
	}
	seen, err := running.Survey(&f)
	if err != nil || seen.Meets {
		return nil, err
	}
	config := running.Config
	if config.Forwards = append(seen.Related, f); !config.ValidLast() {
		return nil, nil
	}
	if last, err := t.forwardIDs(); err != nil || seen.FreeID > last {
		return nil, err
	}
	epoch, err := t.epoch(seen.FreeID)
	if err != nil {
		return nil, err
	}
	doc, err := running.With(f, compile.EpochRef{ID: seen.FreeID, Epoch: epoch})
	if err != nil {
		return nil, err
	}
	spare, err := t.holds(&doc.Document)
	if err != nil || !spare {
		return nil, err
	}
	return doc, nil
}

// holds reports whether all entries of the document fit into the tries of its generation.
func (t *Tables) holds(doc *compile.Document) (bool, error) {
	forwards, err := t.liveSlot(t.objs.Forwards, doc.Generation)
	if err != nil {
		return false, fmt.Errorf("open forwards: %w", err)
	}
	defer forwards.Close()
	allow, err := t.liveSlot(t.objs.Allow, doc.Generation)
	if err != nil {
		return false, fmt.Errorf("open from lists: %w", err)
	}
	defer allow.Close()
	origins, err := t.liveSlot(t.objs.Origins, doc.Generation)
	if err != nil {
		return false, fmt.Errorf("open origins: %w", err)
	}
	defer origins.Close()
	return doc.Entries <= int(forwards.MaxEntries()) && doc.Sources <= int(allow.MaxEntries()) &&
		doc.Origins <= int(origins.MaxEntries()), nil
}

// storeAddition stores the text of an addition in the document's map. Readers do not read this entry before the live
// generation is raised.
func (t *Tables) storeAddition(doc *compile.Document, generation uint32, text []byte) error {
	chunks, err := t.liveSlot(t.objs.Documents, generation)
	if err != nil {
		return err
	}
	defer chunks.Close()
	var c chunk
	binary.LittleEndian.PutUint64(c[:], uint64(len(text)))
	copy(c[lengthBytes:], text)
	return chunks.Put(doc.Chunks+uint32(doc.Added)-1, &c)
}

// readAdditions appends the forwards that were added up to this generation to the document.
func readAdditions(d *compile.Document, chunks *ebpf.Map, generation uint32) error {
	added := (generation - d.Generation) / 2
	if added > compile.AdditionsRoom {
		return fmt.Errorf("generation %d does not belong to the document of generation %d", generation, d.Generation)
	}
	for i := range added {
		text, err := readChunk(chunks, d.Chunks+i)
		if err != nil {
			return err
		}
		if err := d.AppendAddition(text); err != nil {
			return err
		}
	}
	return nil
}

// isFinished reports whether the steps after the swap to doc, or after its last addition, were done.
func (t *Tables) isFinished(doc *compile.Document) (bool, error) {
	chunks, err := t.liveSlot(t.objs.Documents, doc.Generation)
	if err != nil {
		return false, fmt.Errorf("open running configuration: %w", err)
	}
	defer chunks.Close()
	var c chunk
	if err := chunks.Lookup(chunks.MaxEntries()-1, &c); err != nil {
		return false, fmt.Errorf("check whether the last change is finished: %w", err)
	}
	return binary.LittleEndian.Uint32(c[:]) == doc.LiveGeneration(), nil
}

func (t *Tables) recordFinished(doc *compile.Document) error {
	chunks, err := t.liveSlot(t.objs.Documents, doc.Generation)
	if err != nil {
		return err
	}
	defer chunks.Close()
	var c chunk
	binary.LittleEndian.PutUint32(c[:], doc.LiveGeneration())
	return chunks.Put(chunks.MaxEntries()-1, &c)
}

// finishAdded does the steps after the last addition. The steps after the swap and after earlier additions are already
// done, because Add calls finish first.
func (t *Tables) finishAdded(doc *compile.Document) error {
	if err := t.step("write the entries of the added forward", func() error { return t.enterAdded(doc) }); err != nil {
		return err
	}
	return t.step("record that the change is finished", func() error { return t.recordFinished(doc) })
}

// enterAdded writes the entries of the last addition. The from list is first, because a forward with a missing from list
// refuses all clients. The origins are last, because they refer to the forward.
func (t *Tables) enterAdded(doc *compile.Document) error {
	p, err := doc.AddedProgram()
	if err != nil {
		return err
	}
	allow, err := t.liveSlot(t.objs.Allow, doc.Generation)
	if err != nil {
		return err
	}
	defer allow.Close()
	if err := putAll(allow, p.AllowKeys, p.Allowed, 1); err != nil {
		return err
	}
	forwards, err := t.liveSlot(t.objs.Forwards, doc.Generation)
	if err != nil {
		return err
	}
	defer forwards.Close()
	if err := putAll(forwards, p.ForwardKeys, p.Forwards, 1); err != nil {
		return err
	}
	origins, err := t.liveSlot(t.objs.Origins, doc.Generation)
	if err != nil {
		return err
	}
	defer origins.Close()
	return putAll(origins, p.OriginKeys, p.Origins, 1)
}
