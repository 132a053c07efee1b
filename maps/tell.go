// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
)

// endReflectedFrom ends the connections whose servers answer one of these
// addresses, which the router had and has no more: nothing would come back.
func (t *Tables) endReflectedFrom(gone map[bpf.HairpinAddr]bool) error {
	if len(gone) == 0 {
		return nil
	}
	var ends []bpf.HairpinEndRequest
	err := EachEntry(t.objs, func(e Entry) {
		if !e.Opener() && e.Path != bpf.HairpinConnPathPATH_WAN && gone[e.Key.Dst] {
			ends = append(ends, bpf.HairpinEndRequest{Key: e.Key, Serial: e.Serial})
		}
	})
	if err != nil {
		return err
	}
	_, err = t.end(ends)
	return err
}

// end ends these connections, by the key of either direction, and says how many it found. One that has got the
// tuple of another since is not ended: the serial tells.
func (t *Tables) end(requests []bpf.HairpinEndRequest) (int, error) {
	ended := 0
	for _, request := range requests {
		var answer bpf.HairpinEndRequest
		if _, err := t.objs.HairpinEnd.Run(&ebpf.RunOptions{Context: request, ContextOut: &answer}); err != nil {
			return ended, fmt.Errorf("end connection: %w", err)
		}
		ended += int(answer.Found)
	}
	return ended, nil
}

// tellEnded has both sides of every TCP connection that is over told so, who may
// be waiting for each other in silence. The datapath does that with the first
// packet of either side: it is shown one that the server might send.
func (t *Tables) tellEnded() error {
	if t.objs.HairpinTc == nil {
		return nil // maps alone, without a datapath that could tell
	}
	openers, answers := map[bpf.HairpinTuple]Entry{}, map[bpf.HairpinTuple]Entry{}
	epochs := epochReader{tables: t, known: map[uint32]int64{}}
	err := EachEntry(t.objs, func(e Entry) {
		switch {
		case e.Key.Protocol != unix.IPPROTO_TCP || e.State == bpf.HairpinConnStateCONN_HALF_OPEN ||
			e.Flags&bpf.HairpinConnFlagCONN_TOLD != 0 || !epochs.over(&e):
		case e.Opener():
			openers[e.Key] = e
		default:
			answers[e.Key] = e
		}
	})
	if err = errors.Join(err, epochs.err); err != nil {
		return fmt.Errorf("list connections that are over: %w", err)
	}
	for _, answer := range answers {
		opener, ok := openers[answer.Answer()]
		if !ok || opener.Serial != answer.Serial {
			continue
		}
		var in bpf.HairpinInterface
		err := t.objs.Interfaces.Lookup(answer.Ifindex, &in)
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			continue // its server hears of it with its next packet, if that comes by another interface
		}
		if err != nil {
			return fmt.Errorf("look up the interface of a server: %w", err)
		}
		if err := t.show(serverFrame(&opener, &answer, in.Mac), answer.Ifindex); err != nil {
			return err
		}
	}
	return nil
}

// show has the TC program see a frame as if it had come in by an interface. It
// may send others, but the frame itself goes nowhere.
func (t *Tables) show(frame []byte, ifindex uint32) error {
	// struct __sk_buff of linux/bpf.h, up to its ifindex.
	context := make([]byte, 44)
	binary.NativeEndian.PutUint32(context[40:], ifindex)
	_, err := t.objs.HairpinTc.Run(&ebpf.RunOptions{Data: frame, Context: context})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return nil // the interface has gone
	}
	if err != nil {
		return fmt.Errorf("tell of a connection that is over: %w", err)
	}
	return nil
}

// serverFrame is an acknowledgement that the server of a connection might send to the router's station. It comes from
// none: the datapath looks up where the server is. Nothing reads its checksums.
func serverFrame(opener, answer *Entry, station [6]uint8) []byte {
	const ack, header = 0x10, 20
	key := answer.Key
	src, dst := fromAddr(key.Src), fromAddr(key.Dst)
	frame := append(station[:], make([]byte, 6)...)
	if src.Is4() {
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
		frame = append(frame, 0x45, 0, 0, 20+header, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0)
	} else {
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IPV6)
		frame = append(frame, 0x60, 0, 0, 0, 0, header, unix.IPPROTO_TCP, 64)
	}
	frame = append(append(frame, src.AsSlice()...), dst.AsSlice()...)
	frame = binary.BigEndian.AppendUint16(frame, be16(key.Sport))
	frame = binary.BigEndian.AppendUint16(frame, be16(key.Dport))
	frame = binary.BigEndian.AppendUint32(frame, opener.Ack)
	frame = binary.BigEndian.AppendUint32(frame, answer.Ack)
	return append(frame, header/4<<4, ack, 0xff, 0xff, 0, 0, 0, 0)
}
