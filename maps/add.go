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

// Add makes a forward run beside those that do, without building their tables
// again: what Apply does takes longer the more there are. It reports false, and
// has done nothing, if the forward is not of that simple kind, or not valid:
// then Apply does it, or says why not. The caller holds the writer lock.
//
// Packets meet the forward or none, for it shares no port with another one, so
// its entries go into the live tables one by one. The generation goes up by two,
// which leaves the slot as it is: that is what puts the forward into the running
// configuration. A writer may be killed at any step, as in Apply: until then
// nothing tells of it, and after it the next writer enters it.
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
		{"make buckets", func() error {
			ref := doc.EpochRefs[len(doc.EpochRefs)-1:]
			return t.makeBuckets([]rule.Forward{f}, ref, ref)
		}},
		{"add target", func() error { return t.objs.Targets.Put(layout.ToAddr(f.Target), uint8(1)) }},
		{"store addition", func() error { return t.storeAddition(&doc.Document, generation, text) }},
		{"swap", func() error {
			return t.objs.Live.Put(uint32(0), bpf.HairpinLive{Generation: generation + 2})
		}},
	} {
		err := t.step(step.name, step.do)
		if errors.Is(err, unix.E2BIG) {
			return false, nil // Apply makes room, or says what is full
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

// extend is the running document with f added, nil if that needs Apply.
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

// holds reports whether the tries of the document's generation have room for it.
func (t *Tables) holds(doc *compile.Document) (bool, error) {
	forwards, err := liveSlot(t.objs.Forwards, doc.Generation)
	if err != nil {
		return false, fmt.Errorf("open forwards: %w", err)
	}
	defer forwards.Close()
	allow, err := liveSlot(t.objs.Allow, doc.Generation)
	if err != nil {
		return false, fmt.Errorf("open from lists: %w", err)
	}
	defer allow.Close()
	origins, err := liveSlot(t.objs.Origins, doc.Generation)
	if err != nil {
		return false, fmt.Errorf("open origins: %w", err)
	}
	defer origins.Close()
	return doc.Entries <= int(forwards.MaxEntries()) && doc.Sources <= int(allow.MaxEntries()) &&
		doc.Origins <= int(origins.MaxEntries()), nil
}

// storeAddition puts the text of an addition where nobody looks before the
// generation says so.
func (t *Tables) storeAddition(doc *compile.Document, generation uint32, text []byte) error {
	chunks, err := liveSlot(t.objs.Documents, generation)
	if err != nil {
		return err
	}
	defer chunks.Close()
	var c chunk
	binary.LittleEndian.PutUint64(c[:], uint64(len(text)))
	copy(c[lengthBytes:], text)
	return chunks.Put(doc.Chunks+uint32(doc.Added)-1, &c)
}

// readAdditions appends the forwards that have been added up to a generation.
func readAdditions(d *compile.Document, chunks *ebpf.Map, generation uint32) error {
	added := (generation - d.Generation) / 2
	if added > compile.AdditionsRoom {
		return fmt.Errorf("generation %d is none of a document of %d", generation, d.Generation)
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

// isFinished reports whether what follows a swap to doc has been done.
func (t *Tables) isFinished(doc *compile.Document) (bool, error) {
	chunks, err := liveSlot(t.objs.Documents, doc.Generation)
	if err != nil {
		return false, fmt.Errorf("open running configuration: %w", err)
	}
	defer chunks.Close()
	var c chunk
	if err := chunks.Lookup(chunks.MaxEntries()-1, &c); err != nil {
		return false, fmt.Errorf("look whether the last change is finished: %w", err)
	}
	return binary.LittleEndian.Uint32(c[:]) == doc.LiveGeneration(), nil
}

func (t *Tables) noteFinished(doc *compile.Document) error {
	chunks, err := liveSlot(t.objs.Documents, doc.Generation)
	if err != nil {
		return err
	}
	defer chunks.Close()
	var c chunk
	binary.LittleEndian.PutUint32(c[:], doc.LiveGeneration())
	return chunks.Put(chunks.MaxEntries()-1, &c)
}

// finishAdded does what follows the last addition. What follows the swap to the
// document, and what followed the additions before, was done before it was made.
func (t *Tables) finishAdded(doc *compile.Document) error {
	if err := t.step("enter added forward", func() error { return t.enterAdded(doc) }); err != nil {
		return err
	}
	return t.step("note that it is finished", func() error { return t.noteFinished(doc) })
}

// enterAdded writes the entries of the last addition. The from list goes first:
// without it everybody is refused. The origins go last: they lead to the forward.
func (t *Tables) enterAdded(doc *compile.Document) error {
	p, err := doc.AddedProgram()
	if err != nil {
		return err
	}
	allow, err := liveSlot(t.objs.Allow, doc.Generation)
	if err != nil {
		return err
	}
	defer allow.Close()
	if err := putAll(allow, p.AllowKeys, p.Allowed, 1); err != nil {
		return err
	}
	forwards, err := liveSlot(t.objs.Forwards, doc.Generation)
	if err != nil {
		return err
	}
	defer forwards.Close()
	if err := putAll(forwards, p.ForwardKeys, p.Forwards, 1); err != nil {
		return err
	}
	origins, err := liveSlot(t.objs.Origins, doc.Generation)
	if err != nil {
		return err
	}
	defer origins.Close()
	return putAll(origins, p.OriginKeys, p.Origins, 1)
}
