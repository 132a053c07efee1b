// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"weak"
)

// outline is a document whose forwards stay as they were written. With many of
// them it takes most of a command's time to make all of them, and few commands
// need more than a look.
type outline struct {
	document                        // Config.Forwards and EpochRefs are those of additions alone
	written  string                 // the forwards before them, and what ended
	decoded  weak.Pointer[document] // all of it, while somebody uses it
	roster   *roster                // nil until somebody asked for it
}

func (o *outline) unmarshal(text string) error {
	head, rest, _ := strings.Cut(text, "\n")
	if err := json.Unmarshal([]byte(head), &o.document); err != nil {
		return err
	}
	if o.Schema != documentSchema {
		return fmt.Errorf("written by another version of hairpin (schema %d, this one knows %d): use that version, or end every connection with \"hairpin detach --all\" and start anew", o.Schema, documentSchema)
	}
	o.written = rest
	return nil
}

// decode makes the document.
func (o *outline) decode() (*document, error) {
	doc := o.document
	forwards, epochRefs, rest, err := decodeForwards(o.written)
	if err != nil {
		return nil, err
	}
	doc.Config.Forwards = append(forwards, o.Config.Forwards...)
	doc.EpochRefs = append(epochRefs, o.EpochRefs...)
	if o.added == 0 { // else they were ended before
		doc.Ended, err = decodeEpochRefs(rest)
	}
	return &doc, err
}

// count is how many forwards there are.
func (o *outline) count() int { return countForwards(o.written) + len(o.EpochRefs) }

// each calls visit for every forward until visit returns false. visit must not keep its
// arguments: the next call reuses their memory.
func (o *outline) each(visit func(*Forward, epochRef) bool) error {
	more := true
	_, err := o.eachWritten(func(f *Forward, s epochRef) bool {
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

// eachWritten is each, but leaves out forwards that were added later. If visit never returns false, eachWritten returns
// the text that follows the forwards.
func (o *outline) eachWritten(visit func(*Forward, epochRef) bool) (rest string, err error) {
	return eachForward(o.written, visit)
}

// find returns the forward of a name. Most often there is none, which is seen
// from the text as it lies there.
func (o *outline) find(name string) (found Forward, ok bool, err error) {
	added := slices.ContainsFunc(o.Config.Forwards, func(f Forward) bool { return f.Name == name })
	if !added && !strings.Contains(o.written, encodeString(name)) {
		return Forward{}, false, nil
	}
	err = o.each(func(f *Forward, _ epochRef) bool {
		if f.Name == name {
			found, ok = *f, true
		}
		return !ok
	})
	return found, ok, err
}

// survey is what Add has to know of the forwards that run.
type survey struct {
	meets   bool      // one of them has packets that are the new one's as well, or answers
	related []Forward // those that have its name or a host of its, or listen at its target
	freeID  uint32    // the lowest that none of them has
}

func (o *outline) survey(f *Forward) (survey, error) {
	var s survey
	used := make([]bool, o.count()+2)
	used[0] = true // is no id
	err := o.each(func(g *Forward, epochRef epochRef) bool {
		if int(epochRef.id) < len(used) {
			used[epochRef.id] = true
		}
		if g.relates(f) {
			s.related = append(s.related, g.clone())
		}
		s.meets = f.meets(g) || f.meetsBehind(g)
		return !s.meets
	})
	s.freeID = uint32(slices.Index(used, false))
	return s, err
}

// relates reports whether g matters to whether f is valid, given that they do
// not meet (see validLast).
func (g *Forward) relates(f *Forward) bool {
	return g.Name == f.Name ||
		g.External.Address.IsValid() && g.External.Address == f.Target ||
		slices.ContainsFunc(g.Hosts, func(host string) bool { return slices.Contains(f.Hosts, host) })
}

// clone shares no list with f.
func (f *Forward) clone() Forward {
	c := *f
	c.Protocols, c.From, c.Hosts = slices.Clone(f.Protocols), slices.Clone(f.From), slices.Clone(f.Hosts)
	c.LAN, c.Except = slices.Clone(f.LAN), slices.Clone(f.Except)
	return c
}

// roster is the names and epoch references of the forwards that run, by id. Those who count for forwards need no more of them.
type roster struct {
	names  []string // "": no forward has the id
	epochs []uint32
	v6     bool // one of them is of IPv6
}

func (o *outline) enlist() (*roster, error) {
	r := new(roster)
	last := uint32(0)
	err := o.each(func(f *Forward, s epochRef) bool {
		last, r.v6 = max(last, s.id), r.v6 || f.Target.Is6()
		return true
	})
	if err != nil {
		return nil, err
	}
	r.names, r.epochs = make([]string, last+1), make([]uint32, last+1)
	err = o.each(func(f *Forward, s epochRef) bool {
		r.names[s.id], r.epochs[s.id] = f.Name, s.epoch
		return true
	})
	return r, err
}

// name is that of the forward with an id, "" if there is none.
func (r *roster) name(id uint32) string {
	if r == nil || id >= uint32(len(r.names)) {
		return ""
	}
	return r.names[id]
}

// has reports whether the forward of a name still has the epoch reference that it has in another roster.
func (r *roster) has(id uint32, other *roster) bool {
	return r == other || r.name(id) != "" && r.name(id) == other.name(id) && r.epochs[id] == other.epochs[id]
}
