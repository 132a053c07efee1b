// SPDX-License-Identifier: Apache-2.0

// Package compile turns a configuration, and what is known of the one that runs, into the entries of the kernel's maps. It reads and
// writes the document by which the next writer knows what runs. It makes no system call: package maps does what compile has worked out.
package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Program is a configuration as the datapath reads it.
type Program struct {
	Doc         Document
	Fresh       []EpochRef // of forwards that are new or do something else now
	ForwardKeys []bpf.HairpinForwardKey
	Forwards    []bpf.HairpinForward
	AllowKeys   []bpf.HairpinAllowKey
	Allowed     []uint8 // of sources: 1 or 0

	StandInKeys []bpf.HairpinStandInKey
	StandIns    []bpf.HairpinStandIn
	claims      map[service][]claim
	OriginKeys  []bpf.HairpinOriginKey
	Origins     []bpf.HairpinOrigin
}

// Inventory is what a compilation needs to know of the kernel's maps.
type Inventory struct {
	Epoch        func(id uint32) (uint32, error)
	ForwardIDs   uint32 // ids of forwards are 1 to this
	LastExternal uint32 // highest external id that any address or interface still has
}

// Compile turns a valid configuration into table entries. A forward that does
// the same as in the running document keeps its epoch reference, so its connections live.
// Any other one gets an id that no forward has now: until the swap the old one
// goes on under the old id, and whoever is killed on the way leaves no forward
// whose connections are over before they began.
func Compile(c config.Config, running *Running, have Inventory) (*Program, error) {
	p := &Program{Doc: Document{Schema: documentSchema, Config: c, Intercepts: c.HasIntercepts()}}
	// Most forwards need an entry or two. To grow from nothing would leave as much garbage as there are entries.
	p.ForwardKeys, p.Forwards = make([]bpf.HairpinForwardKey, 0, len(c.Forwards)), make([]bpf.HairpinForward, 0, len(c.Forwards))
	if err := p.assignEpochRefs(running, have); err != nil {
		return nil, err
	}
	listening := p.listening()
	p.assignExternals(listening, running, have)
	for _, at := range slices.SortedFunc(maps.Keys(p.Doc.Externals), rule.ComparePlaces) {
		layers := [][]int{listening[at]}
		if at.Interface != "" {
			layers = [][]int{listening[at.Everywhere()], listening[at]}
		}
		if err := p.paint(at, layers); err != nil {
			return nil, err
		}
	}
	for i := range c.Forwards {
		p.addSources(i)
	}
	p.addStandIns()
	p.addOrigins()
	p.Doc.Entries, p.Doc.Sources, p.Doc.Origins = len(p.ForwardKeys), len(p.AllowKeys), len(p.OriginKeys)
	return p, nil
}

func (p *Program) assignEpochRefs(running *Running, have Inventory) error {
	c := p.Doc.Config
	ids := NewIDPool(1, have.ForwardIDs)
	for _, s := range running.epochRefs {
		ids.Reserve(s.ID)
	}
	p.Doc.EpochRefs = make([]EpochRef, len(c.Forwards))
	kept := map[uint32]bool{}
	for i := range c.Forwards {
		if was := running.of[i]; was.behaves {
			p.Doc.EpochRefs[i] = was.epochRef
			kept[was.epochRef.ID] = true
			continue
		}
		id, err := ids.Take()
		if err != nil {
			return fmt.Errorf("%d forwards run and %d more are new or changed: %w; apply the change in steps", len(running.epochRefs), len(p.Fresh)+1, err)
		}
		epoch, err := have.Epoch(id)
		if err != nil {
			return err
		}
		p.Doc.EpochRefs[i] = EpochRef{id, epoch}
		p.Fresh = append(p.Fresh, p.Doc.EpochRefs[i])
	}
	for _, s := range running.epochRefs {
		if !kept[s.ID] {
			p.Doc.Ended = append(p.Doc.Ended, s)
		}
	}
	return nil
}

// assignExternals gives every fixed address an id and every WAN interface two,
// so that no address is looked up among forwards of the other family; a LAN
// interface has one for each family that is intercepted there. Old ids stay; a
// new one is higher than any that an address or interface may still have, for
// these do not swap together with the forwards.
func (p *Program) assignExternals(listening map[rule.Place][]int, running *Running, have Inventory) {
	p.Doc.Externals = map[rule.Place]uint32{}
	last := have.LastExternal
	for _, id := range running.externals {
		last = max(last, id)
	}
	add := func(at rule.Place) {
		if _, there := p.Doc.Externals[at]; there {
			return
		}
		id, there := running.externals[at]
		if !there {
			last++
			id = last
		}
		p.Doc.Externals[at] = id
	}
	for _, name := range p.Doc.Config.WAN {
		add(rule.AtWAN(name, false))
		add(rule.AtWAN(name, true))
	}
	for _, name := range p.Doc.Config.LAN {
		for _, at := range []rule.Place{rule.AtLAN(name, false), rule.AtLAN(name, true)} {
			if len(listening[at])+len(listening[at.Everywhere()]) > 0 {
				add(at)
			}
		}
	}
	for _, f := range p.Doc.Config.Forwards {
		if f.External.Address.IsValid() {
			add(rule.AtAddress(f.External.Address))
		}
	}
}

// listening sorts the forwards by where they listen, larger ranges first.
func (p *Program) listening() map[rule.Place][]int {
	forwards := p.Doc.Config.Forwards
	order := make([]int, len(forwards))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(forwards[b].Ports.Len(), forwards[a].Ports.Len())
	})
	listening := map[rule.Place][]int{}
	for _, i := range order {
		for _, at := range forwards[i].Places() {
			listening[at] = append(listening[at], i)
		}
	}
	return listening
}

// paint lays forwards over each other, the more specific ones last, and adds
// the entries that give each port the topmost.
func (p *Program) paint(at rule.Place, layers [][]int) error {
	external := p.Doc.Externals[at]
	layers, all := p.overAny(layers)
	if all >= 0 {
		if err := p.add(layout.AnyKey(external), all); err != nil {
			return err
		}
	}
	for _, protocol := range rule.Protocols() {
		tree := newPortTree()
		for _, layer := range layers {
			for _, i := range layer {
				f := &p.Doc.Config.Forwards[i]
				if slices.Contains(f.Protocols, protocol) {
					first, last := f.Ports.Bounds()
					tree.paint(first, last, i)
				}
			}
		}
		err := tree.each(func(port uint16, bits, owner int) error {
			return p.add(layout.ForwardKey(external, protocol.Number(at.Is6()), port, bits), owner)
		})
		if err != nil {
			return err
		}
		p.claim(at, protocol, tree, all)
	}
	return nil
}

// overAny takes the forward of any protocol out of the topmost layer that has
// one, -1 if none has. It leaves that layer and those over it: what is below
// shows nowhere.
func (p *Program) overAny(layers [][]int) (over [][]int, all int) {
	for i, layer := range slices.Backward(layers) {
		isAny := func(forward int) bool {
			return slices.Contains(p.Doc.Config.Forwards[forward].Protocols, rule.Any)
		}
		if at := slices.IndexFunc(layer, isAny); at >= 0 {
			rest := slices.Delete(slices.Clone(layer), at, at+1)
			return append([][]int{rest}, layers[i+1:]...), layer[at]
		}
	}
	return layers, -1
}

func (p *Program) add(key bpf.HairpinForwardKey, owner int) error {
	value, err := p.value(owner)
	p.ForwardKeys = append(p.ForwardKeys, key)
	p.Forwards = append(p.Forwards, value)
	return err
}

// reflectModes are what the datapath calls them.
var reflectModes = map[rule.Reflect]bpf.HairpinReflect{
	rule.ReflectAuto:   bpf.HairpinReflectREFLECT_AUTO,
	rule.ReflectRouter: bpf.HairpinReflectREFLECT_ROUTER,
	rule.ReflectPublic: bpf.HairpinReflectREFLECT_PUBLIC,
	rule.ReflectPrefix: bpf.HairpinReflectREFLECT_PREFIX,
	rule.ReflectOff:    bpf.HairpinReflectREFLECT_OFF,
}

func (p *Program) value(i int) (bpf.HairpinForward, error) {
	f := &p.Doc.Config.Forwards[i]
	mode, ok := reflectModes[p.Doc.Config.ReflectOf(*f)]
	if !ok {
		return bpf.HairpinForward{}, fmt.Errorf("forward %s: the datapath knows no reflect mode %s", rule.Quote(f.Name), rule.Quote(string(f.Reflect)))
	}
	value := bpf.HairpinForward{
		Target:    layout.ToAddr(f.Target),
		EpochRef:  p.Doc.EpochRefs[i].kernel(),
		Reflect:   mode,
		PortShift: f.PortShift(),
	}
	if len(f.From) > 0 || f.Intercept {
		value.Restricted = 1
	}
	if f.Ports.Len() > 1 {
		value.Wide = 1
	}
	return value, nil
}
