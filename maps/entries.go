// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/cilium/ebpf"

	"hairpin/bpf"
	"hairpin/maps/layout"
)

// EachEntry calls visit for every entry of both families. It needs no lock and may run beside traffic. An entry that is
// added or deleted during the call may be missing or be visited twice.
func EachEntry(objs *bpf.HairpinObjects, visit func(layout.Entry)) error {
	every := func(*bpf.HairpinConn) bool { return true }
	return eachEntry(objs, every, func(e *layout.Entry) { visit(*e) })
}

// eachOpener is EachEntry for the openers' entries only. visit must not keep its argument.
func eachOpener(objs *bpf.HairpinObjects, visit func(*layout.Entry)) error {
	openers := func(c *bpf.HairpinConn) bool {
		return bpf.HairpinConnFlag(c.Identity)&bpf.HairpinConnFlagCONN_OPENER != 0
	}
	return eachEntry(objs, openers, visit)
}

// eachEntry calls visit for every entry for which wanted is true; only these are unpacked. visit must not keep its
// argument.
func eachEntry(objs *bpf.HairpinObjects, wanted func(*bpf.HairpinConn) bool, visit func(*layout.Entry)) error {
	var e layout.Entry
	err := scan(objs.Conns4, 1, func(key bpf.HairpinTuple4, conns []bpf.HairpinConn4) {
		if c := &conns[0]; wanted(&c.Conn) {
			e = layout.FromValue4(key, c)
			visit(&e)
		}
	})
	if err != nil {
		return fmt.Errorf("list IPv4 connections: %w", err)
	}
	err = scan(objs.Conns6, 1, func(key bpf.HairpinTuple, conns []bpf.HairpinConn6) {
		if c := &conns[0]; wanted(&c.Conn) {
			e = layout.FromValue6(key, c)
			visit(&e)
		}
	})
	if err != nil {
		return fmt.Errorf("list IPv6 connections: %w", err)
	}
	return nil
}

// LookupEntry reads the entry of a tuple. The error wraps ebpf.ErrKeyNotExist if there is no such entry.
func LookupEntry(objs *bpf.HairpinObjects, key bpf.HairpinTuple) (layout.Entry, error) {
	if layout.IsIPv4(key) {
		var c bpf.HairpinConn4
		err := objs.Conns4.Lookup(layout.ShortKey(key), &c)
		return layout.FromValue4(layout.ShortKey(key), &c), err
	}
	var c bpf.HairpinConn6
	err := objs.Conns6.Lookup(key, &c)
	return layout.FromValue6(key, &c), err
}

// UpdateEntry writes an entry with these flags of ebpf.Map.Update. Unlike the datapath it does not count the connection
// and does not take a place for it.
func UpdateEntry(objs *bpf.HairpinObjects, e *layout.Entry, flags ebpf.MapUpdateFlags) error {
	if layout.IsIPv4(e.Key) {
		return objs.Conns4.Update(layout.ShortKey(e.Key), e.Value4(), flags)
	}
	return objs.Conns6.Update(e.Key, e.Value6(), flags)
}

// DeleteEntry deletes an entry. It does not change counts or free the place of the connection.
func DeleteEntry(objs *bpf.HairpinObjects, key bpf.HairpinTuple) error {
	if layout.IsIPv4(key) {
		return objs.Conns4.Delete(layout.ShortKey(key))
	}
	return objs.Conns6.Delete(key)
}
