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
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// The states of a connection.
const (
	StateHalfOpen    = "half-open"
	StateEstablished = "established"
	StateClosing     = "closing"
)

// Connection is one connection as its opener sees it.
type Connection struct {
	Protocol    rule.Protocol  `json:"protocol"`
	Path        string         `json:"path"`
	Forward     string         `json:"forward"`
	State       string         `json:"state"`
	Client      netip.AddrPort `json:"client"`
	External    netip.AddrPort `json:"external"` // what the client addressed
	Source      netip.AddrPort `json:"source"`   // what the server sees
	Target      netip.AddrPort `json:"target"`
	AgeSeconds  uint64         `json:"age_seconds"`
	IdleSeconds uint64         `json:"idle_seconds"`
	Packets     uint64         `json:"packets"` // of both directions, like Bytes
	Bytes       uint64         `json:"bytes"`   // IP total length
}

// EachConnection calls visit for the connections that sel picks, each once, in no order. It holds none of them: visit
// must not keep its argument. It needs no lock and may run beside traffic: a connection that opens or ends meanwhile
// may be missing.
func (t *Tables) EachConnection(sel rule.Selector, visit func(*Connection)) error {
	return t.eachLive(sel, func(opener *layout.Entry, c *Connection) error {
		answer, err := LookupEntry(t.objs, opener.Answer())
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("look up the answers of a connection: %w", err)
		}
		c.addAnswers(opener, &answer)
		visit(c)
		return nil
	})
}

// EndConnections ends the connections that sel picks and says how many it
// ended: the datapath drops what still comes for them, and tells both sides.
func (t *Tables) EndConnections(sel rule.Selector) (int, error) {
	ended := 0
	err := t.eachLive(sel, func(opener *layout.Entry, _ *Connection) error {
		n, err := t.end(bpf.HairpinEndRequest{Key: opener.Key, Serial: opener.Serial})
		ended += n
		return err
	})
	if err != nil {
		return ended, err
	}
	return ended, t.tellEnded()
}

// ConnectionsLimit is how many IPv4 connections may be established: TCP and all other protocols together. IPv6 may have a
// quarter of that besides. It is 0 if the maps are closed.
func ConnectionsLimit(objs *bpf.HairpinObjects) uint32 {
	return TCPLimit(objs) + ringLimit(objs, bpf.HairpinPlaceKindPLACE_OTHER)
}

// ConnectionsLimit is how many connections these tables hold; see the function ConnectionsLimit.
func (t *Tables) ConnectionsLimit() uint32 { return ConnectionsLimit(t.objs) }

// TCPLimit is how many IPv4 TCP connections may be established. It is 0 if the maps are closed.
func TCPLimit(objs *bpf.HairpinObjects) uint32 { return ringLimit(objs, bpf.HairpinPlaceKindPLACE_TCP) }

func ringLimit(objs *bpf.HairpinObjects, kind bpf.HairpinPlaceKind) uint32 {
	r, err := ring(objs, uint32(kind)*2)
	if err != nil {
		return 0
	}
	return r.Limit
}

// eachLive derives the connections that sel picks, from their openers' entries alone: what only the answers tell is
// left to visit, which must not keep its arguments. The first error ends the visits.
func (t *Tables) eachLive(sel rule.Selector, visit func(*layout.Entry, *Connection) error) error {
	w, err := t.newWalk()
	if err != nil {
		return err
	}
	return w.named(func(opener *layout.Entry, name string) error {
		c := derive(opener, w.now)
		if c.Forward = name; !picks(&sel, &c) {
			return nil
		}
		return visit(opener, &c)
	})
}

// picks reports whether a selector picks a connection.
func picks(s *rule.Selector, c *Connection) bool {
	switch {
	case s.Forward != "" && s.Forward != c.Forward,
		s.Protocol != 0 && s.Protocol != c.Protocol,
		s.Path != "" && s.Path != c.Path,
		!s.Ports.Every() && !s.Ports.Has(c.External.Port()) && !s.Ports.Has(c.Target.Port()),
		s.Source.IsValid() && !s.Source.Contains(c.Client.Addr()),
		s.Destination.IsValid() && !s.Destination.Contains(c.External.Addr()) && !s.Destination.Contains(c.Target.Addr()):
		return false
	}
	return true
}

// named visits the openers' entries of live connections, with the names of their forwards. The first error ends the visits.
func (w *walk) named(visit func(*layout.Entry, string) error) error {
	var failed error
	err := w.openers(func(opener *layout.Entry) {
		if failed != nil || !w.lives(opener) {
			return
		}
		name, err := w.forward(opener.Forward)
		if err != nil || name == "" { // of a forward that went a moment ago
			failed = err
			return
		}
		failed = visit(opener, name)
	})
	return errors.Join(failed, err)
}

// derive leaves the forward out, and what only the answers tell.
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

// addAnswers adds what the entry of the answers tells.
func (c *Connection) addAnswers(opener, answer *layout.Entry) {
	// The key of an answerer that has just gone may be another connection's by now.
	if answer.Serial != opener.Serial {
		return
	}
	c.IdleSeconds = min(c.IdleSeconds, uint64(answer.Idle().Seconds()))
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
	roster   *compile.Roster // nil until a name is asked for
}

func (t *Tables) newWalk() (*walk, error) {
	w := &walk{tables: t, now: layout.Monotonic(), epochs: t.newEpochReader()}
	if err := t.objs.Settings.Lookup(uint32(0), &w.settings); err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	return w, nil
}

// openers visits the entry of every opener. visit must not keep its argument.
func (w *walk) openers(visit func(*layout.Entry)) error {
	err := eachOpener(w.tables.objs, visit)
	if err = errors.Join(err, w.epochs.err); err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	return nil
}

// lives reports whether a connection is there for anybody: it has not ended, and is not half-open beyond its time.
func (w *walk) lives(opener *layout.Entry) bool {
	if w.epochs.over(opener) {
		return false
	}
	opening := time.Duration(openingTime(&w.settings, rule.ProtocolOf(opener.Key.Protocol)))
	return opener.State != bpf.HairpinConnStateCONN_HALF_OPEN || opener.IdleAt(w.now) < opening
}

// Forward is the name of a forward that runs, "" if there is none of this id. The list of forwards is read again for
// an id that is not in it: the forward may have come since.
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

// openingTime follows conn_expired() of the datapath.
func openingTime(settings *bpf.HairpinSettings, protocol rule.Protocol) uint64 {
	switch protocol {
	case rule.TCP:
		return settings.TcpOpening
	case rule.ICMP:
		return settings.Icmp
	}
	return settings.Udp
}

// epochReader reads each epoch once for a whole walk.
type epochReader struct {
	tables *Tables
	known  []int64 // by id: the epoch and 1 more; -1: there is no such id; 0: not read yet
	err    error
}

func (t *Tables) newEpochReader() epochReader {
	return epochReader{tables: t, known: make([]int64, t.objs.Epochs.MaxEntries())}
}

// over reports whether a connection has ended, or its forward or address has gone.
func (r *epochReader) over(e *layout.Entry) bool {
	if e.State >= bpf.HairpinConnStateCONN_ENDED {
		return true
	}
	forward, address := r.epoch(e.Forward), r.epoch(e.Address)
	return forward < 0 || address < 0 || uint32(forward+address) != e.Epochs
}

// Epoch is below zero if there is no such id.
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

// since is 0 for what happened after now was read.
func since(now, then uint64) uint64 {
	if then > now {
		return 0
	}
	return now - then
}
