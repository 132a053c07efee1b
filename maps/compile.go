// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"hairpin/bpf"
)

// Change is what an Apply does to what runs. A forward is changed if anything
// about it is, but only a change of what the datapath does ends its connections.
type Change struct {
	Added     []string `json:"added"`
	Removed   []string `json:"removed"`
	Changed   []string `json:"changed"`
	Unchanged int      `json:"unchanged"`
	Settings  []string `json:"settings"` // keys that differ outside the forwards, such as "timeouts.udp"
}

// Empty reports whether nothing would change.
func (c Change) Empty() bool {
	return len(c.Added)+len(c.Removed)+len(c.Changed)+len(c.Settings) == 0
}

func byName(forwards []Forward) map[string]int {
	index := make(map[string]int, len(forwards))
	for i, f := range forwards {
		index[f.Name] = i
	}
	return index
}

func compareSettings(from, to Config) (keys []string) {
	for _, setting := range []struct {
		key      string
		from, to any
	}{
		{"interfaces.wan", from.WAN, to.WAN},
		{"interfaces.lan", from.LAN, to.LAN},
		{"datapath.mode", from.Mode, to.Mode},
		{"datapath.max_connections", from.MaxConnections, to.MaxConnections},
		{"datapath.max_per_source", from.PerSource(), to.PerSource()},
		{"datapath.mss_clamp", from.mssClamp(), to.mssClamp()},
		{"timeouts.tcp_established", from.Timeouts.TCPEstablished, to.Timeouts.TCPEstablished},
		{"timeouts.tcp_transitory", from.Timeouts.TCPTransitory, to.Timeouts.TCPTransitory},
		{"timeouts.tcp_opening", from.Timeouts.Opening(), to.Timeouts.Opening()},
		{"timeouts.tcp_closing", from.Timeouts.Closing(), to.Timeouts.Closing()},
		{"timeouts.udp", from.Timeouts.UDP, to.Timeouts.UDP},
		{"timeouts.icmp", from.Timeouts.ICMP, to.Timeouts.ICMP},
		{"timeouts.port_hold", from.Timeouts.PortHold, to.Timeouts.PortHold},
		{"icmp.refuse", sorted(from.ICMP.Refuse), sorted(to.ICMP.Refuse)},
		{"icmp.rate", from.ICMP.Rate, to.ICMP.Rate},
		{"reflection.default", from.ReflectOf(Forward{}), to.ReflectOf(Forward{})},
		{"reflection.prefixes", sortedStandIns(from.StandIns), sortedStandIns(to.StandIns)},
		{"metrics.listen", from.MetricsListen, to.MetricsListen},
		{"dns.write", dnsWrites(from), dnsWrites(to)},
		{"dns.reload", dnsReloads(from), dnsReloads(to)},
	} {
		// No interfaces, written or not, are the same.
		if fmt.Sprint(setting.from) != fmt.Sprint(setting.to) {
			keys = append(keys, setting.key)
		}
	}
	// What both leave to another setting has not changed of itself.
	return slices.DeleteFunc(keys, func(key string) bool {
		return key == "datapath.max_per_source" && from.MaxPerSource == to.MaxPerSource ||
			key == "timeouts.tcp_opening" && from.Timeouts.TCPOpening == to.Timeouts.TCPOpening ||
			key == "timeouts.tcp_closing" && from.Timeouts.TCPClosing == to.Timeouts.TCPClosing
	})
}

func dnsWrites(c Config) (files []string) {
	for _, file := range c.DNS {
		files = append(files, fmt.Sprintf("%s %q", file.Format, file.Path))
	}
	return sorted(files)
}

func dnsReloads(c Config) (commands []string) {
	for _, file := range c.DNS {
		if file.Reload != nil {
			commands = append(commands, fmt.Sprintf("%s %q", file.Format, file.Reload))
		}
	}
	return sorted(commands)
}

// mssClamp tells no interfaces from none written: these are the PPP devices.
func (c Config) mssClamp() string {
	if c.MSSClamp == nil {
		return "ppp"
	}
	return fmt.Sprintf("%q", sorted(c.MSSClamp))
}

func sorted(list []string) []string { return slices.Sorted(slices.Values(list)) }

// Same reports whether two forwards of a configuration are one written twice.
// Where it was written is not part of what a forward is.
func (c Config) Same(f, g Forward) bool { return f.Name == g.Name && same(c, f, c, g) }

// same compares forwards of one name.
func same(fc Config, f Forward, gc Config, g Forward) bool {
	return sameBehaviour(fc, f, gc, g) && slices.Equal(f.Hosts, g.Hosts)
}

// sameBehaviour reports whether the datapath does the same for both forwards.
func sameBehaviour(fc Config, f Forward, gc Config, g Forward) bool {
	return f.Intercept == g.Intercept && sameSet(f.LAN, g.LAN) && sameSet(f.Except, g.Except) &&
		f.External == g.External && f.Ports == g.Ports && f.Target == g.Target &&
		f.TargetPorts() == g.TargetPorts() && fc.ReflectOf(f) == gc.ReflectOf(g) &&
		sameSet(f.Protocols, g.Protocols) && sameSet(f.From, g.From) &&
		(fc.ReflectOf(f) != ReflectPrefix || sameSet(fc.standInsOf(f), gc.standInsOf(g)))
}

func sameSet[T comparable](a, b []T) bool {
	return !slices.ContainsFunc(a, func(x T) bool { return !slices.Contains(b, x) }) &&
		!slices.ContainsFunc(b, func(x T) bool { return !slices.Contains(a, x) })
}

// program is a configuration as the datapath reads it.
type program struct {
	doc     document
	fresh   []epochRef // of forwards that are new or do something else now
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
// the same as in the running document keeps its epoch reference, so its connections live.
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
	ids := &idPool{next: 1, last: have.forwardIDs, used: map[uint32]bool{}}
	for _, s := range running.epochRefs {
		ids.used[s.id] = true
	}
	p.doc.EpochRefs = make([]epochRef, len(c.Forwards))
	kept := map[uint32]bool{}
	for i := range c.Forwards {
		if was := running.of[i]; was.behaves {
			p.doc.EpochRefs[i] = was.epochRef
			kept[was.epochRef.id] = true
			continue
		}
		id, err := ids.take()
		if err != nil {
			return fmt.Errorf("%d forwards run and %d more are new or changed: %w; apply the change in steps", len(running.epochRefs), len(p.fresh)+1, err)
		}
		epoch, err := have.epoch(id)
		if err != nil {
			return err
		}
		p.doc.EpochRefs[i] = epochRef{id, epoch}
		p.fresh = append(p.fresh, p.doc.EpochRefs[i])
	}
	for _, s := range running.epochRefs {
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
	for _, protocol := range protocols {
		tree := newPortTree()
		for _, layer := range layers {
			for _, i := range layer {
				f := &p.doc.Config.Forwards[i]
				if slices.Contains(f.Protocols, protocol.Protocol) {
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
		p.claim(at, protocol.Protocol, tree, all)
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
		EpochRef:  p.doc.EpochRefs[i].kernel(),
		Reflect:   mode,
		PortShift: f.portShift(),
	}
	if len(f.From) > 0 || f.Intercept {
		value.Restricted = 1
	}
	return value, nil
}
