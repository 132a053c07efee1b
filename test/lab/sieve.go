// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// Sieve stores the packets that arrive at an interface and pass a filter, IPv4 and IPv6. The kernel runs the filter, so a flood of
// other packets does not slow the test down.
type Sieve struct {
	fd   int
	stop chan struct{}
	done chan struct{}
	once sync.Once

	mu   sync.Mutex
	seen []string
}

// WatchResets starts to store the TCP segments with a RST that arrive at an interface, until Stop or the end of the test.
func (h *Host) WatchResets(dev string) *Sieve {
	h.tb.Helper()
	return h.sieve(dev, []bpf.Instruction{
		bpf.LoadAbsolute{Off: 9, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 3},
		bpf.LoadMemShift{Off: 0},
		bpf.LoadIndirect{Off: 13, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: RST, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: sieveBytes},
	}, []bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: unix.IPPROTO_TCP, SkipTrue: 2},
		bpf.LoadAbsolute{Off: 40 + 13, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpBitsSet, Val: RST, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: sieveBytes},
	})
}

// insideSources are the IPv4 sources that must not appear on the Internet: private addresses, carrier-grade NAT, benchmarks (the
// substitute addresses of prefix reflection), loopback.
var insideSources = []netip.Prefix{
	netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16"),
	netip.MustParsePrefix("100.64.0.0/10"), netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("127.0.0.0/8"),
}

// WatchInside starts to store the packets with a private or inside source that arrive at an interface, until Stop or the end of the
// test. The IPv6 sources are those of fc00::/7.
func (h *Host) WatchInside(dev string) *Sieve {
	h.tb.Helper()
	var ipv4 []bpf.Instruction
	for i, inside := range insideSources {
		left := len(insideSources) - 1 - i
		ipv4 = append(ipv4,
			bpf.LoadAbsolute{Off: 12, Size: 4},
			bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: ^uint32(0) << (32 - inside.Bits())},
			bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(inside.Addr().AsSlice()), SkipTrue: uint8(3*left + 1)})
	}
	return h.sieve(dev, append(ipv4, bpf.RetConstant{Val: 0}, bpf.RetConstant{Val: sieveBytes}), []bpf.Instruction{
		bpf.LoadAbsolute{Off: 8, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpAnd, Val: 0xfe},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 0xfc, SkipTrue: 1},
		bpf.RetConstant{Val: 0},
		bpf.RetConstant{Val: sieveBytes},
	})
}

// WatchStrangers starts to store the IPv4 packets with another source than these, until Stop or the end of the test.
func (h *Host) WatchStrangers(dev string, known ...netip.Addr) *Sieve {
	h.tb.Helper()
	ipv4 := []bpf.Instruction{bpf.LoadAbsolute{Off: 12, Size: 4}}
	for i, source := range known {
		ipv4 = append(ipv4, bpf.JumpIf{Cond: bpf.JumpEqual, Val: binary.BigEndian.Uint32(source.AsSlice()), SkipTrue: uint8(len(known) - i)})
	}
	return h.sieve(dev, append(ipv4, bpf.RetConstant{Val: sieveBytes}, bpf.RetConstant{Val: 0}), []bpf.Instruction{bpf.RetConstant{Val: 0}})
}

// sieveBytes is the number of bytes that are stored of a packet.
const sieveBytes = 128

// sieve stores the arriving packets that pass the filter of their family. The offsets of a filter count from the IP header.
func (h *Host) sieve(dev string, ipv4, ipv6 []bpf.Instruction) *Sieve {
	h.tb.Helper()
	filter := []bpf.Instruction{
		bpf.LoadExtension{Num: bpf.ExtType},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: unix.PACKET_OUTGOING, SkipTrue: 4},
		bpf.LoadAbsolute{Off: 0, Size: 1},
		bpf.ALUOpConstant{Op: bpf.ALUOpShiftRight, Val: 4},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 4, SkipTrue: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 6, SkipTrue: uint8(len(ipv4) + 1)},
		bpf.RetConstant{Val: 0}, // not IP, such as ARP
	}
	r := &Sieve{stop: make(chan struct{}), done: make(chan struct{})}
	h.must("watch "+dev, h.Do(func() error { return r.open(h.Index(dev), append(append(filter, ipv4...), ipv6...)) }))
	go r.read()
	h.tb.Cleanup(func() { r.Stop() })
	return r
}

func (r *Sieve) open(index int, filter []bpf.Instruction) (err error) {
	if r.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open packet socket: %w", err)
	}
	raw, err := bpf.Assemble(filter)
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

func (r *Sieve) read() {
	defer close(r.done)
	data := make([]byte, sieveBytes)
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

// Stop ends the watch and returns the packets that have arrived and passed the filter.
func (r *Sieve) Stop() []string {
	r.once.Do(func() {
		close(r.stop)
		<-r.done
		unix.Close(r.fd)
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.seen
}
