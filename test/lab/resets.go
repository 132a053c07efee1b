// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Resets stores the TCP segments with a RST that arrive at an interface, IPv4 and IPv6. A socket filter selects them in the kernel, so
// a flood of other packets does not slow the test down.
type Resets struct {
	fd   int
	stop chan struct{}
	done chan struct{}
	once sync.Once

	mu   sync.Mutex
	seen []string
}

// resetFilter accepts arriving packets with a RST. Its offsets count from the IP header.
var resetFilter = []bpf.Instruction{
	bpf.LoadExtension{Num: bpf.ExtType},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 16},
	bpf.LoadAbsolute{Off: 0, Size: 1},
	bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
	bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: 7},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: 4, SkipTrue: 12}, // not IP, such as ARP
	bpf.LoadAbsolute{Off: 9, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 10},
	bpf.LoadMemShift{Off: 0},
	bpf.LoadIndirect{Off: 13, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: RST, SkipTrue: 6},
	bpf.RetConstant{Val: 0},
	bpf.LoadAbsolute{Off: 6, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 4},
	bpf.LoadAbsolute{Off: 40 + 13, Size: 1},
	bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: RST, SkipTrue: 1},
	bpf.RetConstant{Val: 0},
	bpf.RetConstant{Val: 128},
	bpf.RetConstant{Val: 0},
}

// WatchResets starts to store the resets that arrive at an interface, until Stop or the end of the test.
func (h *Host) WatchResets(dev string) *Resets {
	h.tb.Helper()
	r := &Resets{stop: make(chan struct{}), done: make(chan struct{})}
	h.must("watch resets on "+dev, h.Do(func() error { return r.open(h.Index(dev)) }))
	go r.read()
	h.tb.Cleanup(func() { r.Stop() })
	return r
}

func (r *Resets) open(index int) (err error) {
	if r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	raw, err := bpf.Assemble(resetFilter)
	if err != nil {
		return fmt.Errorf("assemble filter: %w", err)
	}
	code := make([]unix.SockFilter, len(raw))
	for i, in := range raw {
		code[i] = unix.SockFilter{Code: in.Op, Jt: in.Jt, Jf: in.Jf, K: in.K}
	}
	if err := unix.SetsockoptSockFprog(r.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]}); err != nil {
		return fmt.Errorf("attach filter: %w", err)
	}
	wake := unix.NsecToTimeval(int64(20 * time.Millisecond))
	if err := unix.SetsockoptTimeval(r.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wake); err != nil {
		return fmt.Errorf("set receive timeout: %w", err)
	}
	return unix.Bind(r.fd, &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL), Ifindex: index})
}

func (r *Resets) read() {
	defer close(r.done)
	data := make([]byte, 128)
	for {
		n, _, err := unix.Recvfrom(r.fd, data, 0)
		if err == nil {
			text := fmt.Sprintf("% x", data[:n])
			if p, _ := parsePacket(data[:n], true); p.Data != nil {
				text = p.String()
			}
			r.mu.Lock()
			r.seen = append(r.seen, text)
			r.mu.Unlock()
			continue
		}
		select {
		case <-r.stop:
			return
		default:
		}
	}
}

// Stop ends the watch and returns the resets that have arrived.
func (r *Resets) Stop() []string {
	r.once.Do(func() {
		close(r.stop)
		<-r.done
		unix.Close(r.fd)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen
}
