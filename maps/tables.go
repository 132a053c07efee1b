// SPDX-License-Identifier: Apache-2.0

// Package maps accesses hairpin's kernel maps: it applies configurations, writes interfaces and addresses, and reads
// connections and counters. Only this package makes system calls on the maps. Package compile computes the entries.
package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/rule"
	"hairpin/maps/slots"
)

// ErrEmpty means that no configuration was ever applied to these maps.
var ErrEmpty = errors.New("no configuration has been applied yet")

// ErrUnfinished means that a change is active, but a step after the swap failed. The next writer repeats the step.
var ErrUnfinished = errors.New("the change is active, but a later step failed")

// Tables gives access to the maps of a loaded datapath. Several goroutines may call its reading methods. The caller of a
// writing method must hold the writer lock of the pins, and only one writing method may run at a time.
type Tables struct {
	objs  *bpf.HairpinObjects
	slots *slots.Slots

	prepared uint32 // generation that Prepare staged for Swap; 0: none. Only the writer uses it.

	mu       sync.Mutex       // guards cached and cachedAt
	cached   *compile.Outline // the outline of generation cachedAt; nil: none
	cachedAt uint32

	// step runs one step of a writer. Tests replace it, to kill the writer between two steps.
	step func(name string, do func() error) error
}

// New returns Tables for maps and programs that are not pinned. The caller closes objs.
func New(objs *bpf.HairpinObjects) *Tables {
	return NewIn(objs, slots.Held(objs.ForwardsEmpty, objs.AllowEmpty, objs.StandInsEmpty, objs.OriginsEmpty, objs.SourceEmpty, objs.AffinityEmpty))
}

// NewIn returns Tables for the maps and programs in objs, whose inner maps are in slots. The caller closes objs.
func NewIn(objs *bpf.HairpinObjects, in *slots.Slots) *Tables {
	return &Tables{objs: objs, slots: in, step: func(name string, do func() error) error {
		if err := do(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}}
}

// Running returns the running configuration. It needs no writer lock. On fresh maps it returns config.Default() and
// ErrEmpty.
func (t *Tables) Running() (config.Config, error) {
	doc, _, err := t.running()
	config := doc.Config
	config.Forwards = slices.Clip(config.Forwards) // an append by the caller must not write into the shared document
	return config, err
}

// Settings returns the running configuration without the forwards, and so without decoding them.
func (t *Tables) Settings() (config.Config, error) {
	o, _, err := t.outline()
	config := o.Config
	config.Forwards = nil
	return config, err
}

// EachForward calls visit for every running forward until it returns false. visit must not keep its
// argument or the lists in it: the next call reuses their memory.
func (t *Tables) EachForward(visit func(*rule.Forward) bool) error {
	o, _, err := t.outline()
	if err != nil {
		return err
	}
	return o.Each(func(f *rule.Forward, _ compile.EpochRef) bool { return visit(f) })
}

// HasIPv6 reports whether an IPv6 forward is running. If the generation has not changed, a repeated call costs one system
// call.
func (t *Tables) HasIPv6() (bool, error) {
	r, err := t.Roster()
	return err == nil && r.IPv6, err
}

// Find returns the running forward with this name, and whether there is such a forward.
func (t *Tables) Find(name string) (rule.Forward, bool, error) {
	o, _, err := t.outline()
	if err != nil {
		return rule.Forward{}, false, err
	}
	return o.Find(name)
}

// Drains returns the running forwards that drain.
func (t *Tables) Drains() (list []rule.Forward, err error) {
	o, _, err := t.outline()
	if errors.Is(err, ErrEmpty) {
		return nil, nil
	}
	if err != nil || !o.Draining {
		return nil, err
	}
	err = o.Each(func(f *rule.Forward, _ compile.EpochRef) bool {
		if f.Drains() {
			list = append(list, f.Clone())
		}
		return true
	})
	return list, err
}

// Leases returns the running forwards that stand for mappings in lease files. Those that drain are left out.
func (t *Tables) Leases() (list []rule.Forward, err error) {
	o, _, err := t.outline()
	if errors.Is(err, ErrEmpty) {
		return nil, nil
	}
	if err != nil || len(o.Config.Leases.Files) == 0 {
		return nil, err
	}
	err = o.Each(func(f *rule.Forward, _ compile.EpochRef) bool {
		if f.IsLease() && !f.Drains() {
			list = append(list, f.Clone())
		}
		return true
	})
	return list, err
}

// running returns the live document and its generation. Callers share the document and must not change it.
func (t *Tables) running() (*compile.Document, uint32, error) {
	o, generation, err := t.outline()
	if err != nil {
		return &o.Document, generation, err
	}
	doc, err := o.Whole()
	if err != nil {
		return &compile.Document{Config: config.Default()}, generation, err
	}
	return doc, generation, nil
}

// outline returns the outline of the live document, and its generation. Callers share the outline and must not change
// it.
func (t *Tables) outline() (*compile.Outline, uint32, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		generation, err := t.generation()
		if err != nil {
			return &compile.Outline{}, 0, err
		}
		if t.cached != nil && t.cachedAt == generation {
			return t.cached, generation, nil
		}
		t.cached = nil // free the old outline before the new outline is read
		o, err := t.readOutline(generation)
		// A writer changes this slot only while another generation is live. If this generation is still live, the slot
		// did not change since the first read of the generation.
		if now, again := t.generation(); again != nil || now != generation {
			if again != nil {
				return &compile.Outline{}, 0, again
			}
			continue
		}
		if err != nil {
			return &compile.Outline{Document: compile.Document{Config: config.Default()}}, generation, err
		}
		t.cached, t.cachedAt = o, generation
		return o, generation, nil
	}
}

// Roster returns the names and epochs of the running forwards. On fresh maps it is empty. Callers share the result and
// must not change it.
func (t *Tables) Roster() (*compile.Roster, error) {
	o, _, err := t.outline()
	if errors.Is(err, ErrEmpty) {
		return new(compile.Roster), nil
	}
	if err != nil {
		return nil, err
	}
	return o.Roster()
}

// Generation returns the live generation. It is another number after every Apply or Add that changed anything, also by
// another process. The read costs one system call.
func (t *Tables) Generation() (uint32, error) { return t.generation() }

func (t *Tables) generation() (uint32, error) {
	var live bpf.HairpinLive
	if err := t.objs.Live.Lookup(uint32(0), &live); err != nil {
		return 0, fmt.Errorf("read live generation: %w", err)
	}
	return live.Generation, nil
}

func (t *Tables) readOutline(generation uint32) (*compile.Outline, error) {
	chunks, err := t.liveSlot(t.objs.Documents, generation)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, ErrEmpty
	}
	if err != nil {
		return nil, fmt.Errorf("open running configuration: %w", err)
	}
	defer chunks.Close()
	text, err := readChunks(chunks)
	var o *compile.Outline
	if err == nil {
		o, err = compile.ParseOutline(text)
	}
	if err == nil {
		o.Chunks = chunkCount(len(text))
		err = readAdditions(&o.Document, chunks, generation)
	}
	if err != nil {
		return nil, fmt.Errorf("read running configuration: %w", err)
	}
	return o, nil
}

// liveSlot opens the inner map of a generation.
func (t *Tables) liveSlot(outer *ebpf.Map, generation uint32) (*ebpf.Map, error) {
	return t.slots.Open(outer, generation&1)
}

// chunk is the value of one entry of a document's map. The first chunk of a text begins with the length of the text,
// lengthBytes long.
type chunk [4096]byte

const lengthBytes = 8

// chunkCount returns how many chunks a text of this length needs.
func chunkCount(length int) uint32 {
	return uint32((lengthBytes + length + len(chunk{}) - 1) / len(chunk{}))
}

// readChunk reads the text of an addition. The text is in a single entry.
func readChunk(m *ebpf.Map, at uint32) (string, error) {
	var c chunk
	if err := m.Lookup(at, &c); err != nil {
		return "", err
	}
	length := binary.LittleEndian.Uint64(c[:])
	if length > uint64(len(c)-lengthBytes) {
		return "", fmt.Errorf("an addition has %d bytes, more than an entry can hold", length)
	}
	return string(c[lengthBytes : lengthBytes+length]), nil
}

// chunksAtOnce is how many chunks one system call reads or writes. It limits the size of the buffer.
const chunksAtOnce = 64

// readChunks reads the text that begins in the first entry.
func readChunks(m *ebpf.Map) (string, error) {
	var (
		text   strings.Builder
		left   = uint64(1) // bytes to read; 1 until the first chunk gives the length
		cursor ebpf.MapBatchCursor
		keys   = make([]uint32, 1)
		chunks = make([]chunk, 1)
	)
	for left > 0 {
		n, err := m.BatchLookup(&cursor, keys, chunks, nil)
		// The kernel returns ENOENT together with the last entries.
		if err != nil && !(errors.Is(err, ebpf.ErrKeyNotExist) && n > 0) {
			return "", err
		}
		if text.Len() == 0 {
			left = lengthBytes + binary.LittleEndian.Uint64(chunks[0][:])
			if room := uint64(m.MaxEntries()) * uint64(len(chunk{})); left > room {
				return "", fmt.Errorf("the text has %d bytes, but its map only %d", left, room)
			}
			text.Grow(int(left))
		}
		for i := range chunks[:n] {
			part := chunks[i][:min(left, uint64(len(chunk{})))]
			text.Write(part)
			left -= uint64(len(part))
		}
		if len(chunks) == 1 {
			n := min(chunkCount(int(left)), chunksAtOnce)
			keys, chunks = make([]uint32, n), make([]chunk, n)
		}
	}
	return text.String()[lengthBytes:], nil
}

// newChunks makes a map with the text, and with room more entries after the text.
func newChunks(text []byte, room uint32) (*ebpf.Map, error) {
	count := chunkCount(len(text))
	m, err := newInner(bpf.HairpinMapDocuments, count+room)
	if err != nil {
		return nil, err
	}
	if err := putChunks(m, text); err != nil {
		m.Close()
		return nil, err
	}
	return m, nil
}

// putChunks writes a text as chunks, chunksAtOnce per system call.
func putChunks(m *ebpf.Map, text []byte) error {
	count := chunkCount(len(text))
	keys, chunks := make([]uint32, min(count, chunksAtOnce)), make([]chunk, min(count, chunksAtOnce))
	for first := uint32(0); first < count; first += chunksAtOnce {
		n := min(count-first, chunksAtOnce)
		clear(chunks)
		for i := range n {
			keys[i] = first + i
			into := chunks[i][:]
			if keys[i] == 0 {
				binary.LittleEndian.PutUint64(into, uint64(len(text)))
				into = into[lengthBytes:]
			}
			text = text[copy(into, text):]
		}
		if err := putAll(m, keys[:n], chunks[:n], 1); err != nil {
			return err
		}
	}
	return nil
}

// newInner makes an inner map for the named outer map. Size 0 means the size in the embedded object.
func newInner(outer string, size uint32) (*ebpf.Map, error) {
	spec, err := embedded()
	if err != nil {
		return nil, err
	}
	inner := spec.Maps[outer].InnerMap.Copy()
	if size != 0 {
		inner.MaxEntries = size
	}
	m, err := ebpf.NewMap(inner)
	if err != nil {
		return nil, fmt.Errorf("create a map for a slot of %s: %w", outer, err)
	}
	return m, nil
}

func (t *Tables) epoch(id uint32) (uint32, error) {
	var epoch uint32
	if err := t.objs.Epochs.Lookup(id, &epoch); err != nil {
		return 0, fmt.Errorf("read epoch of %d: %w", id, err)
	}
	return epoch, nil
}

// endConnections ends the connections with epoch reference s: it raises the epoch of the id. A second call does nothing.
func (t *Tables) endConnections(s compile.EpochRef) error {
	epoch, err := t.epoch(s.ID)
	if err != nil || epoch != s.Epoch {
		return err
	}
	if err := t.objs.Epochs.Put(s.ID, s.Epoch+1); err != nil {
		return fmt.Errorf("raise epoch of %d: %w", s.ID, err)
	}
	return nil
}

// addressIDs returns the lowest id for external addresses; forwards have lower ids. There are as many ids for addresses
// as map externals has entries.
func (t *Tables) addressIDs() uint32 {
	return t.objs.Epochs.MaxEntries() - t.objs.Externals.MaxEntries()
}

// BumpRoutes makes the datapath resolve every next hop again, when the next packet needs it. Call it after a change of
// routes or neighbours.
func (t *Tables) BumpRoutes() error {
	var routes bpf.HairpinRoutes
	if err := t.objs.Routes.Lookup(uint32(0), &routes); err != nil {
		return fmt.Errorf("read route generation: %w", err)
	}
	routes.Generation++
	if err := t.objs.Routes.Put(uint32(0), routes); err != nil {
		return fmt.Errorf("raise route generation: %w", err)
	}
	return nil
}
