// SPDX-License-Identifier: Apache-2.0

// Package compile computes the entries of the kernel's maps from a new configuration and the running configuration. It
// also encodes and decodes the document from which the next writer learns the running configuration. It makes no system
// calls: package maps writes the entries.
package compile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"hairpin/bpf"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Program has the map entries of a configuration. Keys and values are in lists of equal length.
type Program struct {
	Doc         Document
	Fresh       []EpochRef // epoch references of new forwards and of forwards with changed behaviour
	ForwardKeys []bpf.HairpinForwardKey
	Forwards    []bpf.HairpinForward
	AllowKeys   []bpf.HairpinAllowKey
	Allowed     []uint8 // for each of AllowKeys: 1 allowed, 0 not allowed

	StandInKeys []bpf.HairpinPrefixKey
	StandIns    []bpf.HairpinStandIn
	claims      map[service][]claim
	OriginKeys  []bpf.HairpinOriginKey
	Origins     []bpf.HairpinOrigin

	Servers  []bpf.HairpinServer
	Lookups  []bpf.HairpinLookupPage
	balanced map[int]bpf.HairpinForward // by the index of the forward: where its servers and its lookup table are
}

// Inventory has what Compile must know about the kernel's maps.
type Inventory struct {
	Epoch        func(id uint32) (uint32, error) // reads the epoch of an id
	ForwardIDs   uint32                          // highest id for a forward; the lowest is 1
	LastExternal uint32                          // highest external id in maps externals, absences and interfaces
}

// Compile computes the map entries of a valid configuration. A forward with the same behaviour as in the running document
// keeps its epoch reference, so its connections live on. Every other forward gets an id that no running forward has.
// A changed forward cannot keep its id, because its epoch would change in another write than the swap. A writer that is
// killed between the two writes would leave a live forward whose new connections are over at once.
func Compile(c config.Config, running *Running, have Inventory) (*Program, error) {
	p := &Program{Doc: Document{Schema: documentSchema, Config: c, Intercepts: c.HasIntercepts()}}
	p.Doc.Draining = slices.ContainsFunc(c.Forwards, func(f rule.Forward) bool { return f.Drains() })
	// Most forwards need one or two entries. Growing the slices from nil would leave much garbage.
	p.ForwardKeys, p.Forwards = make([]bpf.HairpinForwardKey, 0, len(c.Forwards)), make([]bpf.HairpinForward, 0, len(c.Forwards))
	if err := p.assignEpochRefs(running, have); err != nil {
		return nil, err
	}
	if err := p.number(running); err != nil {
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

// assignExternals assigns external ids. A fixed address has one. A WAN interface has one for each family, so that an
// address never matches forwards of the other family. A LAN interface has one for each family with an intercept there.
// Places that are running keep their ids. A new id is higher than every id in maps externals, absences and
// interfaces, because these maps do not swap together with the forwards and may still have old ids.
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

// listening groups the forwards by the places where they listen. In each group, larger port ranges come first. A forward that
// drains listens nowhere: it opens nothing, but its epoch reference keeps its connections alive.
func (p *Program) listening() map[rule.Place][]int {
	forwards := p.Doc.Config.Forwards
	order := make([]int, len(forwards))
	for i := range order {
		order[i] = i
	}
	order = slices.DeleteFunc(order, func(i int) bool { return forwards[i].Drains() })
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

// paint adds the entries of one place. It paints the forwards of all layers into a port tree. Later layers are more
// specific and overwrite earlier layers, so each port belongs to its most specific forward.
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

// overAny returns the index of the forward with protocol Any in the last layer that has such a forward, and removes it
// from that layer. It drops all earlier layers, because this forward hides them. all is -1 if no layer has such a
// forward.
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

// reflectModes maps each mode to enum reflect of the datapath.
var reflectModes = map[rule.Reflect]bpf.HairpinReflect{
	rule.ReflectAuto:   bpf.HairpinReflectREFLECT_AUTO,
	rule.ReflectRouter: bpf.HairpinReflectREFLECT_ROUTER,
	rule.ReflectPublic: bpf.HairpinReflectREFLECT_PUBLIC,
	rule.ReflectPrefix: bpf.HairpinReflectREFLECT_PREFIX,
	rule.ReflectOff:    bpf.HairpinReflectREFLECT_OFF,
}

func rateEntry(r rule.Rate) bpf.HairpinRate {
	return bpf.HairpinRate{Count: r.Count, Seconds: uint32(r.Per / time.Second)}
}

func (p *Program) value(i int) (bpf.HairpinForward, error) {
	f := &p.Doc.Config.Forwards[i]
	mode, ok := reflectModes[p.Doc.Config.ReflectOf(*f)]
	if !ok {
		return bpf.HairpinForward{}, fmt.Errorf("forward %s: unknown reflect mode %s", rule.Quote(f.Name), rule.Quote(string(f.Reflect)))
	}
	value := bpf.HairpinForward{
		Target:    layout.ToAddr(f.Target),
		EpochRef:  p.Doc.EpochRefs[i].kernel(),
		Reflect:   mode,
		PortShift: f.PortShift(),

		Rate:       rateEntry(f.Rate),
		SourceRate: rateEntry(f.RatePerSource),
	}
	if len(f.From) > 0 || f.Intercept {
		value.Restricted = 1
	}
	if f.HidesClients() {
		value.HidesClients = 1
	}
	if f.Ports.Len() > 1 {
		value.Wide = 1
	}
	if f.LANOnly {
		value.LanOnly = 1
	}
	p.balance(i, &value)
	return value, nil
}
