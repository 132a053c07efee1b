// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"weak"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// additionsRoom is how many forwards can be added to a document before Apply has
// to write another one. Each has an entry of the document's map, behind the
// document; the last entry of the map says which generation is finished.
const additionsRoom = 64

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
func (t *Tables) Add(f Forward) (bool, error) {
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
	added, epochRefs := doc.lastAdded()
	text := encodeForwards(nil, added, epochRefs)
	if chunkCount(len(text)) > 1 {
		return false, nil
	}
	id := doc.EpochRefs[len(doc.EpochRefs)-1].id
	for _, step := range []struct {
		name string
		do   func() error
	}{
		{"make counters", func() error { return t.zeroStats([]uint32{id}) }},
		{"add target", func() error { return t.objs.Targets.Put(toAddr(f.Target), uint8(1)) }},
		{"store addition", func() error { return t.storeAddition(&doc.document, generation, text) }},
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
func (t *Tables) extend(running *outline, f Forward) (*outline, error) {
	if running.added == additionsRoom || !running.takes(f) {
		return nil, nil
	}
	seen, err := running.survey(&f)
	if err != nil || seen.meets {
		return nil, err
	}
	config := running.Config
	if config.Forwards = append(seen.related, f); !config.validLast() {
		return nil, nil
	}
	if last, err := t.forwardIDs(); err != nil || seen.freeID > last {
		return nil, err
	}
	epoch, err := t.epoch(seen.freeID)
	if err != nil {
		return nil, err
	}
	doc := *running
	doc.decoded, doc.roster = weak.Pointer[document]{}, nil
	if err := doc.append([]Forward{f}, []epochRef{{seen.freeID, epoch}}); err != nil {
		return nil, err
	}
	spare, err := t.holds(&doc.document)
	if err != nil || !spare {
		return nil, err
	}
	return &doc, nil
}

// holds reports whether the tries of the document's generation have room for it.
func (t *Tables) holds(doc *document) (bool, error) {
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

// takes reports whether f can be added if it is valid and meets no other forward:
// it is of the simple kind, and its external ids are there.
func (d *document) takes(f Forward) bool {
	if f.Intercept || len(d.Config.StandIns) > 0 || slices.Contains(f.Protocols, Any) {
		return false
	}
	for _, at := range d.listensAt(&f) {
		if d.Externals[at] == 0 {
			return false
		}
	}
	return true
}

// meets reports whether there may be a packet for both.
func (f *Forward) meets(g *Forward) bool {
	if f.Intercept != g.Intercept || f.Target.Is6() != g.Target.Is6() || !f.Ports.overlaps(g.Ports) {
		return false
	}
	if f.External != g.External && (f.External.String() != "" && g.External.String() != "" ||
		f.External.Address.IsValid() || g.External.Address.IsValid()) {
		return false
	}
	return slices.ContainsFunc(f.Protocols, func(p Protocol) bool {
		return slices.Contains(g.Protocols, p) || slices.Contains(g.Protocols, Any)
	})
}

// meetsBehind reports whether the same answers to the Internet may be of both
// forwards, so that neither is their origin.
func (f *Forward) meetsBehind(g *Forward) bool {
	udp := func(p Protocol) bool { return p == UDP || p == Any }
	return f.Target == g.Target && !g.Intercept && f.TargetPorts().overlaps(g.TargetPorts()) &&
		slices.ContainsFunc(f.Protocols, udp) && slices.ContainsFunc(g.Protocols, udp)
}

// listensAt are the places that have the forward's entries.
func (d *document) listensAt(f *Forward) []place {
	at := f.places()[0]
	if at.External != (External{}) {
		return []place{at}
	}
	places := make([]place, len(d.Config.WAN))
	for i, name := range d.Config.WAN {
		places[i] = interfacePlace(name, at.v6)
	}
	return places
}

// lastAdded is the last addition, as encodeForwards wants it.
func (d *document) lastAdded() ([]Forward, []epochRef) {
	last := len(d.EpochRefs) - 1
	return d.Config.Forwards[last:], d.EpochRefs[last:]
}

// addedProgram has the entries of the last addition alone.
func (d *document) addedProgram() (*program, error) {
	p := &program{doc: *d}
	last := len(d.EpochRefs) - 1
	f := &d.Config.Forwards[last]
	first, end := f.Ports.bounds()
	tree := newPortTree()
	tree.paint(first, end, last)
	for _, at := range d.listensAt(f) {
		for _, protocol := range f.Protocols {
			err := tree.each(func(port uint16, bits, owner int) error {
				return p.add(forwardKey(d.Externals[at], protocol.number(at.is6()), port, bits), owner)
			})
			if err != nil {
				return nil, err
			}
			p.claim(at, protocol, tree, -1)
		}
	}
	p.addSources(last)
	p.addOrigins()
	return p, nil
}

// storeAddition puts the text of an addition where nobody looks before the
// generation says so.
func (t *Tables) storeAddition(doc *document, generation uint32, text []byte) error {
	chunks, err := liveSlot(t.objs.Documents, generation)
	if err != nil {
		return err
	}
	defer chunks.Close()
	var c chunk
	binary.LittleEndian.PutUint64(c[:], uint64(len(text)))
	copy(c[lengthBytes:], text)
	return chunks.Put(doc.chunks+uint32(doc.added)-1, &c)
}

// readAdditions appends the forwards that have been added up to a generation.
func (d *document) readAdditions(chunks *ebpf.Map, generation uint32) error {
	added := (generation - d.Generation) / 2
	if added > additionsRoom {
		return fmt.Errorf("generation %d is none of a document of %d", generation, d.Generation)
	}
	for i := range added {
		text, err := readChunk(chunks, d.chunks+i)
		if err != nil {
			return err
		}
		forwards, epochRefs, _, err := decodeForwards(text)
		if err == nil {
			err = d.append(forwards, epochRefs)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// append adds a forward to the document.
func (d *document) append(forward []Forward, epochRef []epochRef) error {
	d.added++
	d.Ended = nil // was done before
	d.Config.Forwards = append(d.Config.Forwards, forward...)
	d.EpochRefs = append(d.EpochRefs, epochRef...)
	p, err := d.addedProgram()
	if err != nil {
		return err
	}
	d.Entries += len(p.keys)
	d.Sources += len(p.sources)
	d.Origins += len(p.originKeys)
	return nil
}

// liveGeneration is the generation with which the last addition went live.
func (d *document) liveGeneration() uint32 { return d.Generation + 2*uint32(d.added) }

// isFinished reports whether what follows a swap to doc has been done.
func (t *Tables) isFinished(doc *document) (bool, error) {
	chunks, err := liveSlot(t.objs.Documents, doc.Generation)
	if err != nil {
		return false, fmt.Errorf("open running configuration: %w", err)
	}
	defer chunks.Close()
	var c chunk
	if err := chunks.Lookup(chunks.MaxEntries()-1, &c); err != nil {
		return false, fmt.Errorf("look whether the last change is finished: %w", err)
	}
	return binary.LittleEndian.Uint32(c[:]) == doc.liveGeneration(), nil
}

func (t *Tables) noteFinished(doc *document) error {
	chunks, err := liveSlot(t.objs.Documents, doc.Generation)
	if err != nil {
		return err
	}
	defer chunks.Close()
	var c chunk
	binary.LittleEndian.PutUint32(c[:], doc.liveGeneration())
	return chunks.Put(chunks.MaxEntries()-1, &c)
}

// finishAdded does what follows the last addition. What follows the swap to the
// document, and what followed the additions before, was done before it was made.
func (t *Tables) finishAdded(doc *document) error {
	if err := t.step("enter added forward", func() error { return t.enterAdded(doc) }); err != nil {
		return err
	}
	return t.step("note that it is finished", func() error { return t.noteFinished(doc) })
}

// enterAdded writes the entries of the last addition. The from list goes first:
// without it everybody is refused. The origins go last: they lead to the forward.
func (t *Tables) enterAdded(doc *document) error {
	p, err := doc.addedProgram()
	if err != nil {
		return err
	}
	allow, err := liveSlot(t.objs.Allow, doc.Generation)
	if err != nil {
		return err
	}
	defer allow.Close()
	if err := putAll(allow, p.sources, p.allowed, 1); err != nil {
		return err
	}
	forwards, err := liveSlot(t.objs.Forwards, doc.Generation)
	if err != nil {
		return err
	}
	defer forwards.Close()
	if err := putAll(forwards, p.keys, p.values, 1); err != nil {
		return err
	}
	origins, err := liveSlot(t.objs.Origins, doc.Generation)
	if err != nil {
		return err
	}
	defer origins.Close()
	return putAll(origins, p.originKeys, p.origins, 1)
}
