// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/json"
	"fmt"
	"hairpin/bpf"
	"slices"
	"strings"
	"sync"
	"weak"
)

// outline is a document whose forwards are still encoded. Decoding all of them would dominate the run time of most commands, and
// few commands need more than a look. Its methods may be called from several goroutines.
type outline struct {
	document        // Config.Forwards and Refs are those of additions alone
	written  string // the forwards before them, and what ended

	mu      sync.Mutex
	decoded weak.Pointer[document] // all of it, while somebody uses it
	listed  *roster                // nil until somebody asked for it
}

// parseOutline reads what document.marshal wrote.
func parseOutline(text string) (*outline, error) {
	o := new(outline)
	return o, o.unmarshal(text)
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

// whole is the document with all forwards. It is shared: nobody changes it.
func (o *outline) whole() (*document, error) {
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

func (o *outline) decode() (*document, error) {
	doc := o.document
	forwards, stamps, rest, err := decodeForwards(o.written)
	if err != nil {
		return nil, err
	}
	doc.Config.Forwards = append(forwards, o.Config.Forwards...)
	doc.Stamps = append(stamps, o.Stamps...)
	if o.added == 0 { // else they were ended before
		doc.Ended, err = decodeStamps(rest)
	}
	return &doc, err
}

// with is the outline with one more forward. It fails on a forward that the document does not take.
func (o *outline) with(f Forward, ref stamp) (*outline, error) {
	more := &outline{document: o.document, written: o.written}
	return more, more.append([]Forward{f}, []stamp{ref})
}

// count is how many forwards there are.
func (o *outline) count() int { return countForwards(o.written) + len(o.Stamps) }

// each calls visit for every forward until visit returns false. visit must not keep its
// arguments: the next call reuses their memory.
func (o *outline) each(visit func(*Forward, stamp) bool) error {
	more := true
	_, err := o.eachWritten(func(f *Forward, s stamp) bool {
		more = visit(f, s)
		return more
	})
	if err != nil {
		return fmt.Errorf("read running configuration: %w", err)
	}
	for i := 0; more && i < len(o.Stamps); i++ {
		more = visit(&o.Config.Forwards[i], o.Stamps[i])
	}
	return nil
}

// eachWritten is each, but leaves out forwards that were added later. If visit never returns false, eachWritten returns
// the text that follows the forwards.
func (o *outline) eachWritten(visit func(*Forward, stamp) bool) (rest string, err error) {
	return eachForward(o.written, visit)
}

// find returns the forward of a name. Most often there is none, which is seen
// from the text as it lies there.
func (o *outline) find(name string) (found Forward, ok bool, err error) {
	added := slices.ContainsFunc(o.Config.Forwards, func(f Forward) bool { return f.Name == name })
	if !added && !strings.Contains(o.written, encodeString(name)) {
		return Forward{}, false, nil
	}
	err = o.each(func(f *Forward, _ stamp) bool {
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
	err := o.each(func(g *Forward, stamp stamp) bool {
		if int(stamp.id) < len(used) {
			used[stamp.id] = true
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

// roster is the names and stamps of the forwards that run, by id. Those who count for forwards need no more of them.
type roster struct {
	names  []string // "": no forward has the id
	epochs []uint32
	v6     bool // one of them is of IPv6
}

// roster lists the forwards. It is shared: nobody changes it.
func (o *outline) roster() (*roster, error) {
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

func (o *outline) enlist() (*roster, error) {
	r := new(roster)
	last := uint32(0)
	err := o.each(func(f *Forward, s stamp) bool {
		last, r.v6 = max(last, s.id), r.v6 || f.Target.Is6()
		return true
	})
	if err != nil {
		return nil, err
	}
	r.names, r.epochs = make([]string, last+1), make([]uint32, last+1)
	err = o.each(func(f *Forward, s stamp) bool {
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

// has reports whether the forward of a name still has the stamp that it has in another roster.
func (r *roster) has(id uint32, other *roster) bool {
	return r == other || r.name(id) != "" && r.name(id) == other.name(id) && r.epochs[id] == other.epochs[id]
}

// leftover is what finish has to know of a document.
type leftover struct {
	document // with all stamps, but of the forwards the intercepts alone
	targets  map[bpf.HairpinAddr]bool
}

// leftover looks at the forwards one by one: the writer before may still hold as many.
func (o *outline) leftover() (*leftover, error) {
	left := &leftover{document: o.document, targets: map[bpf.HairpinAddr]bool{}}
	left.Config.Forwards, left.Stamps = nil, nil
	rest, err := o.eachWritten(func(f *Forward, s stamp) bool {
		left.Stamps = append(left.Stamps, s)
		left.targets[toAddr(f.Target)] = true
		if f.Intercept {
			left.Config.Forwards = append(left.Config.Forwards, f.clone())
		}
		return true
	})
	if err == nil {
		left.Ended, err = decodeStamps(rest)
	}
	if err != nil {
		return nil, fmt.Errorf("read running configuration: %w", err)
	}
	return left, nil
}
