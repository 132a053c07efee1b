// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"

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
	var keys []bpf.HairpinTuple
	err := t.eachConnection(sel, func(key bpf.HairpinTuple, _ *Connection) { keys = append(keys, key) })
	if err != nil {
		return 0, err
	}
	ended, err := t.end(keys)
	return ended, errors.Join(err, t.tellEnded())
}

// direction is what a listing needs of one direction of a connection.
type direction struct {
	to             bpf.HairpinTuple
	seen           uint64
	packets, bytes uint64
	forward        stamp
	ack, end       uint32
	created        uint64
	path           bpf.HairpinConnPath
	fin, rst       bool
	half           bool
}

// snapshot is the table at about one moment, without what is over.
type snapshot struct {
	openers, answers map[bpf.HairpinTuple]direction
}

// ConnectionsLimit is how many connections may be established.
func ConnectionsLimit(objs *bpf.HairpinObjects) uint32 {
	return objs.Visits.MaxEntries() / 2 // room for those that went before their visit
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
		name, ok := forwards[opener.forward.id]
		if !ok {
			continue // of a forward that went a moment ago
		}
		answer := snap.answers[reversed(opener.to)]
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

func derive(key bpf.HairpinTuple, opener, answer *direction, now uint64) Connection {
	return Connection{
		Protocol:    protocolOf(key.Protocol),
		Path:        word(names().paths, uint32(opener.path)),
		State:       stateOf(opener, answer),
		Client:      addrPort(key.Src, key.Sport),
		External:    addrPort(key.Dst, key.Dport),
		Source:      addrPort(opener.to.Src, opener.to.Sport),
		Target:      addrPort(opener.to.Dst, opener.to.Dport),
		AgeSeconds:  since(now, opener.created) / second,
		IdleSeconds: since(now, max(opener.seen, answer.seen)) / second,
		Packets:     opener.packets + answer.packets,
		Bytes:       opener.bytes + answer.bytes,
	}
}

// stateOf follows conn_closing() of the datapath.
func stateOf(opener, answer *direction) string {
	finished := func(from, by *direction) bool { return from.fin && by.ack == from.end }
	switch {
	case opener.half:
		return StateHalfOpen
	case opener.rst && answer.rst, finished(opener, answer) && finished(answer, opener):
		return StateClosing
	}
	return StateEstablished
}

func (t *Tables) snapshot() (*snapshot, error) {
	snap := &snapshot{openers: map[bpf.HairpinTuple]direction{}, answers: map[bpf.HairpinTuple]direction{}}
	var settings bpf.HairpinSettings
	if err := t.objs.Settings.Lookup(uint32(0), &settings); err != nil {
		return nil, fmt.Errorf("read settings: %w", err)
	}
	epochs := epochReader{tables: t, known: map[uint32]int64{}}
	now := monotonic()
	err := scan(t.objs.Conns, 1, func(key bpf.HairpinTuple, conns []bpf.HairpinConn) {
		conn := &conns[0]
		// One that has expired only keeps its addresses and ports from others.
		if conn.State == bpf.HairpinConnStateCONN_EXPIRED || epochs.over(conn) {
			return
		}
		if halfOpen(conn) && since(now, conn.LastSeen) >= openingTime(&settings, protocolOf(key.Protocol)) {
			return
		}
		snap.add(key, conn)
	})
	if err = errors.Join(err, epochs.err); err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	return snap, nil
}

func halfOpen(conn *bpf.HairpinConn) bool {
	return conn.State < bpf.HairpinConnStateCONN_ESTABLISHED
}

// openingTime follows conn_opening_time() of the datapath.
func openingTime(settings *bpf.HairpinSettings, protocol Protocol) uint64 {
	switch protocol {
	case TCP:
		return settings.TcpOpening
	case ICMP:
		return settings.Icmp
	}
	return settings.Udp
}

func (s *snapshot) add(key bpf.HairpinTuple, conn *bpf.HairpinConn) {
	into := s.answers
	if conn.Opener != 0 {
		into = s.openers
	}
	into[key] = direction{
		to:      conn.To,
		seen:    conn.LastSeen,
		packets: conn.Packets,
		bytes:   conn.Bytes,
		forward: stamp{conn.Forward.Id, conn.Forward.Epoch},
		ack:     conn.Ack,
		end:     conn.End,
		created: conn.Created,
		path:    bpf.HairpinConnPath(conn.Path),
		fin:     conn.Fin != 0,
		rst:     conn.Rst != 0,
		half:    halfOpen(conn),
	}
}

// epochReader reads each epoch once for a whole listing.
type epochReader struct {
	tables *Tables
	known  map[uint32]int64 // -1: no such id
	err    error
}

// over reports whether a connection's forward or address has gone.
func (r *epochReader) over(conn *bpf.HairpinConn) bool {
	return r.stale(conn.Forward) || r.stale(conn.Address)
}

func (r *epochReader) stale(s bpf.HairpinStamp) bool {
	epoch, ok := r.known[s.Id]
	if !ok {
		now, err := r.tables.epoch(s.Id)
		epoch = int64(now)
		if err != nil {
			epoch = -1
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			r.err = err
		}
		r.known[s.Id] = epoch
	}
	return epoch != int64(s.Epoch)
}

const second = 1_000_000_000

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
