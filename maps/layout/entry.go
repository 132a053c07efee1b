// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"encoding/binary"
	"net/netip"
	"time"

	"hairpin/bpf"
)

// Entry is the map entry of one direction of a connection, with the fields of struct conn (bpf/types.h) unpacked.
type Entry struct {
	Key      bpf.HairpinTuple // the tuple of this direction's packets on arrival
	To       bpf.HairpinTuple // their tuple after translation
	Serial   uint32           // number of the connection, equal in both directions
	State    bpf.HairpinConnState
	Flags    bpf.HairpinConnFlag // without the bits of State, Path, Scale and LAN
	Path     bpf.HairpinConnPath
	Scale    uint8  // TCP window scale, 0 to 14; 15: the option was not sent
	LAN      uint16 // 12-bit hash of the LAN interface whose limit counts the connection; 0: none
	Forward  uint32 // id of the forward
	Address  uint32 // id of the external address
	Epochs   uint32 // sum of the epochs of Forward and Address
	Created  uint32 // CLOCK_MONOTONIC, s
	Seen     uint32 // CLOCK_MONOTONIC, ms, modulo 2^32
	Ifindex  uint32 // interface by which this direction's packets come in
	Hop      uint32 // generation << 20 | index in map hops; 0: unknown
	Packets  uint32 // modulo 2^32
	Bytes    uint64 // IP total length, 48 bits
	End, Ack uint32 // TCP: sequence number after the last byte that this side sent; its highest acknowledgement
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

// Opener reports whether the entry is of the direction that opened the connection.
func (e *Entry) Opener() bool { return e.Flags&bpf.HairpinConnFlagCONN_OPENER != 0 }

// IdleAt returns the time since the last in-order packet of this direction at now, a result of Monotonic. It returns 0 if a packet came
// after that time.
func (e *Entry) IdleAt(now uint64) time.Duration {
	ms := int32(uint32(now/Millisecond) - e.Seen)
	return time.Duration(max(0, ms)) * time.Millisecond
}

// Answer returns the key of the entry of the other direction.
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

// Value4 returns the map value of an IPv4 entry.
func (e *Entry) Value4() bpf.HairpinConn4 {
	return bpf.HairpinConn4{Conn: e.pack(), Src: unmapped(e.To.Src), Dst: unmapped(e.To.Dst)}
}

// Value6 returns the map value of an IPv6 entry.
func (e *Entry) Value6() bpf.HairpinConn6 {
	return bpf.HairpinConn6{Conn: e.pack(), Src: e.To.Src, Dst: e.To.Dst}
}

// FromValue4 unpacks the map key and value of an IPv4 entry.
func FromValue4(key bpf.HairpinTuple4, c *bpf.HairpinConn4) Entry {
	return unpack(&c.Conn, longKey(key), bpf.HairpinTuple{Src: mapped(c.Src), Dst: mapped(c.Dst)})
}

// FromValue6 unpacks the map key and value of an IPv6 entry.
func FromValue6(key bpf.HairpinTuple, c *bpf.HairpinConn6) Entry {
	return unpack(&c.Conn, key, bpf.HairpinTuple{Src: c.Src, Dst: c.Dst})
}

// longKey converts an IPv4 key to the tuple with IPv4-mapped addresses.
func longKey(key bpf.HairpinTuple4) bpf.HairpinTuple {
	return bpf.HairpinTuple{
		Src: mapped(key.Src), Dst: mapped(key.Dst), Sport: key.Sport, Dport: key.Dport, Protocol: key.Protocol,
	}
}

// ShortKey converts a tuple with IPv4-mapped addresses to the key of map conns4.
func ShortKey(key bpf.HairpinTuple) bpf.HairpinTuple4 {
	return bpf.HairpinTuple4{
		Src: unmapped(key.Src), Dst: unmapped(key.Dst), Sport: key.Sport, Dport: key.Dport, Protocol: key.Protocol,
	}
}

// Words returns a tuple as the 64-bit words that the hash of the tables reads (table_key_of in bpf/table.h).
func Words(key bpf.HairpinTuple) []uint64 {
	rest := uint64(key.Sport) | uint64(key.Dport)<<16 | uint64(key.Protocol)<<32
	if IsIPv4(key) {
		return []uint64{uint64(unmapped(key.Src)) | uint64(unmapped(key.Dst))<<32, rest}
	}
	half := binary.NativeEndian.Uint64
	return []uint64{half(key.Src.Bytes[:8]), half(key.Src.Bytes[8:]), half(key.Dst.Bytes[:8]), half(key.Dst.Bytes[8:]), rest}
}

// State returns the state in an entry's identity.
func State(c *bpf.HairpinConn) bpf.HairpinConnState {
	return bpf.HairpinConnState(uint32(c.Identity) & uint32(bpf.HairpinConnFlagCONN_STATE))
}

// IsIPv4 reports whether a tuple is of IPv4, so that its entry is in map conns4.
func IsIPv4(key bpf.HairpinTuple) bool { return netip.AddrFrom16(key.Dst.Bytes).Is4In6() }
