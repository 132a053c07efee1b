// SPDX-License-Identifier: Apache-2.0

package toml

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// document is a file as a tree; every node knows its position. The TOML package's own decoder stops at the
// first value that has the wrong type.
type document struct {
	source
	root  *table
	lines []int32 // offsets of the line starts

	// forward, if not nil, gets each [[forward]] when the next [[forward]] begins, and the tree drops it.
	// Thousands of them would need most of the reader's memory.
	forward func(*table)
}

type table struct {
	offset  int
	entries []entry
}

type entry struct {
	key    string
	offset int // of the key
	value  *value
}

// value is a table, an array of items, or the text of a scalar.
type value struct {
	kind   unstable.Kind
	offset int
	end    int    // offset after the last character
	text   string // of a string: without quotes
	items  []*value
	table  *table
}

func (t *table) get(key string) *entry {
	for i := range t.entries {
		if t.entries[i].key == key {
			return &t.entries[i]
		}
	}
	return nil
}

// position returns line and column of an offset. Both count from 1; the column counts characters.
func (d *document) position(offset int) (line, column int) {
	line, exact := slices.BinarySearch(d.lines, int32(offset))
	if !exact {
		line--
	}
	return line + 1, utf8.RuneCount(d.data[d.lines[line]:offset]) + 1
}

// newDocument prepares a file for read.
func newDocument(s source) *document {
	d := &document{source: s, root: &table{}, lines: make([]int32, 1, 1+bytes.Count(s.data, []byte{'\n'}))}
	for i, c := range s.data {
		if c == '\n' {
			d.lines = append(d.lines, int32(i+1))
		}
	}
	return d
}

// read builds the tree. On an error it returns the offset of the error.
func (d *document) read() (offset int, err error) {
	if bytes.HasPrefix(d.data, []byte("\ufeff")) {
		return 0, errors.New("a byte order mark before the first key; save the file as UTF-8 without one")
	}
	if valid := validPrefix(d.data); valid < len(d.data) {
		return valid, errors.New("not UTF-8; save the file as UTF-8")
	}
	// The decoder finds syntax errors and duplicate keys, which the parser below does not find. Malformed
	// numbers and dates it finds only when it decodes into a map. Without a map the reader finds them,
	// because it converts every value.
	into := any(&struct{}{})
	if d.forward == nil {
		into = &map[string]any{}
	}
	if err := toml.Unmarshal(d.data, into); err != nil {
		return d.offsetOf(err), errors.New(strings.TrimPrefix(err.Error(), "toml: "))
	}
	return 0, d.parse()
}

func validPrefix(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return len(data)
}

func (d *document) offsetOf(err error) int {
	var at *toml.DecodeError
	if !errors.As(err, &at) {
		return 0
	}
	line, column := at.Position()
	line = min(max(line, 1), len(d.lines))
	return min(int(d.lines[line-1])+max(column, 1)-1, len(d.data))
}

func (d *document) parse() error {
	var p unstable.Parser
	p.Reset(d.data)
	current := d.root
	for p.NextExpression() {
		node := p.Expression()
		switch node.Kind {
		case unstable.Table:
			current = d.root.descend(keys(node), false)
		case unstable.ArrayTable:
			path := keys(node)
			d.handOver(path)
			current = d.root.descend(path, true)
		case unstable.KeyValue:
			current.set(&p, node)
		}
	}
	return p.Error()
}

// handOver gives the last complete [[forward]] to d.forward. It does not if there are intercepts, so that
// rules keep the order that they have in the tree.
func (d *document) handOver(next []entry) {
	if d.forward == nil || len(next) != 1 || next[0].key != "forward" || d.root.get("intercept") != nil {
		return
	}
	if before := d.root.get("forward"); before != nil && len(before.value.items) > 0 {
		d.forward(before.value.items[0].table)
		before.value.items = before.value.items[:0]
	}
}

func keys(node *unstable.Node) (path []entry) {
	for it := node.Key(); it.Next(); {
		path = append(path, entry{key: string(it.Node().Data), offset: int(it.Node().Raw.Offset)})
	}
	return path
}

// descend follows the keys of a header down from a table, and makes missing tables. For the header of an
// array of tables, it adds a table to the array.
func (t *table) descend(path []entry, array bool) *table {
	for i, key := range path {
		last := i == len(path)-1
		next := t.get(key.key)
		if next == nil {
			made := &value{kind: unstable.Table, offset: key.offset, table: &table{offset: key.offset}}
			if array && last {
				made = &value{kind: unstable.Array, offset: key.offset}
			}
			t.entries = append(t.entries, entry{key: key.key, offset: key.offset, value: made})
			next = &t.entries[len(t.entries)-1]
		}
		v := next.value
		if array && last {
			v.items = append(v.items, &value{kind: unstable.Table, offset: key.offset, table: &table{offset: key.offset}})
		}
		if v.kind == unstable.Array && len(v.items) > 0 {
			v = v.items[len(v.items)-1]
		}
		if v.table == nil {
			// Cannot happen: the decoder refuses such files.
			v.table = &table{offset: key.offset}
		}
		t = v.table
	}
	return t
}

// set stores a key and its value. It returns the offset after the value.
func (t *table) set(p *unstable.Parser, node *unstable.Node) (end int) {
	path := keys(node)
	last := path[len(path)-1]
	t = t.descend(path[:len(path)-1], false)
	for it := node.Key(); it.Next(); {
		end = int(it.Node().Raw.Offset + it.Node().Raw.Length)
	}
	v := newValue(p, node.Value(), end)
	t.entries = append(t.entries, entry{key: last.key, offset: last.offset, value: v})
	return v.end
}

// newValue reads a value that begins after the offset from. It finds the start in the text, because the
// parser gives no offset for arrays.
func newValue(p *unstable.Parser, node *unstable.Node, from int) *value {
	v := &value{kind: node.Kind, offset: skipBetween(p.Data(), from), text: string(node.Data)}
	switch node.Kind {
	case unstable.Array:
		end := v.offset + len("[")
		for it := node.Children(); it.Next(); {
			if it.Node().Kind != unstable.Comment {
				item := newValue(p, it.Node(), end)
				v.items, end = append(v.items, item), item.end
			}
		}
		v.end = skipBetween(p.Data(), end) + len("]")
	case unstable.InlineTable:
		v.kind, v.table = unstable.Table, &table{offset: v.offset}
		end := v.offset + len("{")
		for it := node.Children(); it.Next(); {
			if it.Node().Kind == unstable.KeyValue {
				end = v.table.set(p, it.Node())
			}
		}
		v.end = skipBetween(p.Data(), end) + len("}")
	default:
		v.end = v.offset + int(node.Raw.Length)
	}
	return v
}

// skipBetween skips white space, commas, equal signs and comments.
func skipBetween(data []byte, at int) int {
	comment := false
	for ; at < len(data); at++ {
		switch c := data[at]; {
		case c == '\n':
			comment = false
		case c == '#':
			comment = true
		case !comment && strings.IndexByte(" \t\r,=", c) < 0:
			return at
		}
	}
	return at
}
