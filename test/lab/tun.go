// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// longestPacket is the buffer size in bytes: longer than any packet of the lab's tun and tap devices.
const longestPacket = 1 << 16

// Tun connects two hosts by two tun devices, and carries packets between them until the test ends. The packets have no
// link-layer header, as with WireGuard or PPP.
func Tun(a *Host, aName string, b *Host, bName string) {
	a.tb.Helper()
	connect(a, aName, b, bName, unix.IFF_TUN, 0)
}

// DelayedTun is Tun with a round trip time: each packet is delayed by half of this time, in both directions. Packets keep their
// order, and none is lost.
func DelayedTun(a *Host, aName string, b *Host, bName string, roundTrip time.Duration) {
	a.tb.Helper()
	connect(a, aName, b, bName, unix.IFF_TUN, roundTrip/2)
}

// Tap is Tun with tap devices, which carry Ethernet frames, as in virtual machines.
func Tap(a *Host, aName string, b *Host, bName string) {
	a.tb.Helper()
	connect(a, aName, b, bName, unix.IFF_TAP, 0)
}

func connect(a *Host, aName string, b *Host, bName string, kind uint16, delay time.Duration) {
	a.tb.Helper()
	ends := [2]*os.File{a.tun(aName, kind), b.tun(bName, kind)}
	for i := range ends {
		if delay == 0 {
			go carry(ends[i], ends[1-i])
		} else {
			go carryLater(ends[i], ends[1-i], delay)
		}
	}
	a.tb.Cleanup(func() {
		for _, end := range ends {
			end.Close()
		}
	})
	a.Up(aName)
	b.Up(bName)
}

// carry moves packets until either end is closed.
func carry(from, to *os.File) {
	packet := make([]byte, longestPacket)
	for {
		n, err := from.Read(packet)
		if err != nil {
			return
		}
		// A device that is down refuses a packet. The device may come up later, so carry goes on.
		if _, err := to.Write(packet[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
}

// waiting is a delayed packet, and the time at which it is due.
type waiting struct {
	due    time.Time
	packet []byte
}

// carryLater is carry with a delay for each packet.
func carryLater(from, to *os.File, delay time.Duration) {
	const most = 1 << 14
	way := make(chan waiting, most)
	defer close(way)
	go func() {
		for w := range way {
			time.Sleep(time.Until(w.due))
			_, _ = to.Write(w.packet) // as in carry
		}
	}()
	packet := make([]byte, longestPacket)
	for {
		n, err := from.Read(packet)
		if err != nil {
			return
		}
		way <- waiting{time.Now().Add(delay), append([]byte(nil), packet[:n]...)}
	}
}

// MachineTap adds a tap device that a virtual machine opens. Like the virtual machine, it does without finished checksums and with
// frames that are longer than the MTU. A virtual machine that opens several queues needs a device for them.
func (h *Host) MachineTap(name string, severalQueues bool) {
	h.tb.Helper()
	kind := uint16(unix.IFF_TAP | unix.IFF_VNET_HDR)
	if severalQueues {
		kind |= unix.IFF_MULTI_QUEUE
	}
	end := h.tun(name, kind)
	defer end.Close()
	raw, err := end.SyscallConn()
	h.must("keep tap device "+name, err)
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.IoctlSetInt(int(fd), unix.TUNSETPERSIST, 1) })
	h.must("keep tap device "+name, errors.Join(err, failed))
}

func (h *Host) tun(name string, kind uint16) (end *os.File) {
	h.tb.Helper()
	h.must("add tun device "+name, h.Do(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err == nil {
			request.SetUint16(kind | unix.IFF_NO_PI)
			err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
		}
		if err != nil {
			unix.Close(fd)
			return err
		}
		end = os.NewFile(uintptr(fd), name)
		return nil
	}))
	return end
}
