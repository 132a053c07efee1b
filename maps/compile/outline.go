// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"weak"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Outline is a document whose forwards are still encoded. Decoding all forwards would dominate the run time of most
// commands, and few commands need all of them. Several goroutines may call its methods.
type Outline struct {
	Document        // Config.Forwards and EpochRefs have the additions only
	written  string // encoded: the forwards without additions, then Document.Ended

	mu      sync.Mutex
	decoded weak.Pointer[Document] // the whole document, kept only while a caller uses it
	listed  *Roster                // result of Roster; nil before the first call
}

// ParseOutline parses the text of Document.Marshal.
func ParseOutline(text string) (*Outline, error) {
	o := new(Outline)
	return o, o.unmarshal(text)
}

func (o *Outline) unmarshal(text string) error {
	head, rest, _ := strings.Cut(text, "\n")
	if err := json.Unmarshal([]byte(head), &o.Document); err != nil {
		return err
	}
	if o.Schema != documentSchema {
		return fmt.Errorf("written by another version of hairpin (schema %d, this version reads %d); use the other version, or run \"hairpin detach --all\" (this ends every connection), then start hairpin again", o.Schema, documentSchema)
	}
	o.written = rest
	return nil
}

// Whole returns the document with all forwards decoded. Callers share the result and must not change it.
func (o *Outline) Whole() (*Document, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if doc := o.decoded.Value(); doc != nil {
		return doc, nil
	}
	doc, err := o.decode()
	if err != nil {
		return nil, fmt.Errorf("read running configuration: %w", err)
	}
	o.decoded = weak.Make(doc)
	return doc, nil
}

func (o *Outline) decode() (*Document, error) {
	doc := o.Document
	forwards, epochRefs, rest, err := decodeForwards(o.written)
	if err != nil {
		return nil, err
	}
	doc.Config.Forwards = append(forwards, o.Config.Forwards...)
	doc.EpochRefs = append(epochRefs, o.EpochRefs...)
	if o.Added == 0 { // otherwise these connections ended before the first addition
		doc.Ended, err = decodeEpochRefs(rest)
	}
	return &doc, err
}

// With returns a copy of the outline with f as the last addition. ref is the epoch reference of f.
func (o *Outline) With(f rule.Forward, ref EpochRef) (*Outline, error) {
	more := &Outline{Document: o.Document, written: o.written}
	return more, more.append([]rule.Forward{f}, []EpochRef{ref})
}

// count returns the number of forwards, additions included.
func (o *Outline) count() int { return countForwards(o.written) + len(o.EpochRefs) }

// Each calls visit for every forward until visit returns false. visit must not keep its
// arguments: the next call reuses their memory.
func (o *Outline) Each(visit func(*rule.Forward, EpochRef) bool) error {
	more := true
	_, err := o.eachWritten(func(f *rule.Forward, s EpochRef) bool {
		more = visit(f, s)
		return more
	})
	if err != nil {
		return fmt.Errorf("read running configuration: %w", err)
	}
	for i := 0; more && i < len(o.EpochRefs); i++ {
		more = visit(&o.Config.Forwards[i], o.EpochRefs[i])
	}
	return nil
}

// eachWritten is Each without the additions. If visit never returns false, eachWritten returns the text that follows the
// forwards.
func (o *Outline) eachWritten(visit func(*rule.Forward, EpochRef) bool) (rest string, err error) {
	return eachForward(o.written, visit)
}

// Find returns the forward with this name, which may be disabled; ok is false if there is no such forward. Usually there is none, so Find first
// searches for the encoded name in the text, without decoding.
func (o *Outline) Find(name string) (found rule.Forward, ok bool, err error) {
	for _, f := range o.Config.Disabled {
		if f.Name == name {
			return f, true, nil
		}
	}
	added := slices.ContainsFunc(o.Config.Forwards, func(f rule.Forward) bool { return f.Name == name })
	if !added && !strings.Contains(o.written, encodeString(name)) {
		return rule.Forward{}, false, nil
	}
	err = o.Each(func(f *rule.Forward, _ EpochRef) bool {
		if f.Name == name {
			found, ok = *f, true
		}
		return !ok
	})
	return found, ok, err
}

// Survey has what Tables.Add must know about the running forwards.
type Survey struct {
	Meets   bool           // a running forward can match the same packets or answers as the new forward; the other fields are then incomplete
	Related []rule.Forward // running forwards with the name or a host of the new forward, or that listen at its target
	FreeID  uint32         // the lowest id that no running forward has
}

// Survey compares the running forwards with f, a forward to add.
func (o *Outline) Survey(f *rule.Forward) (Survey, error) {
	var s Survey
	used := make([]bool, o.count()+2)
	used[0] = true // 0 is not a valid id
	err := o.Each(func(g *rule.Forward, ref EpochRef) bool {
		if int(ref.ID) < len(used) {
			used[ref.ID] = true
		}
		if g.Relates(f) {
			s.Related = append(s.Related, g.Clone())
		}
		s.Meets = f.Meets(g) || f.MeetsBehind(g)
		return !s.Meets
	})
	s.FreeID = uint32(slices.Index(used, false))
	return s, err
}

// Roster has the names and epochs of the running forwards, by id. Counting by forward needs nothing else, so callers can
// keep a Roster instead of all forwards.
type Roster struct {
	Names   []string // "": no forward has the id
	epochs  []uint32
	servers map[uint32][]ListedServer // by id, of forwards with several
	IPv6    bool                      // there is an IPv6 forward
}

// Roster returns the names and epochs of the forwards. Callers share the result and must not change it.
func (o *Outline) Roster() (*Roster, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.listed == nil {
		listed, err := o.enlist()
		if err != nil {
			return nil, err
		}
		o.listed = listed
	}
	return o.listed, nil
}

func (o *Outline) enlist() (*Roster, error) {
	r := new(Roster)
	last := uint32(0)
	err := o.Each(func(f *rule.Forward, s EpochRef) bool {
		last, r.IPv6 = max(last, s.ID), r.IPv6 || f.Target.Is6()
		return true
	})
	if err != nil {
		return nil, err
	}
	r.Names, r.epochs = make([]string, last+1), make([]uint32, last+1)
	err = o.Each(func(f *rule.Forward, s EpochRef) bool {
		r.Names[s.ID], r.epochs[s.ID] = f.Name, s.Epoch
		if f.Balanced() {
			if r.servers == nil {
				r.servers = make(map[uint32][]ListedServer)
			}
			for server := range f.EachServer() {
				r.servers[s.ID] = append(r.servers[s.ID], ListedServer{server.Target, f.PortShiftOf(server), f.ServerString(server)})
			}
		}
		return true
	})
	return r, err
}

// Name returns the name of the forward with this id, "" if there is no such forward.
func (r *Roster) Name(id uint32) string {
	if r == nil || id >= uint32(len(r.Names)) {
		return ""
	}
	return r.Names[id]
}

// ListedServer is one of several servers of a forward.
type ListedServer struct {
	Target netip.Addr
	Shift  uint16 // target port minus external port, modulo 65536
	Text   string // as rule.Forward.ServerString
}

// Servers returns the servers of the forward with this id, nil if there is only one.
func (r *Roster) Servers(id uint32) []ListedServer {
	if r == nil {
		return nil
	}
	return r.servers[id]
}

// Has reports whether the id belongs to the same forward in both rosters: name and epoch are equal.
func (r *Roster) Has(id uint32, other *Roster) bool {
	return r == other || r.Name(id) != "" && r.Name(id) == other.Name(id) && r.epochs[id] == other.epochs[id]
}

// Leftover has the parts of a document that the steps after a swap need.
type Leftover struct {
	Document // has all epoch references, but Config.Forwards has only what the settings depend on: intercepts and forwards with affinity
	Targets  map[bpf.HairpinAddr]bool
	Ports    PortSet
}

// Leftover decodes the forwards one by one and does not keep them, because the caller may still hold all new forwards in
// memory.
func (o *Outline) Leftover() (*Leftover, error) {
	left := &Leftover{Document: o.Document, Targets: map[bpf.HairpinAddr]bool{}}
	left.Config.Forwards, left.EpochRefs = nil, nil
	rest, err := o.eachWritten(func(f *rule.Forward, s EpochRef) bool {
		left.EpochRefs = append(left.EpochRefs, s)
		for s := range f.EachServer() {
			left.Targets[layout.ToAddr(s.Target)] = true
		}
		left.Ports.Add(f)
		if f.Intercept || f.Affinity() != 0 {
			left.Config.Forwards = append(left.Config.Forwards, f.Clone())
		}
		return true
	})
	if err == nil {
		left.Ended, err = decodeEpochRefs(rest)
	}
	if err != nil {
		return nil, fmt.Errorf("read running configuration: %w", err)
	}
	return left, nil
}
