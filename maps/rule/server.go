// SPDX-License-Identifier: Apache-2.0

package rule

import (
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Server is one of the servers of a forward.
type Server struct {
	Target netip.Addr `json:"target"`
	Port   uint16     `json:"target_port,omitempty"` // for Ports.First of the forward; 0: the target ports equal Ports
	// Weight is the server's share of new connections, in proportion to the weights of the other servers: 1 to MaxWeight. 0: the server
	// gets no new connection, and its connections live on.
	Weight uint16 `json:"weight"`
	// Number is the server's place in the kernel's tables, which it keeps while the forward has it. Package compile sets it.
	Number uint8 `json:"-"`
}

// Limits of the servers of a forward.
const (
	MaxServers    = 256
	MaxWeight     = 256
	DefaultWeight = 1
)

// Limits of Pool.Affinity.
const (
	MinAffinity = time.Second
	MaxAffinity = 720 * time.Hour
)

// Pool is what only a forward with several servers has.
type Pool struct {
	Servers []Server `json:"servers"` // the first one is also Forward.Target
	// Affinity is how long after its last opening a client gets the same server again. 0: each connection may get another server.
	Affinity time.Duration `json:"affinity,omitempty"`
}

// pool returns f.Pool, and makes it first if there is none.
func (f *Forward) pool() *Pool {
	if f.Pool == nil {
		f.Pool = new(Pool)
	}
	return f.Pool
}

func (p *Pool) clone() *Pool {
	if p == nil {
		return nil
	}
	return &Pool{slices.Clone(p.Servers), p.Affinity}
}

// Servers returns the servers of a forward that has several, nil if there is only one.
func (f *Forward) Servers() []Server {
	if f.Pool == nil {
		return nil
	}
	return f.Pool.Servers
}

// Affinity returns Pool.Affinity, 0 if there is only one server.
func (f *Forward) Affinity() time.Duration {
	if f.Pool == nil {
		return 0
	}
	return f.Pool.Affinity
}

// Balanced reports whether the forward chooses one of several servers for each connection.
func (f *Forward) Balanced() bool { return len(f.Servers()) > 0 }

// EachServer returns all servers of a forward, also if there is only one. The compiler inlines EachServer because it is short. So a loop over
// the servers allocates no memory.
func (f *Forward) EachServer() iter.Seq[Server] {
	return func(yield func(Server) bool) { f.eachServer(yield) }
}

func (f *Forward) eachServer(yield func(Server) bool) {
	if !f.Balanced() {
		yield(Server{Target: f.Target, Port: f.TargetPort, Weight: DefaultWeight})
		return
	}
	for _, s := range f.Servers() {
		if !yield(s) {
			return
		}
	}
}

// Serves reports whether an address is that of a server.
func (f *Forward) Serves(addr netip.Addr) bool {
	for s := range f.EachServer() {
		if s.Target == addr {
			return true
		}
	}
	return false
}

// ServedFrom returns the first server in a network; it is invalid if there is none.
func (f *Forward) ServedFrom(network netip.Prefix) netip.Addr {
	for s := range f.EachServer() {
		if network.Contains(s.Target) {
			return s.Target
		}
	}
	return netip.Addr{}
}

// Targets returns the addresses of the servers, each once.
func (f *Forward) Targets() (all []netip.Addr) {
	for s := range f.EachServer() {
		if !slices.Contains(all, s.Target) {
			all = append(all, s.Target)
		}
	}
	return all
}

// SameTargets reports whether two forwards have the same addresses of servers, in any order.
func (f *Forward) SameTargets(g *Forward) bool {
	if !f.Balanced() && !g.Balanced() {
		return f.Target == g.Target
	}
	a, b := f.Targets(), g.Targets()
	return len(a) == len(b) && !slices.ContainsFunc(a, func(addr netip.Addr) bool { return !slices.Contains(b, addr) })
}

// TargetsString formats the addresses of the servers.
func (f *Forward) TargetsString() string { return joined(f.Targets()) }

// TargetPortsOf returns the ports at a server. They are as many as f.Ports.
func (f *Forward) TargetPortsOf(s Server) Ports {
	if f.Ports.Every() || s.Port == 0 {
		return f.Ports
	}
	return Ports{First: s.Port, Last: s.Port + (f.Ports.Last - f.Ports.First)}
}

// PortShiftOf returns target port minus external port, modulo 65536.
func (f *Forward) PortShiftOf(s Server) uint16 { return f.TargetPortsOf(s).First - f.Ports.First }

// ServerString formats a server as on the command line, with its ports, but without its weight. A 1:1 forward has no ports here.
func (f *Forward) ServerString(s Server) string {
	if f.Ports.Every() {
		return unmistakable(s.Target)
	}
	return withPorts(s.Target, f.TargetPortsOf(s).String())
}

// SameServer reports whether two servers are the same, with any weights.
func (f *Forward) SameServer(s Server, g *Forward, t Server) bool {
	return s.Target == t.Target && f.TargetPortsOf(s) == g.TargetPortsOf(t)
}

// Has reports whether a server of another forward is one of f, with any weight.
func (f *Forward) Has(other *Forward, s Server) bool {
	for t := range f.EachServer() {
		if f.SameServer(t, other, s) {
			return true
		}
	}
	return false
}

// overlap reports whether two servers at one address have a port in common.
func (f *Forward) overlap(s, t Server) bool {
	return s.Target == t.Target && (f.Ports.Every() || f.TargetPortsOf(s).Overlaps(f.TargetPortsOf(t)))
}

// SameServers reports whether two forwards have the same servers with the same weights, in the same order, and the same affinity.
func SameServers(f, g *Forward) bool {
	return f.Affinity() == g.Affinity() && slices.EqualFunc(f.Servers(), g.Servers(), func(s, t Server) bool {
		return f.SameServer(s, g, t) && s.Weight == t.Weight
	})
}

// AddServer reads a server, ADDR[:PORT[-PORT]], and adds it to the servers. f.Ports must be set before. The first server is also f.Target.
func (f *Forward) AddServer(text string, weight uint16) error {
	one := *f
	one.TargetPort = 0 // that of the server before
	if err := one.SetTarget(text); err != nil {
		return err
	}
	if len(f.Servers()) == 0 {
		f.Target, f.TargetPort = one.Target, one.TargetPort
	}
	f.pool().Servers = append(f.pool().Servers, Server{Target: one.Target, Port: one.TargetPort, Weight: weight})
	return nil
}

// ServersRead ends the reading of servers: a list of one server that gets connections means the same as this server alone.
func (f *Forward) ServersRead() {
	if len(f.Servers()) == 1 && f.Servers()[0].Weight > 0 {
		f.Pool.Servers = nil
	}
	if f.Pool != nil && len(f.Pool.Servers) == 0 && f.Pool.Affinity == 0 {
		f.Pool = nil
	}
}

// SetAffinity sets Pool.Affinity.
func (f *Forward) SetAffinity(affinity time.Duration) { f.pool().Affinity = affinity }

// ParseWeight reads a weight.
func ParseWeight(text string) (uint16, error) {
	weight, err := strconv.ParseUint(text, 10, 16)
	if err != nil || weight > MaxWeight {
		return 0, weightError(text)
	}
	return uint16(weight), nil
}

func weightError(weight any) error {
	return fmt.Errorf("%v is not a weight; a weight is 1 to %d, or 0 for a server that gets no new connection", weight, MaxWeight)
}

// ParseAffinity reads an affinity.
func ParseAffinity(text string) (time.Duration, error) {
	affinity, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%s is not a duration; write 30m or 24h", Quote(text))
	}
	return affinity, checkAffinityTime(affinity)
}

func checkAffinityTime(affinity time.Duration) error {
	if affinity < MinAffinity || affinity > MaxAffinity {
		return fmt.Errorf("%s is out of range; it is %s to 720h", affinity, MinAffinity)
	}
	if affinity%time.Second != 0 {
		return fmt.Errorf("%s is not a whole number of seconds", affinity)
	}
	return nil
}

func checkAffinity(f *Forward) error {
	switch {
	case f.Affinity() == 0:
		return nil
	case !f.Balanced():
		return errors.New("the forward has one server, so every client gets the same server; remove affinity, or give several servers in to")
	}
	return checkAffinityTime(f.Affinity())
}

// checkServers checks the servers of a forward that has several.
func checkServers(f *Forward) error {
	if len(f.Servers()) > MaxServers {
		return fmt.Errorf("%d servers; at most %d are possible", len(f.Servers()), MaxServers)
	}
	takes := false
	for i, s := range f.Servers() {
		one := *f
		one.Target, one.TargetPort, one.Pool = s.Target, s.Port, nil
		err := checkTarget(&one)
		switch {
		case err != nil:
		case s.Target.Is6() != f.Target.Is6():
			err = fmt.Errorf("%s is an %s address, but the first server %s is %s; make a forward for each family", s.Target, Family(s.Target), f.Target, Family(f.Target))
		case s.Weight > MaxWeight:
			err = weightError(s.Weight)
		default:
			if slices.ContainsFunc(f.Servers()[:i], func(t Server) bool { return f.SameServer(s, f, t) }) {
				err = fmt.Errorf("%s is there twice; give one of them the sum of the weights", f.ServerString(s))
			} else if j := slices.IndexFunc(f.Servers()[:i], func(t Server) bool { return f.overlap(s, t) }); j >= 0 {
				err = fmt.Errorf("%s and %s have ports in common; a port of a server belongs to one of them", f.ServerString(f.Servers()[j]), f.ServerString(s))
			}
		}
		if err != nil {
			return OfItem(i, err)
		}
		takes = takes || s.Weight > 0
	}
	if f.Balanced() && !takes {
		return errors.New("every server has weight 0, so the forward would serve nobody; disable the forward instead, with enabled = false")
	}
	return nil
}

// serversString formats the servers in the grammar of ParseForward, each after "to".
func (f *Forward) serversString() string {
	if !f.Balanced() {
		return "to " + f.TargetString()
	}
	var words []string
	for _, s := range f.Servers() {
		words = append(words, "to", f.ServerString(s))
		if s.Weight != DefaultWeight {
			words = append(words, "weight", strconv.Itoa(int(s.Weight)))
		}
	}
	return strings.Join(words, " ")
}
