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

const documentSchema = 4

// Document is the running configuration, with the ids and sizes that a later writer needs. It is stored in the kernel
// and swaps together with the forwards. Forwards that Tables.Add added after the swap are its additions.
type Document struct {
	Schema     int                   `json:"schema"`
	Generation uint32                `json:"generation"`         // generation of the swap that made it live
	Config     config.Config         `json:"config"`             // Marshal writes the forwards separately
	EpochRefs  []EpochRef            `json:"-"`                  // epoch references of Config.Forwards, in the order of the forwards
	Externals  map[rule.Place]uint32 `json:"externals"`          // external ids of WAN and LAN interfaces, one per family, and of fixed addresses
	Ended      []EpochRef            `json:"-"`                  // epoch references of forwards whose connections must end after the swap to this document
	Dropped    []DroppedServer       `json:"dropped,omitempty"`  // whose connections must end after the swap to this document
	Entries    int                   `json:"entries"`            // upper bound of the entries in trie forwards
	Sources    int                   `json:"sources"`            // upper bound of the entries in trie allow
	Origins    int                   `json:"origins"`            // upper bound of the entries in trie origins
	Intercepts bool                  `json:"intercepts"`         // the forwards contain intercepts
	Draining   bool                  `json:"draining,omitempty"` // a forward drains
	Chunks     uint32                `json:"-"`                  // map entries of the text without additions
	Added      int                   `json:"-"`                  // number of additions; they are the last forwards
}

// Marshal returns the text that ParseOutline reads: a line of JSON, the forwards in the form of codec, then Ended in the
// form of codec. Ended may be as long as the list of forwards.
func (d *Document) Marshal() ([]byte, error) {
	head := *d
	head.Config.Forwards = nil
	text, err := json.Marshal(&head)
	if err != nil {
		return nil, err
	}
	return encodeEpochRefs(encodeForwards(append(text, '\n'), d.Config.Forwards, d.EpochRefs), d.Ended), nil
}

// EpochRef is the id of a forward or external address, and its epoch. Connections made with this epoch are over when the
// epoch of the id in map epochs changes.
type EpochRef struct{ ID, Epoch uint32 }

func (s EpochRef) kernel() bpf.HairpinEpochRef {
	return bpf.HairpinEpochRef{Id: s.ID, Epoch: s.Epoch}
}

// Takes reports whether Tables.Add can add f, if f is valid and meets no other forward. f must not be an intercept or
// have protocol Any, its external ids must exist, and the configuration must have no stand-ins.
func (d *Document) Takes(f rule.Forward) bool {
	if f.Intercept || f.Balanced() || len(d.Config.StandIns) > 0 || slices.Contains(f.Protocols, rule.Any) {
		return false
	}
	for _, at := range d.listensAt(&f) {
		if d.Externals[at] == 0 {
			return false
		}
	}
	return true
}

// listensAt returns the places whose external ids are in the entries of the forward. f must not be an intercept.
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

// LastAddition encodes the last addition for AppendAddition.
func (d *Document) LastAddition() []byte {
	last := len(d.EpochRefs) - 1
	return encodeForwards(nil, d.Config.Forwards[last:], d.EpochRefs[last:])
}

// AppendAddition decodes the text of LastAddition and adds the forward to the document.
func (d *Document) AppendAddition(text string) error {
	forwards, epochRefs, _, err := decodeForwards(text)
	if err != nil {
		return err
	}
	return d.append(forwards, epochRefs)
}

// AddedProgram returns the table entries of the last addition only.
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
	d.Ended = nil // these connections ended before the addition
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

// LiveGeneration returns the generation that made the last addition live.
func (d *Document) LiveGeneration() uint32 { return d.Generation + 2*uint32(d.Added) }

// AdditionsRoom is how many forwards Tables.Add can add to a document. Then Apply must write a new document. In the
// document's map, the entries after the text hold one addition each. The last entry of the map has the number of the
// last finished generation.
const AdditionsRoom = 64

// Targets returns the target addresses of the forwards.
func (d *Document) Targets() map[bpf.HairpinAddr]bool {
	all := map[bpf.HairpinAddr]bool{}
	for i := range d.Config.Forwards {
		for s := range d.Config.Forwards[i].EachServer() {
			all[layout.ToAddr(s.Target)] = true
		}
	}
	return all
}
