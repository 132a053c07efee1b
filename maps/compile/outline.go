// SPDX-License-Identifier: Apache-2.0

package compile

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"weak"

	"hairpin/bpf"
	"hairpin/maps/layout"
	"hairpin/maps/rule"
)

// Outline is a document whose forwards are still encoded. Decoding all of them would dominate the run time of most commands, and
// few commands need more than a look. Its methods may be called from several goroutines.
type Outline struct {
	Document        // Config.Forwards and Refs are those of additions alone
	written  string // the forwards before them, and what ended

	mu      sync.Mutex
	decoded weak.Pointer[Document] // all of it, while somebody uses it
	listed  *Roster                // nil until somebody asked for it
}

// ParseOutline reads what Document.Marshal wrote.
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
		return fmt.Errorf("written by another version of hairpin (schema %d, this one knows %d): use that version, or end every connection with \"hairpin detach --all\" and start anew", o.Schema, documentSchema)
	}
	o.written = rest
	return nil
}

// Whole is the document with all forwards. It is shared: nobody changes it.
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
	if o.Added == 0 { // else they were ended before
		doc.Ended, err = decodeEpochRefs(rest)
	}
	return &doc, err
}

// With is the outline with one more forward. It fails on a forward that the document does not take.
func (o *Outline) With(f rule.Forward, ref EpochRef) (*Outline, error) {
	more := &Outline{Document: o.Document, written: o.written}
	return more, more.append([]rule.Forward{f}, []EpochRef{ref})
}

// count is how many forwards there are.
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

// eachWritten is each, but leaves out forwards that were added later. If visit never returns false, eachWritten returns
// the text that follows the forwards.
func (o *Outline) eachWritten(visit func(*rule.Forward, EpochRef) bool) (rest string, err error) {
	return eachForward(o.written, visit)
}

// Find returns the forward of a name. Most often there is none, which is seen
// from the text as it lies there.
func (o *Outline) Find(name string) (found rule.Forward, ok bool, err error) {
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

// Survey is what Add has to know of the forwards that run.
type Survey struct {
	Meets   bool           // one of them has packets that are the new one's as well, or answers
	Related []rule.Forward // those that have its name or a host of its, or listen at its target
	FreeID  uint32         // the lowest that none of them has
}

// Survey looks at the forwards that run for one that is to be added to them.
func (o *Outline) Survey(f *rule.Forward) (Survey, error) {
	var s Survey
	used := make([]bool, o.count()+2)
	used[0] = true // is no id
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

// Roster is the names and epochs of the forwards that run, by id. Those who count for forwards need no more of them.
type Roster struct {
	Names  []string // "": no forward has the id
	epochs []uint32
	IPv6   bool // one of them is of IPv6
}

// Roster lists the forwards. It is shared: nobody changes it.
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
		return true
	})
	return r, err
}

// Name is that of the forward with an id, "" if there is none.
func (r *Roster) Name(id uint32) string {
	if r == nil || id >= uint32(len(r.Names)) {
		return ""
	}
	return r.Names[id]
}

// Has reports whether the forward of a name still has the epoch reference that it has in another roster.
func (r *Roster) Has(id uint32, other *Roster) bool {
	return r == other || r.Name(id) != "" && r.Name(id) == other.Name(id) && r.epochs[id] == other.epochs[id]
}

// Leftover is what is needed to do the steps that follow a swap.
type Leftover struct {
	Document // with all epoch references, but of the forwards the intercepts alone
	Targets  map[bpf.HairpinAddr]bool
}

// Leftover looks at the forwards one by one: the writer before may still hold as many.
func (o *Outline) Leftover() (*Leftover, error) {
	left := &Leftover{Document: o.Document, Targets: map[bpf.HairpinAddr]bool{}}
	left.Config.Forwards, left.EpochRefs = nil, nil
	rest, err := o.eachWritten(func(f *rule.Forward, s EpochRef) bool {
		left.EpochRefs = append(left.EpochRefs, s)
		left.Targets[layout.ToAddr(f.Target)] = true
		if f.Intercept {
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
