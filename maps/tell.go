// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/layout"
)

// endReflectedFrom ends the connections whose servers answer one of these
// addresses, which the router had and has no more: nothing would come back.
func (t *Tables) endReflectedFrom(gone map[bpf.HairpinAddr]bool) error {
	if len(gone) == 0 {
		return nil
	}
	var failed error
	err := EachEntry(t.objs, func(e layout.Entry) {
		if failed == nil && !e.Opener() && e.Path != bpf.HairpinConnPathPATH_WAN && gone[e.Key.Dst] {
			_, failed = t.end(bpf.HairpinEndRequest{Key: e.Key, Serial: e.Serial})
		}
	})
	return errors.Join(failed, err)
}

// end ends a connection, by the key of either direction, and says how many it found, 1 or 0. One that has got the
// tuple of another since is not ended: the serial tells.
func (t *Tables) end(request bpf.HairpinEndRequest) (int, error) {
	var answer bpf.HairpinEndRequest
	if _, err := t.objs.HairpinEnd.Run(&ebpf.RunOptions{Context: request, ContextOut: &answer}); err != nil {
		return 0, fmt.Errorf("end connection: %w", err)
	}
	return int(answer.Found), nil
}

// tellEnded has both sides of every TCP connection that is over told so, who may
// be waiting for each other in silence. The datapath does that with the first
// packet of either side: it is shown one that the server might send.
func (t *Tables) tellEnded() error {
	if t.objs.HairpinTc == nil {
		return nil // maps alone, without a datapath that could tell
	}
	epochs := t.newEpochReader()
	silent := func(e *layout.Entry) bool {
		return e.Key.Protocol == unix.IPPROTO_TCP && e.State != bpf.HairpinConnStateCONN_HALF_OPEN &&
			e.Flags&bpf.HairpinConnFlagCONN_TOLD == 0 && epochs.over(e)
	}
	var failed error
	err := EachEntry(t.objs, func(answer layout.Entry) {
		if failed != nil || answer.Opener() || !silent(&answer) {
			return
		}
		opener, err := LookupEntry(t.objs, answer.Answer())
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
		case err != nil:
			failed = err
		case opener.Serial == answer.Serial && silent(&opener):
			failed = t.tellServer(&opener, &answer)
		}
	})
	if err = errors.Join(err, failed, epochs.err); err != nil {
		return fmt.Errorf("tell of connections that are over: %w", err)
	}
	return nil
}

// tellServer shows the datapath a packet that the server of a connection might send.
func (t *Tables) tellServer(opener, answer *layout.Entry) error {
	var in bpf.HairpinInterface
	err := t.objs.Interfaces.Lookup(answer.Ifindex, &in)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // its server hears of it with its next packet, if that comes by another interface
	}
	if err != nil {
		return fmt.Errorf("look up the interface of a server: %w", err)
	}
	return t.show(serverFrame(opener, answer, in.Mac), answer.Ifindex)
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
		return fmt.Errorf("show a packet to the datapath: %w", err)
	}
	return nil
}

// serverFrame is an acknowledgement that the server of a connection might send to the router's station. It comes from
// none: the datapath looks up where the server is. Nothing reads its checksums.
func serverFrame(opener, answer *layout.Entry, station [6]uint8) []byte {
	const ack, header = 0x10, 20
	key := answer.Key
	src, dst := layout.FromAddr(key.Src), layout.FromAddr(key.Dst)
	frame := append(station[:], make([]byte, 6)...)
	if src.Is4() {
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IP)
		frame = append(frame, 0x45, 0, 0, 20+header, 0, 0, 0, 0, 64, unix.IPPROTO_TCP, 0, 0)
	} else {
		frame = binary.BigEndian.AppendUint16(frame, unix.ETH_P_IPV6)
		frame = append(frame, 0x60, 0, 0, 0, 0, header, unix.IPPROTO_TCP, 64)
	}
	frame = append(append(frame, src.AsSlice()...), dst.AsSlice()...)
	frame = binary.BigEndian.AppendUint16(frame, layout.Be16(key.Sport))
	frame = binary.BigEndian.AppendUint16(frame, layout.Be16(key.Dport))
	frame = binary.BigEndian.AppendUint32(frame, opener.Ack)
	frame = binary.BigEndian.AppendUint32(frame, answer.Ack)
	return append(frame, header/4<<4, ack, 0xff, 0xff, 0, 0, 0, 0)
}
