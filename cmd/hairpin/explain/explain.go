// SPDX-License-Identifier: Apache-2.0

package explain

import (
	"fmt"
	"net/netip"

	"hairpin/bpf"
	"hairpin/loader"
	"hairpin/maps"
	"hairpin/maps/compile"
	"hairpin/maps/config"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Program is what decides: *loader.Rehearsal.
type Program interface {
	Run(frame []byte, ifindex uint32) (bpf.ExplainExplanation, error)
}

// Options are what an Explainer asks and reads.
type Options struct {
	Program Program
	Tables  *maps.Tables // of the rehearsal
	Running *maps.Tables // whose connections are borrowed; nil: no connections
	Config  config.Config
	Links   []loader.Link
	// NotForwarding returns "" if the kernel forwards packets of this IP version that come in by an interface; otherwise what is off, and the
	// command that turns it on.
	NotForwarding func(link *loader.Link, v6 bool) string
}

// Explainer answers questions. The caller closes what Options hold.
type Explainer struct {
	Options
	roster   *compile.Roster
	borrowed map[bpf.HairpinTuple]bool
}

// New makes an Explainer, and borrows from the running tables what decides about new connections.
func New(o Options) (*Explainer, error) {
	if o.Running != nil {
		if err := o.Tables.Borrow(o.Running); err != nil {
			return nil, err
		}
	}
	roster, err := o.Tables.Roster()
	if err != nil {
		return nil, err
	}
	return &Explainer{Options: o, roster: roster, borrowed: make(map[bpf.HairpinTuple]bool)}, nil
}

// Connection is a connection that existed before the packet.
type Connection struct {
	State   string `json:"state"`
	Path    string `json:"path"`
	Forward string `json:"forward"` // "": of no forward
}

// Leg is what happens to one packet.
type Leg struct {
	Interface   string         `json:"interface"`
	Role        string         `json:"role"` // wan, lan or local; "": hairpin is not attached there
	Source      netip.AddrPort `json:"source"`
	Destination netip.AddrPort `json:"destination"`
	Connection  *Connection    `json:"connection"` // null: none
	External    bool           `json:"external"`   // forwards listen on the destination
	Forward     string         `json:"forward"`    // that takes the packet, or would if nothing refused the packet; "": none
	Intercept   bool           `json:"intercept"`  // Forward is an intercept
	Opened      bool           `json:"opened"`     // the packet would open a connection
	Verdict     string         `json:"verdict"`
	Reason      string         `json:"reason"` // "": none
	Path        string         `json:"path"`   // of the connection that the packet has, or would have; "": none

	// Of a packet that is sent.
	NewSource      netip.AddrPort `json:"new_source"`
	NewDestination netip.AddrPort `json:"new_destination"`
	PortLikely     bool           `json:"port_likely"` // the new source port is drawn, so a real packet may get another one
	Chosen         string         `json:"chosen"`      // how one of several servers was chosen: hash, affinity; "": there is one, or the connection existed
	ToRouter       bool           `json:"to_router"`   // to a process of the router itself
	Output         string         `json:"output"`      // interface
	Gateway        netip.Addr     `json:"gateway"`     // next hop that the kernel resolves; invalid: the destination itself, or resolved
	MAC            string         `json:"mac"`         // of the next hop; "": not known yet
	MTU            uint32         `json:"mtu"`         // of the next hop, in bytes; 0: not known
	Back           string         `json:"back"`        // interface by which the way back to the source leads; "": not asked

	Why   string   `json:"why"`   // the reason in words; for a packet that is sent: how its source was chosen
	Notes []string `json:"notes"` // near misses, and what is not known
}

// Sent reports whether hairpin translates and sends the packet.
func (l *Leg) Sent() bool { return l.Verdict == "send" }

// Report is the answer to a question.
type Report struct {
	Question Question `json:"-"`
	Summary  string   `json:"summary"` // one or two sentences
	Reaches  string   `json:"reaches"` // yes, no or unknown: does the packet reach a server, and its answer the client?
	Packet   Leg      `json:"packet"`
	Answer   *Leg     `json:"answer"` // null: the packet is not sent, or the router itself answers
}

// tries is how often a question is asked again, because the connection that it would open has met another one.
const tries = 8

// Explain answers a question. The error wraps loader.ErrNoInterface if its interface is not there.
func (x *Explainer) Explain(q Question) (Report, error) {
	r := Report{Question: q}
	link, err := x.link(q.Interface)
	if err != nil {
		return r, err
	}
	known, err := x.borrow(q.tuple())
	if err != nil {
		return r, err
	}
	first, reply := opening, answering
	if known != nil && known.State != bpf.HairpinConnStateCONN_HALF_OPEN {
		first, reply = following, following
	}
	result, err := x.ask(q, link, first)
	if err != nil {
		return r, err
	}
	if r.Packet, err = x.leg(q, link, &result, known); err != nil {
		return r, err
	}
	if r.Packet.Sent() && !r.Packet.ToRouter {
		if err := x.answer(&r, &result, reply); err != nil {
			return r, err
		}
	}
	r.summarise()
	return r, nil
}

// ask shows the packet to the program. The connection that the program opens is only in its own tables. A running connection may have
// the ports that it has chosen: then the running connection is borrowed, and the program is asked again.
func (x *Explainer) ask(q Question, link *loader.Link, kind kind) (result bpf.ExplainExplanation, err error) {
	frame, err := q.frame(link.HardwareAddr, kind)
	if err != nil {
		return result, err
	}
	for range tries {
		if result, err = x.Program.Run(frame, uint32(link.Index)); err != nil {
			return result, fmt.Errorf("ask about %s: %w", q, err)
		}
		if result.Opened == 0 || x.Running == nil {
			return result, nil
		}
		answer := tuple(result.Answer)
		if taken, err := x.taken(answer); err != nil || !taken {
			return result, err
		}
		if err := x.Tables.Forget(answer); err != nil {
			return result, err
		}
		if _, err := x.borrow(answer); err != nil {
			return result, err
		}
	}
	return result, nil
}

// taken reports whether a running connection has this key, which was not borrowed.
func (x *Explainer) taken(key bpf.HairpinTuple) (bool, error) {
	if x.borrowed[key] {
		return false, nil
	}
	entry, err := x.Running.Entry(key)
	return entry != nil, err
}

// borrow copies the running connection with this key. It returns the connection's entry, nil if there is no such connection.
func (x *Explainer) borrow(key bpf.HairpinTuple) (*layout.Entry, error) {
	if x.Running == nil {
		return nil, nil
	}
	entry, err := x.Running.Entry(key)
	if entry == nil || err != nil {
		return nil, err
	}
	x.borrowed[key], x.borrowed[entry.Answer()] = true, true
	return entry, x.Tables.BorrowConnection(x.Running, entry)
}

// answer adds to r what happens to the answer to the packet.
func (x *Explainer) answer(r *Report, sent *bpf.ExplainExplanation, kind kind) error {
	q := Question{Interface: r.Packet.Output, Protocol: r.Question.Protocol, Source: r.Packet.NewDestination, Destination: r.Packet.NewSource}
	if q.Protocol == rule.ICMP {
		q.Source = netip.AddrPortFrom(q.Source.Addr(), q.Destination.Port())
	}
	link, err := x.link(q.Interface)
	if err != nil {
		return err
	}
	result, err := x.ask(q, link, kind)
	if err != nil {
		return err
	}
	leg, err := x.leg(q, link, &result, nil)
	if err != nil {
		return err
	}
	r.Answer = &leg
	return nil
}

func (x *Explainer) link(name string) (*loader.Link, error) {
	for i := range x.Links {
		link := &x.Links[i]
		if link.Name != name {
			continue
		}
		if link.PortOf != "" {
			return nil, fmt.Errorf("%s is a port of %s, which receives its packets; ask about %s", name, link.PortOf, link.PortOf)
		}
		return link, nil
	}
	return nil, fmt.Errorf("%w: %s", loader.ErrNoInterface, name)
}

func (x *Explainer) linkName(index uint32) string {
	for i := range x.Links {
		if uint32(x.Links[i].Index) == index {
			return x.Links[i].Name
		}
	}
	return ""
}

// tuple converts the type that belongs to the program of its own.
func tuple(t bpf.ExplainTuple) bpf.HairpinTuple {
	return bpf.HairpinTuple{Src: bpf.HairpinAddr(t.Src), Dst: bpf.HairpinAddr(t.Dst), Sport: t.Sport, Dport: t.Dport, Protocol: t.Protocol}
}
