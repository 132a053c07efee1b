// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/compile"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// The states of a connection.
const (
	StateHalfOpen    = rule.StateHalfOpen
	StateEstablished = rule.StateEstablished
	StateClosing     = rule.StateClosing
	StateEnded       = rule.StateEnded
)

// Connection describes one connection. Client is the side that opened the connection.
type Connection struct {
	Protocol    rule.Protocol  `json:"protocol"`
	Path        string         `json:"path"`
	Forward     string         `json:"forward"` // "": a direct connection that got another port, or a connection that has ended
	State       string         `json:"state"`
	Client      netip.AddrPort `json:"client"`
	External    netip.AddrPort `json:"external"` // destination of the client's packets
	Source      netip.AddrPort `json:"source"`   // the client's address as the server sees it
	Target      netip.AddrPort `json:"target"`
	AgeSeconds  uint64         `json:"age_seconds"`
	IdleSeconds uint64         `json:"idle_seconds"`
	Packets     uint64         `json:"packets"` // both directions
	Bytes       uint64         `json:"bytes"`   // both directions, IP total length
}

// EachConnection calls visit once for each connection that sel picks, in no particular order. visit must not keep its
// argument. EachConnection needs no lock and may run beside traffic. A connection that opens or ends during the call may
// be missing. Connections that have ended are visited only if sel asks for this state.
func (t *Tables) EachConnection(sel rule.Selector, visit func(*Connection)) error {
	table, err := entries.Open(t.objs)
	if err != nil {
		return err
	}
	now := layout.Monotonic() // once: reading the clock for each connection would take a tenth of the time
	return t.each(sel, func(opener *layout.Entry, c *Connection) error {
		answer, err := table.Lookup(opener.Answer())
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("look up the answers of a connection: %w", err)
		}
		c.addAnswers(opener, &answer, now)
		visit(c)
		return nil
	})
}

// EndConnections ends the connections that sel picks and returns their number. The datapath drops later packets of these
// connections. Both sides of a TCP connection get a RST. Connections that have ended already are not counted.
func (t *Tables) EndConnections(sel rule.Selector) (int, error) {
	if sel.State == StateEnded {
		return 0, nil
	}
	ended := 0
	err := t.each(sel, func(opener *layout.Entry, _ *Connection) error {
		n, err := t.end(bpf.HairpinEndRequest{Key: opener.Key, Serial: opener.Serial})
		ended += n
		return err
	})
	if err != nil {
		return ended, err
	}
	return ended, t.resetEnded()
}

// ConnectionsLimit returns how many IPv4 connections may be established, of all protocols together. There may be a
// quarter as many IPv6 connections in addition. ConnectionsLimit returns 0 if the maps are closed.
func ConnectionsLimit(objs *bpf.HairpinObjects) uint32 {
	return TCPLimit(objs) + ringLimit(objs, bpf.HairpinPlaceKindPLACE_OTHER)
}

// ConnectionsLimit returns the result of the function ConnectionsLimit for these tables.
func (t *Tables) ConnectionsLimit() uint32 { return ConnectionsLimit(t.objs) }

// TCPLimit returns how many IPv4 TCP connections may be established. It returns 0 if the maps are closed.
func TCPLimit(objs *bpf.HairpinObjects) uint32 { return ringLimit(objs, bpf.HairpinPlaceKindPLACE_TCP) }

func ringLimit(objs *bpf.HairpinObjects, kind bpf.HairpinPlaceKind) uint32 {
	r, err := ring(objs, uint32(kind)*2)
	if err != nil {
		return 0
	}
	return r.Limit
}

// each calls visit for each connection that sel picks. The Connection is made from the opener's entry only, so its
// packets, bytes and idle time do not include the answers. visit must not keep its arguments. The first error ends the
// walk.
func (t *Tables) each(sel rule.Selector, visit func(*layout.Entry, *Connection) error) error {
	w, err := t.newWalk()
	if err != nil {
		return err
	}
	if sel.State == StateEnded {
		return w.ended(func(opener *layout.Entry) error {
			c := derive(opener, w.now)
			if c.State = StateEnded; !picks(&sel, &c) {
				return nil
			}
			return visit(opener, &c)
		})
	}
	return w.named(func(opener *layout.Entry, name string) error {
		c := derive(opener, w.now)
		if c.Forward = name; !picks(&sel, &c) {
			return nil
		}
		return visit(opener, &c)
	})
}

// Picks reports whether the selector picks the connection.
func Picks(sel *rule.Selector, c *Connection) bool { return picks(sel, c) }

// picks reports whether the selector picks the connection.
func picks(s *rule.Selector, c *Connection) bool {
	for i := range s.Not {
		if picks(&s.Not[i], c) {
			return false
		}
	}
	switch {
	case s.Forward != "" && s.Forward != c.Forward,
		s.Protocol != 0 && s.Protocol != c.Protocol,
		s.Path != "" && s.Path != c.Path,
		s.State != "" && s.State != c.State,
		!s.Ports.Every() && !s.Ports.Has(c.External.Port()) && !s.Ports.Has(c.Target.Port()),
		s.Source.IsValid() && !s.Source.Contains(c.Client.Addr()),
		s.Destination.IsValid() && !s.Destination.Contains(c.External.Addr()) && !s.Destination.Contains(c.Target.Addr()):
		return false
	}
	return true
}

// named calls visit for the opener's entry of each live connection, with the name of the forward. visit must not keep its
// argument. The first error ends the walk.
func (w *walk) named(visit func(*layout.Entry, string) error) error {
	var failed error
	err := w.openers(func(opener *layout.Entry) {
		if failed != nil || !w.lives(opener) {
			return
		}
		if opener.Forward == 0 { // a direct connection that got another port
			failed = visit(opener, "")
			return
		}
		name, err := w.forward(opener.Forward)
		if err != nil || name == "" { // the forward was removed a moment ago
			failed = err
			return
		}
		failed = visit(opener, name)
	})
	return errors.Join(failed, err)
}

// ended calls visit for the opener's entry of each connection that has ended. There is no name of its forward: the forward may be gone,
// and another one may have its id. visit must not keep its argument. The first error ends the walk.
func (w *walk) ended(visit func(*layout.Entry) error) error {
	var failed error
	err := w.openers(func(opener *layout.Entry) {
		if failed == nil && w.epochs.over(opener) {
			failed = visit(opener)
		}
	})
	return errors.Join(failed, err)
}

// derive makes a Connection from the opener's entry. It does not set Forward, and does not include the answers.
func derive(opener *layout.Entry, now uint64) Connection {
	return Connection{
		Protocol:    rule.ProtocolOf(opener.Key.Protocol),
		Path:        word(names().paths, uint32(opener.Path)),
		State:       stateOf(opener),
		Client:      layout.AddrPort(opener.Key.Src, opener.Key.Sport),
		External:    layout.AddrPort(opener.Key.Dst, opener.Key.Dport),
		Source:      layout.AddrPort(opener.To.Src, opener.To.Sport),
		Target:      layout.AddrPort(opener.To.Dst, opener.To.Dport),
		AgeSeconds:  since(now/uint64(time.Second), uint64(opener.Created)),
		IdleSeconds: uint64(opener.IdleAt(now).Seconds()),
		Packets:     uint64(opener.Packets),
		Bytes:       opener.Bytes,
	}
}

// addAnswers adds the packets, bytes and idle time of the answers. now is CLOCK_MONOTONIC in nanoseconds.
func (c *Connection) addAnswers(opener, answer *layout.Entry, now uint64) {
	// If the connection ended a moment ago, another connection may have the key of the answer's entry.
	if answer.Serial != opener.Serial {
		return
	}
	c.IdleSeconds = min(c.IdleSeconds, uint64(answer.IdleAt(now).Seconds()))
	c.Packets += uint64(answer.Packets)
	c.Bytes += answer.Bytes
}

func stateOf(opener *layout.Entry) string {
	switch opener.State {
	case bpf.HairpinConnStateCONN_HALF_OPEN:
		return StateHalfOpen
	case bpf.HairpinConnStateCONN_CLOSING:
		return StateClosing
	}
	return StateEstablished
}

// walk is one pass over the tables of connections.
type walk struct {
	tables   *Tables
	settings bpf.HairpinSettings
	now      uint64
	epochs   epochReader
	roster   *compile.Roster // nil before the first call of forward
}

func (t *Tables) newWalk() (*walk, error) {
	w := &walk{tables: t, now: layout.Monotonic(), epochs: t.newEpochReader()}
	if err := t.objs.Settings.Lookup(uint32(0), &w.settings); err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	return w, nil
}

// openers calls visit for the opener's entry of every connection. visit must not keep its argument.
func (w *walk) openers(visit func(*layout.Entry)) error {
	err := entries.EachOpener(w.tables.objs, visit)
	if err = errors.Join(err, w.epochs.err); err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	return nil
}

// lives reports whether a connection is live: it is not over, and it is not a half-open connection past its timeout.
func (w *walk) lives(opener *layout.Entry) bool {
	if w.epochs.over(opener) {
		return false
	}
	opening := time.Duration(openingTime(&w.settings, rule.ProtocolOf(opener.Key.Protocol)))
	return opener.State != bpf.HairpinConnStateCONN_HALF_OPEN || opener.IdleAt(w.now) < opening
}

// forward returns the name of the running forward with this id, "" if there is no such forward. If the id is not in the
// walk's roster, forward reads the roster again, because the forward may be new.
func (w *walk) forward(id uint32) (string, error) {
	if name := w.roster.Name(id); name != "" {
		return name, nil
	}
	var err error
	if w.roster, err = w.tables.Roster(); err != nil {
		return "", err
	}
	return w.roster.Name(id), nil
}

// openingTime returns the timeout of a half-open connection, as conn_expired() of the datapath has it.
func openingTime(settings *bpf.HairpinSettings, protocol rule.Protocol) uint64 {
	switch protocol {
	case rule.TCP:
		return settings.TcpOpening
	case rule.ICMP:
		return settings.Icmp
	}
	return settings.Udp
}

// epochReader reads each epoch only once in a walk.
type epochReader struct {
	tables *Tables
	known  []int64 // index: id; value: the epoch plus 1; -1: there is no such id; 0: not read yet
	err    error
}

func (t *Tables) newEpochReader() epochReader {
	return epochReader{tables: t, known: make([]int64, t.objs.Epochs.MaxEntries())}
}

// over reports whether a connection has ended, or whether its forward or external address was removed.
func (r *epochReader) over(e *layout.Entry) bool {
	if e.State >= bpf.HairpinConnStateCONN_ENDED {
		return true
	}
	forward, address := r.epoch(e.Forward), r.epoch(e.Address)
	return forward < 0 || address < 0 || uint32(forward+address) != e.Epochs
}

// epoch returns the epoch of an id, -1 if there is no such id.
func (r *epochReader) epoch(id uint32) int64 {
	if id >= uint32(len(r.known)) {
		return -1
	}
	if r.known[id] == 0 {
		epoch, err := r.tables.epoch(id)
		r.known[id] = int64(epoch) + 1
		if err != nil {
			r.known[id] = -1
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			r.err = err
		}
	}
	return max(r.known[id]-1, -1)
}

// since returns now - then, or 0 if then is after now: the packet came after the clock was read.
func since(now, then uint64) uint64 {
	if then > now {
		return 0
	}
	return now - then
}
