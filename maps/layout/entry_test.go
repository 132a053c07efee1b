// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"fmt"
	"math"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hairpin/bpf"
	"hairpin/maps/rule"
)

// fullest returns an entry with every field at its highest value.
func fullest(key, to bpf.HairpinTuple) Entry {
	return Entry{
		Key: key, To: to, Serial: math.MaxUint32,
		State: bpf.HairpinConnStateCONN_GONE, Flags: bpf.HairpinConnFlag(flagBits), Path: 3, Scale: 15, LAN: 0xfff,
		Forward: IDMask, Address: IDMask, Epochs: math.MaxUint32, Created: 1<<30 - 1, Seen: math.MaxUint32,
		Ifindex: math.MaxUint32, Hop: math.MaxUint32, Packets: math.MaxUint32, Bytes: 1<<48 - 1,
		End: math.MaxUint32, Ack: math.MaxUint32, Window: math.MaxUint16,
	}
}

// alone returns entries in which only one field is set, to its lowest and to its highest bit.
func alone(key, to bpf.HairpinTuple) map[string]Entry {
	all := map[string]Entry{"nothing": {}, "everything": fullest(key, to)}
	for bit := range 32 {
		if flag := bpf.HairpinConnFlag(1) << bit; uint32(flag)&flagBits != 0 {
			all[fmt.Sprintf("flag %d", bit)] = Entry{Flags: flag}
		}
	}
	for name, field := range map[string]struct {
		bits int
		set  func(*Entry, uint64)
	}{
		"serial":  {32, func(e *Entry, v uint64) { e.Serial = uint32(v) }},
		"state":   {3, func(e *Entry, v uint64) { e.State = bpf.HairpinConnState(v) }},
		"path":    {2, func(e *Entry, v uint64) { e.Path = bpf.HairpinConnPath(v) }},
		"scale":   {4, func(e *Entry, v uint64) { e.Scale = uint8(v) }},
		"LAN":     {12, func(e *Entry, v uint64) { e.LAN = uint16(v) }},
		"forward": {17, func(e *Entry, v uint64) { e.Forward = uint32(v) }},
		"address": {17, func(e *Entry, v uint64) { e.Address = uint32(v) }},
		"epochs":  {32, func(e *Entry, v uint64) { e.Epochs = uint32(v) }},
		"created": {30, func(e *Entry, v uint64) { e.Created = uint32(v) }},
		"seen":    {32, func(e *Entry, v uint64) { e.Seen = uint32(v) }},
		"ifindex": {32, func(e *Entry, v uint64) { e.Ifindex = uint32(v) }},
		"hop":     {32, func(e *Entry, v uint64) { e.Hop = uint32(v) }},
		"packets": {32, func(e *Entry, v uint64) { e.Packets = uint32(v) }},
		"bytes":   {48, func(e *Entry, v uint64) { e.Bytes = v }},
		"end":     {32, func(e *Entry, v uint64) { e.End = uint32(v) }},
		"ack":     {32, func(e *Entry, v uint64) { e.Ack = uint32(v) }},
		"window":  {16, func(e *Entry, v uint64) { e.Window = uint16(v) }},
	} {
		for bit := range field.bits {
			e := Entry{}
			field.set(&e, 1<<bit)
			all[fmt.Sprintf("%s, bit %d", name, bit)] = e
		}
	}
	for name, e := range all {
		e.Key, e.To = key, to
		all[name] = e
	}
	return all
}

func TestEntriesAreReadAsTheyWereWritten(t *testing.T) {
	of := func(src, dst string) bpf.HairpinTuple {
		key := bpf.HairpinTuple{Protocol: uint8(rule.TCP), Sport: Be16(5000), Dport: Be16(65535)}
		key.Src, key.Dst = ToAddr(netip.MustParseAddr(src)), ToAddr(netip.MustParseAddr(dst))
		return key
	}
	for family, pair := range map[string][2]string{
		"IPv4": {"198.51.100.9", "203.0.113.1"},
		"IPv6": {"2001:db8::9", "2001:db8:1::1"},
	} {
		key, to := of(pair[0], pair[1]), of(pair[1], pair[0])
		if IsIPv4(key) != (family == "IPv4") {
			t.Errorf("%s: the key is taken for the other family's", family)
		}
		for name, want := range alone(key, to) {
			value := want.Value6()
			got := FromValue6(key, &value)
			if IsIPv4(key) {
				value := want.Value4()
				got = FromValue4(ShortKey(key), &value)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s, %s: (-want +got)\n%s", family, name, diff)
			}
		}
	}
}

// TestEntryIsWhatTheDatapathReads compares packed fields with values that follow from struct conn in bpf/types.h.
func TestEntryIsWhatTheDatapathReads(t *testing.T) {
	e := Entry{
		Serial: 0x12345678, State: bpf.HairpinConnStateCONN_ESTABLISHED, Path: bpf.HairpinConnPathPATH_HAIRPIN,
		Flags: bpf.HairpinConnFlagCONN_OPENER | bpf.HairpinConnFlagCONN_PROVEN, Scale: 7, LAN: 0xabc,
		Forward: 0x10001, Address: 0x1ffff, Created: 0x2aaa<<15 | 0x5555, Bytes: 0x123456789abc,
	}
	want := bpf.HairpinConn{
		Identity: 0x12345678<<32 | 0xabc<<20 | 7<<16 | 1<<14 | 1<<5 | 1<<3 | 2,
		Forward:  0x5555<<17 | 0x10001, Address: 0x2aaa<<17 | 0x1ffff,
		BytesHigh: 0x1234, Bytes: 0x56789abc,
	}
	if got := e.pack(); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// TestIdleTimeSurvivesTheClocksWrap: Seen has 32 bits of milliseconds and wraps after 49.7 days.
func TestIdleTimeSurvivesTheClocksWrap(t *testing.T) {
	const now = (1<<32 + 500) * Millisecond
	for seen, want := range map[uint32]int64{math.MaxUint32 - 499: 1000, 0: 500, 500: 0, 501: 0} {
		e := Entry{Seen: seen}
		if got := e.IdleAt(now).Milliseconds(); got != want {
			t.Errorf("seen at %d ms: idle %d ms, want %d", seen, got, want)
		}
	}
}
