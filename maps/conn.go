// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// The states of a connection.
const (
	StateHalfOpen    = "half-open"
	StateEstablished = "established"
	StateClosing     = "closing"
)

// Connection is one connection as its opener sees it.
type Connection struct {
	Protocol    Protocol       `json:"protocol"`
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

// Count says how many connections there are.
type Count struct {
	Total       int            `json:"total"`
	HalfOpen    int            `json:"half_open"`
	Established int            `json:"established"`
	Closing     int            `json:"closing"`
	Forwards    map[string]int `json:"forwards"` // by name, without those that have none
}

// Connections lists the connections that sel picks, each once, sorted by
// protocol, external address, client. It needs no lock and may run beside
// traffic: a connection that opens or ends meanwhile may be missing.
func (t *Tables) Connections(sel Selector) ([]Connection, error) {
	var list []Connection
	err := t.eachConnection(sel, func(_ bpf.HairpinTuple, c *Connection) { list = append(list, *c) })
	slices.SortFunc(list, func(a, b Connection) int {
		return cmp.Or(cmp.Compare(a.Protocol, b.Protocol), a.External.Compare(b.External), a.Client.Compare(b.Client))
	})
	return list, err
}

// CountConnections counts the connections that sel picks.
func (t *Tables) CountConnections(sel Selector) (Count, error) {
	snap, err := t.snapshot()
	if err != nil {
		return Count{}, err
	}
	return t.count(snap, sel)
}

func (t *Tables) count(snap *snapshot, sel Selector) (Count, error) {
	count := Count{Forwards: map[string]int{}}
	err := t.eachOf(snap, sel, func(_ bpf.HairpinTuple, c *Connection) {
		count.Total++
		count.Forwards[c.Forward]++
		switch c.State {
		case StateHalfOpen:
			count.HalfOpen++
		case StateClosing:
			count.Closing++
		default:
			count.Established++
		}
	})
	return count, err
}

// EndConnections ends the connections that sel picks and says how many it
// ended: the datapath drops what still comes for them, and tells both sides.
func (t *Tables) EndConnections(sel Selector) (int, error) {
	snap, err := t.snapshot()
	if err != nil {
		return 0, err
	}
	var ends []bpf.HairpinEndRequest
	err = t.eachOf(snap, sel, func(key bpf.HairpinTuple, _ *Connection) {
		ends = append(ends, bpf.HairpinEndRequest{Key: key, Serial: snap.openers[key].Serial})
	})
	if err != nil {
		return 0, err
	}
	ended, err := t.end(ends)
	return ended, errors.Join(err, t.tellEnded())
}

// snapshot is the table at about one moment, without what is over.
type snapshot struct {
	openers, answers map[bpf.HairpinTuple]Entry
}

// ConnectionsLimit is how many IPv4 connections may be established: TCP and all other protocols together. IPv6 may have a
// quarter of that besides. It is 0 if the maps are closed.
func ConnectionsLimit(objs *bpf.HairpinObjects) uint32 {
	return TCPLimit(objs) + ringLimit(objs, bpf.HairpinPlaceKindPLACE_OTHER)
}

// TCPLimit is how many IPv4 TCP connections may be established. It is 0 if the maps are closed.
func TCPLimit(objs *bpf.HairpinObjects) uint32 { return ringLimit(objs, bpf.HairpinPlaceKindPLACE_TCP) }

func ringLimit(objs *bpf.HairpinObjects, kind bpf.HairpinPlaceKind) uint32 {
	r, err := ring(objs, uint32(kind)*2)
	if err != nil {
		return 0
	}
	return r.Limit
}

// eachConnection derives the connections that sel picks and calls visit with
// the opener's key; what visit gets is its own only until it returns.
func (t *Tables) eachConnection(sel Selector, visit func(bpf.HairpinTuple, *Connection)) error {
	snap, err := t.snapshot()
	if err != nil {
		return err
	}
	return t.eachOf(snap, sel, visit)
}

func (t *Tables) eachOf(snap *snapshot, sel Selector, visit func(bpf.HairpinTuple, *Connection)) error {
	// Read after the connections, so that their forwards are known.
	doc, _, err := t.running()
	if err != nil && !errors.Is(err, ErrEmpty) {
		return err
	}
	forwards := doc.names()
	now := monotonic()
	for key, opener := range snap.openers {
		name, ok := forwards[opener.Forward]
		if !ok {
			continue // of a forward that went a moment ago
		}
		answer := snap.answers[opener.Answer()]
		c := derive(key, &opener, &answer, now)
		c.Forward = name
		if sel.matches(&c) {
			visit(key, &c)
		}
	}
	return nil
}

// names are the forwards' names by id.
func (d *document) names() map[uint32]string {
	byID := make(map[uint32]string, len(d.Stamps))
	for i, s := range d.Stamps {
		byID[s.id] = d.Config.Forwards[i].Name
	}
	return byID
}

func derive(key bpf.HairpinTuple, opener, answer *Entry, now uint64) Connection {
	idle, packets, bytes := opener.idleAt(now), uint64(opener.Packets), opener.Bytes
	// The key of an answerer that has just gone may be another connection's by now.
	if answer.Serial == opener.Serial {
		idle = min(idle, answer.idleAt(now))
		packets, bytes = packets+uint64(answer.Packets), bytes+answer.Bytes
	}
	return Connection{
		Protocol:    protocolOf(key.Protocol),
		Path:        word(names().paths, uint32(opener.Path)),
		State:       stateOf(opener),
		Client:      addrPort(key.Src, key.Sport),
		External:    addrPort(key.Dst, key.Dport),
		Source:      addrPort(opener.To.Src, opener.To.Sport),
		Target:      addrPort(opener.To.Dst, opener.To.Dport),
		AgeSeconds:  since(now/second, uint64(opener.Created)),
		IdleSeconds: uint64(idle.Seconds()),
		Packets:     packets,
		Bytes:       bytes,
	}
}

func stateOf(opener *Entry) string {
	switch opener.State {
	case bpf.HairpinConnStateCONN_HALF_OPEN:
		return StateHalfOpen
	case bpf.HairpinConnStateCONN_CLOSING:
		return StateClosing
	}
	return StateEstablished
}

func (t *Tables) snapshot() (*snapshot, error) {
	snap := &snapshot{openers: map[bpf.HairpinTuple]Entry{}, answers: map[bpf.HairpinTuple]Entry{}}
	var settings bpf.HairpinSettings
	if err := t.objs.Settings.Lookup(uint32(0), &settings); err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	epochs := epochReader{tables: t, known: map[uint32]int64{}}
	now := monotonic()
	err := EachEntry(t.objs, func(e Entry) {
		if epochs.over(&e) {
			return
		}
		if !e.Opener() {
			snap.answers[e.Key] = e
			return
		}
		opening := time.Duration(openingTime(&settings, protocolOf(e.Key.Protocol)))
		if e.State == bpf.HairpinConnStateCONN_HALF_OPEN && e.idleAt(now) >= opening {
			return
		}
		snap.openers[e.Key] = e
	})
	if err = errors.Join(err, epochs.err); err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	return snap, nil
}

// openingTime follows conn_expired() of the datapath.
func openingTime(settings *bpf.HairpinSettings, protocol Protocol) uint64 {
	switch protocol {
	case TCP:
		return settings.TcpOpening
	case ICMP:
		return settings.Icmp
	}
	return settings.Udp
}

// epochReader reads each epoch once for a whole listing.
type epochReader struct {
	tables *Tables
	known  map[uint32]int64 // -1: no such id
	err    error
}

// over reports whether a connection has ended, or its forward or address has gone.
func (r *epochReader) over(e *Entry) bool {
	if e.State >= bpf.HairpinConnStateCONN_ENDED {
		return true
	}
	forward, address := r.epoch(e.Forward), r.epoch(e.Address)
	return forward < 0 || address < 0 || uint32(forward+address) != e.Epochs
}

func (r *epochReader) epoch(id uint32) int64 {
	epoch, ok := r.known[id]
	if !ok {
		now, err := r.tables.epoch(id)
		epoch = int64(now)
		if err != nil {
			epoch = -1
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			r.err = err
		}
		r.known[id] = epoch
	}
	return epoch
}

const (
	second      = 1_000_000_000
	millisecond = 1_000_000
)

// monotonic is the clock of the datapath, in nanoseconds.
func monotonic() uint64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		// It takes no argument that could be wrong.
		panic(err)
	}
	return uint64(now.Nano())
}

// since is 0 for what happened after now was read.
func since(now, then uint64) uint64 {
	if then > now {
		return 0
	}
	return now - then
}
