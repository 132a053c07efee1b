// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/json"
	"hairpin/bpf"
	"slices"
)

const documentSchema = 3

// document is the running configuration, with what later writers need to know
// about how it lies in the kernel. It swaps together with the forwards; those
// that were added since are in its additions.
type document struct {
	Schema     int              `json:"schema"`
	Generation uint32           `json:"generation"` // with which it went live
	Config     Config           `json:"config"`     // the forwards are written apart
	Stamps     []stamp          `json:"-"`          // of Config.Forwards, in the same order
	Externals  map[place]uint32 `json:"externals"`  // external ids: of WAN interfaces, one per family, and of fixed addresses
	Ended      []stamp          `json:"-"`          // of forwards whose connections end with this document
	Entries    int              `json:"entries"`    // of the forwards in their trie, at most
	Sources    int              `json:"sources"`    // the same of from and except lists
	Origins    int              `json:"origins"`    // the same of what leads back from targets
	Intercepts bool             `json:"intercepts"` // there are some among the forwards
	chunks     uint32           // of the document without its additions
	added      int              // how many of the last forwards are additions
}

// marshal is the form that outline.unmarshal reads: a line of JSON, then the
// forwards, then the stamps that ended, for there may be as many.
func (d *document) marshal() ([]byte, error) {
	head := *d
	head.Config.Forwards = nil
	text, err := json.Marshal(&head)
	if err != nil {
		return nil, err
	}
	return encodeStamps(encodeForwards(append(text, '\n'), d.Config.Forwards, d.Stamps), d.Ended), nil
}

// stamp is an id with the epoch that its connections carry.
type stamp struct{ id, epoch uint32 }

func (s stamp) kernel() bpf.HairpinStamp {
	return bpf.HairpinStamp{Id: s.id, Epoch: s.epoch}
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

// lastAddition is the last addition, as appendAddition reads it.
func (d *document) lastAddition() []byte {
	last := len(d.Stamps) - 1
	return encodeForwards(nil, d.Config.Forwards[last:], d.Stamps[last:])
}

// appendAddition adds what lastAddition wrote.
func (d *document) appendAddition(text string) error {
	forwards, stamps, _, err := decodeForwards(text)
	if err != nil {
		return err
	}
	return d.append(forwards, stamps)
}

// addedProgram has the entries of the last addition alone.
func (d *document) addedProgram() (*program, error) {
	p := &program{doc: *d}
	last := len(d.Stamps) - 1
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

// append adds a forward to the document.
func (d *document) append(forward []Forward, stamp []stamp) error {
	d.added++
	d.Ended = nil // was done before
	d.Config.Forwards = append(d.Config.Forwards, forward...)
	d.Stamps = append(d.Stamps, stamp...)
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

// additionsRoom is how many forwards can be added to a document before Apply has
// to write another one. Each has an entry of the document's map, behind the
// document; the last entry of the map says which generation is finished.
const additionsRoom = 64

// targets are the addresses that the forwards lead to.
func (d *document) targets() map[bpf.HairpinAddr]bool {
	all := map[bpf.HairpinAddr]bool{}
	for i := range d.Config.Forwards {
		all[toAddr(d.Config.Forwards[i].Target)] = true
	}
	return all
}
