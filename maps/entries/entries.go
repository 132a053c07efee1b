// SPDX-License-Identifier: Apache-2.0

// Package entries reads the tables of connection entries, and writes them for tests. The tables are arrays of buckets that the
// datapath searches by a hash of the key (bpf/table.h).
package entries

import (
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/layout"
)

// Each calls visit for every entry of both families. It needs no lock and may run beside traffic. An entry that is added or deleted
// during the call may be missing, or be seen with the key of another one; no entry is visited twice. visit must not keep its argument.
func Each(objs *bpf.HairpinObjects, visit func(*layout.Entry)) error {
	return each(objs, func(*bpf.HairpinConn) bool { return true }, visit)
}

// EachOpener is Each for the openers' entries only.
func EachOpener(objs *bpf.HairpinObjects, visit func(*layout.Entry)) error {
	return each(objs, func(c *bpf.HairpinConn) bool {
		return bpf.HairpinConnFlag(c.Identity)&bpf.HairpinConnFlagCONN_OPENER != 0
	}, visit)
}

// each calls visit for every entry for which wanted is true; only these are unpacked.
func each(objs *bpf.HairpinObjects, wanted func(*bpf.HairpinConn) bool, visit func(*layout.Entry)) error {
	var e layout.Entry
	valid := func(c *bpf.HairpinConn) bool {
		return c.Identity != 0 && layout.State(c) != bpf.HairpinConnStateCONN_GONE && wanted(c)
	}
	err := scan(objs.Conns4, func(b *bpf.HairpinBucket4) {
		for i := range b.Entry {
			if c := &b.Entry[i]; valid(&c.Conn) {
				e = layout.FromValue4(b.Key[i], c)
				visit(&e)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("list IPv4 connections: %w", err)
	}
	err = scan(objs.Conns6, func(b *bpf.HairpinBucket6) {
		for i := range b.Entry {
			if c := &b.Entry[i]; valid(&c.Conn) {
				e = layout.FromValue6(b.Key[i], c)
				visit(&e)
			}
		}
	})
	if err != nil {
		return fmt.Errorf("list IPv6 connections: %w", err)
	}
	return nil
}

// batch is the number of buckets that one system call reads.
const batch = 512

// scan calls visit for each bucket of an array, some hundred buckets with one system call.
func scan[Bucket any](m *ebpf.Map, visit func(*Bucket)) error {
	keys, buckets := make([]uint32, batch), make([]Bucket, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := m.BatchLookup(&cursor, keys, buckets, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return fmt.Errorf("read buckets: %w", err)
		}
		for i := range n {
			visit(&buckets[i])
		}
		if err != nil {
			return nil
		}
	}
}

// Table finds entries by their keys.
type Table struct {
	objs *bpf.HairpinObjects
	bpf.HairpinTable
}

// Open returns the Table of objs, which the caller closes.
func Open(objs *bpf.HairpinObjects) (*Table, error) {
	var table bpf.HairpinTable
	if err := objs.Tables.Lookup(uint32(0), &table); err != nil {
		return nil, fmt.Errorf("read how entries are found: %w", err)
	}
	return &Table{objs, table}, nil
}

// position is a slot in the walk of a key.
type position struct {
	bucket, slot uint32
	before       []uint32 // the buckets of the walk before it
}

// walk yields the numbers of the buckets where the entry of a key may be, in the order in which the datapath searches them: it is
// walk_begin and walk_next of bpf/table.h.
func (t *Table) walk(key bpf.HairpinTuple) iter.Seq[uint32] {
	sum := uint64(0)
	for i, word := range layout.Words(key) {
		sum += (t.Random[2*i] + word&0xffffffff) * (t.Random[2*i+1] + word>>32)
	}
	sum ^= sum >> 32
	sum *= 0x9e3779b97f4a7c15
	buckets := uint64(t.Buckets[0])
	if !layout.IsIPv4(key) {
		buckets = uint64(t.Buckets[1])
	}
	bucket := sum >> 32 * buckets >> 32
	step := 1 + sum&0xffffffff*(buckets-1)>>32
	return func(yield func(uint32) bool) {
		for range buckets {
			if !yield(uint32(bucket)) {
				return
			}
			bucket = (bucket + step) % buckets
		}
	}
}

func (t *Table) of(key bpf.HairpinTuple) *ebpf.Map {
	if layout.IsIPv4(key) {
		return t.objs.Conns4
	}
	return t.objs.Conns6
}

// bucket is a bucket of either family.
type bucket interface {
	passed() *uint32
	entry(slot uint32) (layout.Entry, bool) // false: the slot is free
	put(slot uint32, e *layout.Entry)       // nil: frees the slot
	value() any
}

type bucket4 struct{ bpf.HairpinBucket4 }

func (b *bucket4) passed() *uint32 { return &b.Passed }
func (b *bucket4) value() any      { return &b.HairpinBucket4 }

func (b *bucket4) entry(slot uint32) (layout.Entry, bool) {
	return layout.FromValue4(b.Key[slot], &b.Entry[slot]), b.Entry[slot].Conn.Identity != 0
}

func (b *bucket4) put(slot uint32, e *layout.Entry) {
	if e == nil {
		b.Entry[slot].Conn.Identity = 0
		return
	}
	b.Key[slot], b.Entry[slot] = layout.ShortKey(e.Key), e.Value4()
}

type bucket6 struct{ bpf.HairpinBucket6 }

func (b *bucket6) passed() *uint32 { return &b.Passed }
func (b *bucket6) value() any      { return &b.HairpinBucket6 }

func (b *bucket6) entry(slot uint32) (layout.Entry, bool) {
	return layout.FromValue6(b.Key[slot], &b.Entry[slot]), b.Entry[slot].Conn.Identity != 0
}

func (b *bucket6) put(slot uint32, e *layout.Entry) {
	if e == nil {
		b.Entry[slot].Conn.Identity = 0
		return
	}
	b.Key[slot], b.Entry[slot] = e.Key, e.Value6()
}

func (t *Table) read(key bpf.HairpinTuple, number uint32) (bucket, error) {
	var b bucket = &bucket6{}
	if layout.IsIPv4(key) {
		b = &bucket4{}
	}
	if err := t.of(key).Lookup(number, b.value()); err != nil {
		return nil, fmt.Errorf("read bucket %d: %w", number, err)
	}
	return b, nil
}

// search returns the position of a key's entry, and otherwise the first free position. Either is nil if there is none.
func (t *Table) search(key bpf.HairpinTuple) (found layout.Entry, at, room *position, err error) {
	var before []uint32
	for number := range t.walk(key) {
		b, err := t.read(key, number)
		if err != nil {
			return found, nil, nil, err
		}
		for slot := range uint32(len(bpf.HairpinBucket4{}.Key)) {
			e, used := b.entry(slot)
			switch {
			case used && e.Key == key:
				return e, &position{number, slot, before}, room, nil
			case !used && room == nil:
				room = &position{number, slot, slices.Clone(before)}
			}
		}
		if *b.passed() == 0 && room != nil {
			break
		}
		before = append(before, number)
	}
	return found, nil, room, nil
}

// Lookup reads the entry of a tuple. The error wraps ebpf.ErrKeyNotExist if there is no such entry.
func (t *Table) Lookup(key bpf.HairpinTuple) (layout.Entry, error) {
	e, at, _, err := t.search(key)
	if err == nil && (at == nil || e.State == bpf.HairpinConnStateCONN_GONE) {
		err = ebpf.ErrKeyNotExist
	}
	return e, err
}

// Update writes an entry. The flags are those of ebpf.Map.Update. Unlike the datapath, Update does not count the connection, and takes no
// place for the connection. Update writes the whole bucket, so no traffic may run at the same time.
func (t *Table) Update(e *layout.Entry, flags ebpf.MapUpdateFlags) error {
	_, at, room, err := t.search(e.Key)
	switch {
	case err != nil:
		return err
	case at != nil && flags == ebpf.UpdateNoExist:
		return ebpf.ErrKeyExist
	case at != nil:
		return t.change(e.Key, at.bucket, func(b bucket) { b.put(at.slot, e) })
	case flags == ebpf.UpdateExist:
		return ebpf.ErrKeyNotExist
	case room == nil:
		return errors.New("no bucket of the key has room")
	}
	return errors.Join(t.pass(e.Key, room.before, 1), t.change(e.Key, room.bucket, func(b bucket) { b.put(room.slot, e) }))
}

// Delete deletes an entry. It does not change counts or free the place of the connection. Like Update, it is for tables without
// traffic. The error is ebpf.ErrKeyNotExist if there is no such entry.
func (t *Table) Delete(key bpf.HairpinTuple) error {
	_, at, _, err := t.search(key)
	if err != nil {
		return err
	}
	if at == nil {
		return ebpf.ErrKeyNotExist
	}
	return errors.Join(t.change(key, at.bucket, func(b bucket) { b.put(at.slot, nil) }), t.pass(key, at.before, -1))
}

// pass adds change to the counts of these buckets.
func (t *Table) pass(key bpf.HairpinTuple, buckets []uint32, change int) error {
	var all error
	for _, number := range buckets {
		all = errors.Join(all, t.change(key, number, func(b bucket) { *b.passed() += uint32(change) }))
	}
	return all
}

func (t *Table) change(key bpf.HairpinTuple, number uint32, change func(bucket)) error {
	b, err := t.read(key, number)
	if err != nil {
		return err
	}
	change(b)
	if err := t.of(key).Put(number, b.value()); err != nil {
		return fmt.Errorf("write bucket %d: %w", number, err)
	}
	return nil
}
