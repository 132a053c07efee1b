// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"slices"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

const documentSchema = 3

// Document is the running configuration, with what later writers need to know
// about how it lies in the kernel. It swaps together with the forwards; those
// that were added since are in its additions.
type Document struct {
	Schema     int                   `json:"schema"`
	Generation uint32                `json:"generation"` // with which it went live
	Config     config.Config         `json:"config"`     // the forwards are written apart
	EpochRefs  []EpochRef            `json:"-"`          // of Config.Forwards, in the same order
	Externals  map[rule.Place]uint32 `json:"externals"`  // external ids: of WAN interfaces, one per family, and of fixed addresses
	Ended      []EpochRef            `json:"-"`          // of forwards whose connections end with this document
	Entries    int                   `json:"entries"`    // of the forwards in their trie, at most
	Sources    int                   `json:"sources"`    // the same of from and except lists
	Origins    int                   `json:"origins"`    // the same of what leads back from targets
	Intercepts bool                  `json:"intercepts"` // there are some among the forwards
	Chunks     uint32                `json:"-"`          // entries of the document's map that hold the text, without the additions
	Added      int                   `json:"-"`          // how many of the last forwards are additions
}

// Marshal is the form that ParseOutline reads: a line of JSON, then the
// forwards, then the epoch references that ended, for there may be as many.
func (d *Document) Marshal() ([]byte, error) {
	head := *d
	head.Config.Forwards = nil
	text, err := json.Marshal(&head)
	if err != nil {
		return nil, err
	}
	return encodeEpochRefs(encodeForwards(append(text, '\n'), d.Config.Forwards, d.EpochRefs), d.Ended), nil
}

// EpochRef is an id with the epoch that its connections carry.
type EpochRef struct{ ID, Epoch uint32 }

func (s EpochRef) kernel() bpf.HairpinEpochRef {
	return bpf.HairpinEpochRef{Id: s.ID, Epoch: s.Epoch}
}

// Takes reports whether f can be added if it is valid and meets no other forward:
// it is of the simple kind, and its external ids are there.
func (d *Document) Takes(f rule.Forward) bool {
	if f.Intercept || len(d.Config.StandIns) > 0 || slices.Contains(f.Protocols, rule.Any) {
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
func (d *Document) listensAt(f *rule.Forward) []rule.Place {
	at := f.Places()[0]
	if at.External != (rule.External{}) {
		return []rule.Place{at}
	}
	places := make([]rule.Place, len(d.Config.WAN))
	for i, name := range d.Config.WAN {
		places[i] = rule.AtWAN(name, at.IPv6)
	}
	return places
}

// LastAddition is the last addition, as AppendAddition reads it.
func (d *Document) LastAddition() []byte {
	last := len(d.EpochRefs) - 1
	return encodeForwards(nil, d.Config.Forwards[last:], d.EpochRefs[last:])
}

// AppendAddition adds what LastAddition wrote.
func (d *Document) AppendAddition(text string) error {
	forwards, epochRefs, _, err := decodeForwards(text)
	if err != nil {
		return err
	}
	return d.append(forwards, epochRefs)
}

// AddedProgram has the entries of the last addition alone.
func (d *Document) AddedProgram() (*Program, error) {
	p := &Program{Doc: *d}
	last := len(d.EpochRefs) - 1
	f := &d.Config.Forwards[last]
	first, end := f.Ports.Bounds()
	tree := newPortTree()
	tree.paint(first, end, last)
	for _, at := range d.listensAt(f) {
		for _, protocol := range f.Protocols {
			err := tree.each(func(port uint16, bits, owner int) error {
				return p.add(layout.ForwardKey(d.Externals[at], protocol.Number(at.Is6()), port, bits), owner)
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
func (d *Document) append(forward []rule.Forward, ref []EpochRef) error {
	d.Added++
	d.Ended = nil // was done before
	d.Config.Forwards = append(d.Config.Forwards, forward...)
	d.EpochRefs = append(d.EpochRefs, ref...)
	p, err := d.AddedProgram()
	if err != nil {
		return err
	}
	d.Entries += len(p.ForwardKeys)
	d.Sources += len(p.AllowKeys)
	d.Origins += len(p.OriginKeys)
	return nil
}

// LiveGeneration is the generation with which the last addition went live.
func (d *Document) LiveGeneration() uint32 { return d.Generation + 2*uint32(d.Added) }

// AdditionsRoom is how many forwards can be added to a document before Apply has
// to write another one. Each has an entry of the document's map, behind the
// document; the last entry of the map says which generation is finished.
const AdditionsRoom = 64

// Targets are the addresses that the forwards lead to.
func (d *Document) Targets() map[bpf.HairpinAddr]bool {
	all := map[bpf.HairpinAddr]bool{}
	for i := range d.Config.Forwards {
		all[layout.ToAddr(d.Config.Forwards[i].Target)] = true
	}
	return all
}
