// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"hairpin/bpf"
	"hairpin/maps/entries"
	"hairpin/maps/layout"
)

// endReflectedFrom ends the connections whose source was translated to an address in gone. The router no longer has these
// addresses, so answers of the servers would not reach the router.
func (t *Tables) endReflectedFrom(gone map[bpf.HairpinAddr]bool) error {
	if len(gone) == 0 {
		return nil
	}
	var failed error
	err := entries.Each(t.objs, func(e *layout.Entry) {
		if failed == nil && !e.Opener() && e.Key.Dst != e.To.Dst && gone[e.Key.Dst] {
			_, failed = t.end(bpf.HairpinEndRequest{Key: e.Key, Serial: e.Serial})
		}
	})
	return errors.Join(failed, err)
}

// end ends the connection with this key, of either direction, and this serial. It returns 1, or 0 if there is no such
// connection. A later connection with the same key has another serial and is not ended.
func (t *Tables) end(request bpf.HairpinEndRequest) (int, error) {
	var answer bpf.HairpinEndRequest
	if _, err := t.objs.HairpinEnd.Run(&ebpf.RunOptions{Context: request, ContextOut: &answer}); err != nil {
		return 0, fmt.Errorf("end connection: %w", err)
	}
	return int(answer.Found), nil
}

// resetEnded makes the datapath send a RST to both sides of every TCP connection that is over, because both may be waiting
// for each other without sending. The datapath sends the RSTs on the first packet of either side. So resetEnded runs the
// TC program with a packet that the server might send.
func (t *Tables) resetEnded() error {
	if t.objs.HairpinTc == nil {
		return nil // the maps are loaded without programs
	}
	epochs := t.newEpochReader()
	silent := func(e *layout.Entry) bool {
		return e.Key.Protocol == unix.IPPROTO_TCP && e.State != bpf.HairpinConnStateCONN_HALF_OPEN &&
			e.Flags&bpf.HairpinConnFlagCONN_TOLD == 0 && epochs.over(e)
	}
	table, err := entries.Open(t.objs)
	if err != nil {
		return err
	}
	var failed error
	err = entries.Each(t.objs, func(answer *layout.Entry) {
		if failed != nil || answer.Opener() || !silent(answer) {
			return
		}
		opener, err := table.Lookup(answer.Answer())
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
		case err != nil:
			failed = err
		// The key is compared, too: an entry is read without a lock, and may be listed with the key of another one.
		case opener.Serial == answer.Serial && opener.Answer() == answer.Key && silent(&opener):
			failed = t.resetServer(&opener, answer)
		}
	})
	if err = errors.Join(err, failed, epochs.err); err != nil {
		return fmt.Errorf("reset connections that are over: %w", err)
	}
	return nil
}

// resetServer runs the TC program with a packet that the server of the connection might send.
func (t *Tables) resetServer(opener, answer *layout.Entry) error {
	var in bpf.HairpinInterface
	err := t.objs.Interfaces.Lookup(answer.Ifindex, &in)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil // the interface is gone; the datapath sends the RSTs if the server's packets come by another interface
	}
	if err != nil {
		return fmt.Errorf("look up the interface of a server: %w", err)
	}
	return t.show(serverFrame(opener, answer, in.Mac), answer.Ifindex)
}

// show runs the TC program (BPF_PROG_TEST_RUN) with a frame, as if the frame came in by an interface. The kernel drops
// the frame afterwards, but the program may send other packets.
func (t *Tables) show(frame []byte, ifindex uint32) error {
	// struct __sk_buff (linux/bpf.h) up to the field ifindex.
	context := make([]byte, 44)
	binary.NativeEndian.PutUint32(context[40:], ifindex)
	_, err := t.objs.HairpinTc.Run(&ebpf.RunOptions{Data: frame, Context: context})
	if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EINVAL) {
		return nil // the interface has gone
	}
	if err != nil {
		return fmt.Errorf("run the datapath on a packet: %w", err)
	}
	return nil
}

// serverFrame returns an Ethernet frame with a TCP acknowledgement that the server of a connection might send. station is
// the router's MAC address. The source MAC address is 0: the datapath resolves the server's address itself. The checksums
// are 0: the datapath does not read them.
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
