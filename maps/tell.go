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
	var keys []bpf.HairpinTuple
	gather := func(key bpf.HairpinTuple, conns []bpf.HairpinConn) {
		conn := &conns[0]
		if conn.Opener == 0 && conn.Path != uint8(bpf.HairpinConnPathPATH_WAN) && gone[key.Dst] {
			keys = append(keys, key)
		}
	}
	if err := scan(t.objs.Conns, 1, gather); err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	_, err := t.end(keys)
	return err
}

// end ends the connections that have these keys, of either direction, and says
// how many it found.
func (t *Tables) end(keys []bpf.HairpinTuple) (int, error) {
	ended := 0
	for _, key := range keys {
		request := bpf.HairpinEndRequest{Key: key}
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
	openers := map[bpf.HairpinTuple]bpf.HairpinConn{}
	answers := map[bpf.HairpinTuple]bpf.HairpinConn{}
	epochs := epochReader{tables: t, known: map[uint32]int64{}}
	err := scan(t.objs.Conns, 1, func(key bpf.HairpinTuple, conns []bpf.HairpinConn) {
		switch conn := &conns[0]; {
		case key.Protocol != unix.IPPROTO_TCP || halfOpen(conn) || conn.Told != 0 || !epochs.over(conn):
		case conn.Opener != 0:
			openers[key] = *conn
		default:
			answers[key] = *conn
		}
	})
	if err = errors.Join(err, epochs.err); err != nil {
		return fmt.Errorf("list connections that are over: %w", err)
	}
	for key, answer := range answers {
		opener, ok := openers[reversed(answer.To)]
		if !ok || opener.Hop.Ifindex == 0 {
			continue
		}
		if err := t.show(serverFrame(key, &opener, &answer), opener.Hop.Ifindex); err != nil {
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

// serverFrame is an acknowledgement that the server of a connection might send.
// Nothing reads its checksums.
func serverFrame(key bpf.HairpinTuple, opener, answer *bpf.HairpinConn) []byte {
	const ack, header = 0x10, 20
	src, dst := fromAddr(key.Src), fromAddr(key.Dst)
	frame := append([]byte(nil), opener.Hop.SrcMac[:]...)
	frame = append(frame, opener.Hop.DstMac[:]...)
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
