// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"hairpin/bpf"
)

// program is a configuration as the datapath reads it.
type program struct {
	doc     document
	fresh   []stamp // of forwards that are new or do something else now
	keys    []bpf.HairpinForwardKey
	values  []bpf.HairpinForward
	sources []bpf.HairpinAllowKey
	allowed []uint8 // of sources: 1 or 0

	standInKeys []bpf.HairpinStandInKey
	standIns    []bpf.HairpinStandIn
	claims      map[service][]claim
	originKeys  []bpf.HairpinOriginKey
	origins     []bpf.HairpinOrigin
}

// inventory is what a compilation needs to know of the kernel's maps.
type inventory struct {
	epoch        func(id uint32) (uint32, error)
	forwardIDs   uint32 // ids of forwards are 1 to this
	lastExternal uint32 // highest external id that any address or interface still has
}

// compile turns a valid configuration into table entries. A forward that does
// the same as in the running document keeps its stamp, so its connections live.
// Any other one gets an id that no forward has now: until the swap the old one
// goes on under the old id, and whoever is killed on the way leaves no forward
// whose connections are over before they began.
func compile(c Config, running *earlier, have inventory) (*program, error) {
	p := &program{doc: document{Schema: documentSchema, Config: c, Intercepts: c.hasIntercepts()}}
	// Most forwards need an entry or two. To grow from nothing would leave as much garbage as there are entries.
	p.keys, p.values = make([]bpf.HairpinForwardKey, 0, len(c.Forwards)), make([]bpf.HairpinForward, 0, len(c.Forwards))
	if err := p.assignStamps(running, have); err != nil {
		return nil, err
	}
	listening := p.listening()
	p.assignExternals(listening, running, have)
	for _, at := range slices.SortedFunc(maps.Keys(p.doc.Externals), comparePlace) {
		layers := [][]int{listening[at]}
		if at.Interface != "" {
			layers = [][]int{listening[at.everywhere()], listening[at]}
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
	p.doc.Entries, p.doc.Sources, p.doc.Origins = len(p.keys), len(p.sources), len(p.originKeys)
	return p, nil
}

func (p *program) assignStamps(running *earlier, have inventory) error {
	c := p.doc.Config
	ids := newIDPool(1, have.forwardIDs)
	for _, s := range running.stamps {
		ids.reserve(s.id)
	}
	p.doc.Stamps = make([]stamp, len(c.Forwards))
	kept := map[uint32]bool{}
	for i := range c.Forwards {
		if was := running.of[i]; was.behaves {
			p.doc.Stamps[i] = was.stamp
			kept[was.stamp.id] = true
			continue
		}
		id, err := ids.take()
		if err != nil {
			return fmt.Errorf("%d forwards run and %d more are new or changed: %w; apply the change in steps", len(running.stamps), len(p.fresh)+1, err)
		}
		epoch, err := have.epoch(id)
		if err != nil {
			return err
		}
		p.doc.Stamps[i] = stamp{id, epoch}
		p.fresh = append(p.fresh, p.doc.Stamps[i])
	}
	for _, s := range running.stamps {
		if !kept[s.id] {
			p.doc.Ended = append(p.doc.Ended, s)
		}
	}
	return nil
}

// assignExternals gives every fixed address an id and every WAN interface two,
// so that no address is looked up among forwards of the other family; a LAN
// interface has one for each family that is intercepted there. Old ids stay; a
// new one is higher than any that an address or interface may still have, for
// these do not swap together with the forwards.
func (p *program) assignExternals(listening map[place][]int, running *earlier, have inventory) {
	p.doc.Externals = map[place]uint32{}
	last := have.lastExternal
	for _, id := range running.externals {
		last = max(last, id)
	}
	add := func(at place) {
		if _, there := p.doc.Externals[at]; there {
			return
		}
		id, there := running.externals[at]
		if !there {
			last++
			id = last
		}
		p.doc.Externals[at] = id
	}
	for _, name := range p.doc.Config.WAN {
		add(interfacePlace(name, false))
		add(interfacePlace(name, true))
	}
	for _, name := range p.doc.Config.LAN {
		for _, at := range []place{lanPlace(name, false), lanPlace(name, true)} {
			if len(listening[at])+len(listening[at.everywhere()]) > 0 {
				add(at)
			}
		}
	}
	for _, f := range p.doc.Config.Forwards {
		if f.External.Address.IsValid() {
			add(addressPlace(f.External.Address))
		}
	}
}

// listening sorts the forwards by where they listen, larger ranges first.
func (p *program) listening() map[place][]int {
	forwards := p.doc.Config.Forwards
	order := make([]int, len(forwards))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(forwards[b].Ports.Len(), forwards[a].Ports.Len())
	})
	listening := map[place][]int{}
	for _, i := range order {
		for _, at := range forwards[i].places() {
			listening[at] = append(listening[at], i)
		}
	}
	return listening
}

// paint lays forwards over each other, the more specific ones last, and adds
// the entries that give each port the topmost.
func (p *program) paint(at place, layers [][]int) error {
	external := p.doc.Externals[at]
	layers, all := p.overAny(layers)
	if all >= 0 {
		if err := p.add(anyKey(external), all); err != nil {
			return err
		}
	}
	for _, protocol := range Protocols() {
		tree := newPortTree()
		for _, layer := range layers {
			for _, i := range layer {
				f := &p.doc.Config.Forwards[i]
				if slices.Contains(f.Protocols, protocol) {
					first, last := f.Ports.bounds()
					tree.paint(first, last, i)
				}
			}
		}
		err := tree.each(func(port uint16, bits, owner int) error {
			return p.add(forwardKey(external, protocol.number(at.is6()), port, bits), owner)
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
func (p *program) overAny(layers [][]int) (over [][]int, all int) {
	for i, layer := range slices.Backward(layers) {
		isAny := func(forward int) bool {
			return slices.Contains(p.doc.Config.Forwards[forward].Protocols, Any)
		}
		if at := slices.IndexFunc(layer, isAny); at >= 0 {
			rest := slices.Delete(slices.Clone(layer), at, at+1)
			return append([][]int{rest}, layers[i+1:]...), layer[at]
		}
	}
	return layers, -1
}

func (p *program) add(key bpf.HairpinForwardKey, owner int) error {
	value, err := p.value(owner)
	p.keys = append(p.keys, key)
	p.values = append(p.values, value)
	return err
}

// reflectModes are what the datapath calls them.
var reflectModes = map[Reflect]bpf.HairpinReflect{
	ReflectAuto:   bpf.HairpinReflectREFLECT_AUTO,
	ReflectRouter: bpf.HairpinReflectREFLECT_ROUTER,
	ReflectPublic: bpf.HairpinReflectREFLECT_PUBLIC,
	ReflectPrefix: bpf.HairpinReflectREFLECT_PREFIX,
	ReflectOff:    bpf.HairpinReflectREFLECT_OFF,
}

func (p *program) value(i int) (bpf.HairpinForward, error) {
	f := &p.doc.Config.Forwards[i]
	mode, ok := reflectModes[p.doc.Config.ReflectOf(*f)]
	if !ok {
		return bpf.HairpinForward{}, fmt.Errorf("forward %s: the datapath knows no reflect mode %s", Quote(f.Name), Quote(string(f.Reflect)))
	}
	value := bpf.HairpinForward{
		Target:    toAddr(f.Target),
		Stamp:     p.doc.Stamps[i].kernel(),
		Reflect:   mode,
		PortShift: f.portShift(),
	}
	if len(f.From) > 0 || f.Intercept {
		value.Restricted = 1
	}
	return value, nil
}
