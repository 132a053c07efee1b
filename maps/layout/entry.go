// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"net/netip"
	"time"

	"hairpin/bpf"
)

// Entry is one direction of a connection as the datapath keeps it (struct conn of bpf/types.h), unpacked.
type Entry struct {
	Key      bpf.HairpinTuple // the tuple as it arrives
	To       bpf.HairpinTuple // what its packets leave as
	Serial   uint32           // of the connection; both directions have the same
	State    bpf.HairpinConnState
	Flags    bpf.HairpinConnFlag // without state, path, scale and LAN
	Path     bpf.HairpinConnPath
	Scale    uint8  // TCP window scale, 0 to 14; 15: the option was not sent
	LAN      uint16 // hash of the LAN interface whose share it is counted in, 12 bits
	Forward  uint32 // id
	Address  uint32 // id
	Epochs   uint32 // sum of both epochs
	Created  uint32 // CLOCK_MONOTONIC, s
	Seen     uint32 // CLOCK_MONOTONIC, ms, modulo 2^32
	Ifindex  uint32 // interface by which its packets come in
	Hop      uint32 // reference of its next hop; 0: unknown
	Packets  uint32 // modulo 2^32
	Bytes    uint64 // IP total length, 48 bits
	End, Ack uint32 // TCP: sequence number behind what it sent, and its highest acknowledgement
	Window   uint16 // TCP
}

const (
	idBits = 17
	// IDMask is the highest id of a forward or an address that an entry holds.
	IDMask      = 1<<idBits - 1
	createdBits = 32 - idBits
	flagBits    = ^uint32(uint32(bpf.HairpinConnFlagCONN_STATE) | 3<<uint32(bpf.HairpinConnFlagCONN_PATH_SHIFT) |
		15<<uint32(bpf.HairpinConnFlagCONN_SCALE_SHIFT) | 0xfff<<uint32(bpf.HairpinConnFlagCONN_LAN_SHIFT))
)

// Opener reports whether it is the direction that opened the connection.
func (e *Entry) Opener() bool { return e.Flags&bpf.HairpinConnFlagCONN_OPENER != 0 }

// Idle is how long ago its last packet in order came, 0 for one that came after now was read.
func (e *Entry) Idle() time.Duration { return e.IdleAt(Monotonic()) }

// IdleAt is Idle at a time that Monotonic gave.
func (e *Entry) IdleAt(now uint64) time.Duration {
	ms := int32(uint32(now/Millisecond) - e.Seen)
	return time.Duration(max(0, ms)) * time.Millisecond
}

// Answer is the key of the other direction.
func (e *Entry) Answer() bpf.HairpinTuple { return Reversed(e.To) }

func unpack(conn *bpf.HairpinConn, key, to bpf.HairpinTuple) Entry {
	word := uint32(conn.Identity)
	to.Sport, to.Dport, to.Protocol = conn.Sport, conn.Dport, key.Protocol
	return Entry{
		Key:     key,
		To:      to,
		Serial:  uint32(conn.Identity >> 32),
		State:   bpf.HairpinConnState(word & uint32(bpf.HairpinConnFlagCONN_STATE)),
		Flags:   bpf.HairpinConnFlag(word & flagBits),
		Path:    bpf.HairpinConnPath(word >> uint32(bpf.HairpinConnFlagCONN_PATH_SHIFT) & 3),
		Scale:   uint8(word >> uint32(bpf.HairpinConnFlagCONN_SCALE_SHIFT) & 15),
		LAN:     uint16(word >> uint32(bpf.HairpinConnFlagCONN_LAN_SHIFT) & 0xfff),
		Forward: conn.Forward & IDMask,
		Address: conn.Address & IDMask,
		Epochs:  conn.Epochs,
		Created: conn.Forward>>idBits | conn.Address>>idBits<<createdBits,
		Seen:    conn.Seen,
		Ifindex: conn.Ifindex,
		Hop:     conn.Hop,
		Packets: conn.Packets,
		Bytes:   uint64(conn.BytesHigh)<<32 | uint64(conn.Bytes),
		End:     conn.End,
		Ack:     conn.Ack,
		Window:  conn.Window,
	}
}

func (e *Entry) pack() bpf.HairpinConn {
	word := uint32(e.State) | uint32(e.Flags)&flagBits | uint32(e.Path)<<uint32(bpf.HairpinConnFlagCONN_PATH_SHIFT) |
		uint32(e.Scale)<<uint32(bpf.HairpinConnFlagCONN_SCALE_SHIFT) | uint32(e.LAN)<<uint32(bpf.HairpinConnFlagCONN_LAN_SHIFT)
	return bpf.HairpinConn{
		Identity:  uint64(e.Serial)<<32 | uint64(word),
		Hop:       e.Hop,
		Forward:   e.Forward&IDMask | e.Created<<idBits,
		Address:   e.Address&IDMask | e.Created>>createdBits<<idBits,
		Epochs:    e.Epochs,
		Ifindex:   e.Ifindex,
		Seen:      e.Seen,
		Packets:   e.Packets,
		Bytes:     uint32(e.Bytes),
		BytesHigh: uint16(e.Bytes >> 32),
		End:       e.End,
		Ack:       e.Ack,
		Window:    e.Window,
		Sport:     e.To.Sport,
		Dport:     e.To.Dport,
	}
}

// Value4 is the value of an IPv4 entry.
func (e *Entry) Value4() bpf.HairpinConn4 {
	return bpf.HairpinConn4{Conn: e.pack(), Src: unmapped(e.To.Src), Dst: unmapped(e.To.Dst)}
}

// Value6 is the value of an IPv6 entry.
func (e *Entry) Value6() bpf.HairpinConn6 {
	return bpf.HairpinConn6{Conn: e.pack(), Src: e.To.Src, Dst: e.To.Dst}
}

// FromValue4 is the entry of an IPv4 key and its value.
func FromValue4(key bpf.HairpinTuple4, c *bpf.HairpinConn4) Entry {
	return unpack(&c.Conn, longKey(key), bpf.HairpinTuple{Src: mapped(c.Src), Dst: mapped(c.Dst)})
}

// FromValue6 is the entry of an IPv6 key and its value.
func FromValue6(key bpf.HairpinTuple, c *bpf.HairpinConn6) Entry {
	return unpack(&c.Conn, key, bpf.HairpinTuple{Src: c.Src, Dst: c.Dst})
}

// longKey is an IPv4 key in the form that both families have.
func longKey(key bpf.HairpinTuple4) bpf.HairpinTuple {
	return bpf.HairpinTuple{
		Src: mapped(key.Src), Dst: mapped(key.Dst), Sport: key.Sport, Dport: key.Dport, Protocol: key.Protocol,
	}
}

// ShortKey is the IPv4 key of a tuple.
func ShortKey(key bpf.HairpinTuple) bpf.HairpinTuple4 {
	return bpf.HairpinTuple4{
		Src: unmapped(key.Src), Dst: unmapped(key.Dst), Sport: key.Sport, Dport: key.Dport, Protocol: key.Protocol,
	}
}

// IsIPv4 reports whether a tuple is of IPv4, and so of the table of IPv4.
func IsIPv4(key bpf.HairpinTuple) bool { return netip.AddrFrom16(key.Dst.Bytes).Is4In6() }
