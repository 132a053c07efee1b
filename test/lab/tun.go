// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// longestPacket fits what any tun or tap device of the lab carries.
const longestPacket = 1 << 16

// Tun connects two hosts by a cable of bare IP packets, as WireGuard or PPP make one: two tun
// devices, between which packets are carried until the test ends.
func Tun(a *Host, aName string, b *Host, bName string) {
	a.tb.Helper()
	connect(a, aName, b, bName, unix.IFF_TUN)
}

// Tap is Tun for Ethernet frames, as virtual machines have them.
func Tap(a *Host, aName string, b *Host, bName string) {
	a.tb.Helper()
	connect(a, aName, b, bName, unix.IFF_TAP)
}

func connect(a *Host, aName string, b *Host, bName string, kind uint16) {
	a.tb.Helper()
	ends := [2]*os.File{a.tun(aName, kind), b.tun(bName, kind)}
	for i := range ends {
		go carry(ends[i], ends[1-i])
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
		// A device that is down refuses a packet; the next may go through.
		if _, err := to.Write(packet[:n]); errors.Is(err, os.ErrClosed) {
			return
		}
	}
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
