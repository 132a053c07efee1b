// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"weak"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
)

// ErrEmpty says that no configuration was ever applied to these maps.
var ErrEmpty = errors.New("nothing has been applied yet")

// ErrUnfinished says that a change runs, but that a step after it failed. The next writer does that step.
var ErrUnfinished = errors.New("the change runs, but a step after it failed")

const documentSchema = 3

// document is the running configuration, with what later writers need to know
// about how it lies in the kernel. It swaps together with the forwards; those
// that were added since are in its additions.
type document struct {
	Schema     int              `json:"schema"`
	Generation uint32           `json:"generation"` // with which it went live
	Config     Config           `json:"config"`     // the forwards are written apart
	EpochRefs  []epochRef       `json:"-"`          // of Config.Forwards, in the same order
	Externals  map[place]uint32 `json:"externals"`  // external ids: of WAN interfaces, one per family, and of fixed addresses
	Ended      []epochRef       `json:"-"`          // of forwards whose connections end with this document
	Entries    int              `json:"entries"`    // of the forwards in their trie, at most
	Sources    int              `json:"sources"`    // the same of from and except lists
	Origins    int              `json:"origins"`    // the same of what leads back from targets
	Intercepts bool             `json:"intercepts"` // there are some among the forwards
	chunks     uint32           // of the document without its additions
	added      int              // how many of the last forwards are additions
}

// marshal is the form that outline.unmarshal reads: a line of JSON, then the
// forwards, then the epoch references that ended, for there may be as many.
func (d *document) marshal() ([]byte, error) {
	head := *d
	head.Config.Forwards = nil
	text, err := json.Marshal(&head)
	if err != nil {
		return nil, err
	}
	return encodeEpochRefs(encodeForwards(append(text, '\n'), d.Config.Forwards, d.EpochRefs), d.Ended), nil
}

// epochRef is an id with the epoch that its connections carry.
type epochRef struct{ id, epoch uint32 }

func (s epochRef) kernel() bpf.HairpinEpochRef {
	return bpf.HairpinEpochRef{Id: s.id, Epoch: s.epoch}
}

// Tables is the typed view of a loaded datapath's maps. Its methods may be
// called from several goroutines; those that write need the writer lock of the
// pins, and one caller at a time.
type Tables struct {
	objs *bpf.HairpinObjects

	mu       sync.Mutex // guards the rest
	cached   *outline   // of cachedAt
	cachedAt uint32

	// step runs each step of a writer. Tests stop it half-way.
	step func(name string, do func() error) error
}

// New gives the view of objs, which stay the caller's to close.
func New(objs *bpf.HairpinObjects) *Tables {
	return &Tables{objs: objs, step: func(name string, do func() error) error {
		if err := do(); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return nil
	}}
}

// Running is the configuration that the datapath runs. It needs no lock. On
// fresh maps it is the DefaultConfig, and the error is ErrEmpty.
func (t *Tables) Running() (Config, error) {
	doc, _, err := t.running()
	config := doc.Config
	config.Forwards = slices.Clip(config.Forwards) // what is behind them is the document's
	return config, err
}

// Settings are those of Running: it is without its forwards, which take the
// longest to read.
func (t *Tables) Settings() (Config, error) {
	o, _, err := t.outline()
	config := o.Config
	config.Forwards = nil
	return config, err
}

// EachForward calls visit for every running forward until it returns false. visit must not keep its
// argument, nor the lists in it: the next call reuses their memory.
func (t *Tables) EachForward(visit func(*Forward) bool) error {
	o, _, err := t.outline()
	if err != nil {
		return err
	}
	return o.each(func(f *Forward, _ epochRef) bool { return visit(f) })
}

// HasIPv6 reports whether a forward of IPv6 runs. While what runs stays the same, to ask again costs one system call.
func (t *Tables) HasIPv6() (bool, error) {
	r, err := t.roster()
	return err == nil && r.v6, err
}

// Find is the running forward of a name; false says that there is none.
func (t *Tables) Find(name string) (Forward, bool, error) {
	o, _, err := t.outline()
	if err != nil {
		return Forward{}, false, err
	}
	return o.find(name)
}

// running reads the live document and its generation. The document is shared:
// nobody changes it.
func (t *Tables) running() (*document, uint32, error) {
	o, generation, err := t.outline()
	if err != nil {
		return &o.document, generation, err
	}
	doc, err := t.whole(o)
	if err != nil {
		return &document{Config: DefaultConfig()}, generation, err
	}
	return doc, generation, nil
}

// outline reads that of the live document, and its generation. It is shared:
// nobody changes it.
func (t *Tables) outline() (*outline, uint32, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		generation, err := t.generation()
		if err != nil {
			return &outline{}, 0, err
		}
		if t.cached != nil && t.cachedAt == generation {
			return t.cached, generation, nil
		}
		t.cached = nil // not to hold two
		o, err := t.readOutline(generation)
		// The slot is written only while another generation lives. If this one
		// still lives, it was not written before it was opened.
		if now, again := t.generation(); again != nil || now != generation {
			if again != nil {
				return &outline{}, 0, again
			}
			continue
		}
		if err != nil {
			return &outline{document: document{Config: DefaultConfig()}}, generation, err
		}
		t.cached, t.cachedAt = o, generation
		return o, generation, nil
	}
}

// whole is the document of an outline.
func (t *Tables) whole(o *outline) (*document, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if doc := o.decoded.Value(); doc != nil {
		return doc, nil
	}
	doc, err := o.decode()
	if err != nil {
		return nil, fmt.Errorf("read running configuration: %w", err)
	}
	o.decoded = weak.Make(doc)
	return doc, nil
}

// roster lists the forwards that run. It is shared: nobody changes it. On fresh maps it is empty.
func (t *Tables) roster() (*roster, error) {
	o, _, err := t.outline()
	if errors.Is(err, ErrEmpty) {
		return new(roster), nil
	}
	if err != nil {
		return nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if o.roster == nil {
		if o.roster, err = o.enlist(); err != nil {
			return nil, err
		}
	}
	return o.roster, nil
}

// Generation counts the configurations that went live; an Apply that changes
// anything changes it, whoever calls it. To read it costs one system call.
func (t *Tables) Generation() (uint32, error) { return t.generation() }

func (t *Tables) generation() (uint32, error) {
	var live bpf.HairpinLive
	if err := t.objs.Live.Lookup(uint32(0), &live); err != nil {
		return 0, fmt.Errorf("read live generation: %w", err)
	}
	return live.Generation, nil
}

func (t *Tables) readOutline(generation uint32) (*outline, error) {
	chunks, err := liveSlot(t.objs.Documents, generation)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil, ErrEmpty
	}
	if err != nil {
		return nil, fmt.Errorf("open running configuration: %w", err)
	}
	defer chunks.Close()
	o := new(outline)
	text, err := readChunks(chunks)
	if err == nil {
		err = o.unmarshal(text)
	}
	if err == nil {
		o.chunks = chunkCount(len(text))
		err = o.readAdditions(chunks, generation)
	}
	if err != nil {
		return nil, fmt.Errorf("read running configuration: %w", err)
	}
	return o, nil
}

// liveSlot opens the map in the slot of a generation.
func liveSlot(outer *ebpf.Map, generation uint32) (*ebpf.Map, error) {
	var m *ebpf.Map
	err := outer.Lookup(generation&1, &m)
	return m, err
}

// chunk is one entry of a document's map; the first begins with the length.
type chunk [4096]byte

const lengthBytes = 8

// chunkCount is how many chunks hold a text.
func chunkCount(length int) uint32 {
	return uint32((lengthBytes + length + len(chunk{}) - 1) / len(chunk{}))
}

// readChunk reads the text of an addition, which is one entry.
func readChunk(m *ebpf.Map, at uint32) (string, error) {
	var c chunk
	if err := m.Lookup(at, &c); err != nil {
		return "", err
	}
	length := binary.LittleEndian.Uint64(c[:])
	if length > uint64(len(c)-lengthBytes) {
		return "", fmt.Errorf("an addition has %d bytes, more than fit", length)
	}
	return string(c[lengthBytes : lengthBytes+length]), nil
}

// chunksAtOnce bounds the memory that chunks take on the way into a text.
const chunksAtOnce = 64

// readChunks reads the text that begins with the first entry.
func readChunks(m *ebpf.Map) (string, error) {
	var (
		text   strings.Builder
		left   = uint64(1) // bytes, of which there is one at least
		cursor ebpf.MapBatchCursor
		keys   = make([]uint32, 1)
		chunks = make([]chunk, 1)
	)
	for left > 0 {
		n, err := m.BatchLookup(&cursor, keys, chunks, nil)
		// With the last entries comes the news that there are no more.
		if err != nil && !(errors.Is(err, ebpf.ErrKeyNotExist) && n > 0) {
			return "", err
		}
		if text.Len() == 0 {
			left = lengthBytes + binary.LittleEndian.Uint64(chunks[0][:])
			if room := uint64(m.MaxEntries()) * uint64(len(chunk{})); left > room {
				return "", fmt.Errorf("%d bytes, of which %d are there", left, room)
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

// newChunks makes a map that holds text, and has room for more entries behind it.
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

// putChunks writes some at a time, as readChunks reads them.
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

// newInner makes a map that fits a slot of the named outer map; size 0 is the
// size the datapath was built with.
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

// endConnections ends the connections that carry s. It may be repeated.
func (t *Tables) endConnections(s epochRef) error {
	epoch, err := t.epoch(s.id)
	if err != nil || epoch != s.epoch {
		return err
	}
	if err := t.objs.Epochs.Put(s.id, s.epoch+1); err != nil {
		return fmt.Errorf("raise epoch of %d: %w", s.id, err)
	}
	return nil
}

// addressIDs is the first id of external addresses; forwards have those from 1
// to below it. The split leaves an id for every external address there can be.
func (t *Tables) addressIDs() uint32 {
	return t.objs.Epochs.MaxEntries() - t.objs.Externals.MaxEntries()
}

// BumpRoutes makes the datapath resolve every next hop again, with each
// connection's next packet. Call it when routes or neighbours have changed.
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
