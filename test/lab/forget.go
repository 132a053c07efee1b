// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Forget closes a connection, and sends nothing: TCP's repair mode. The peer and the routers between do not notice.
func (c *Conn) Forget() error { return forget(c.TCPConn) }

func forget(c *net.TCPConn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptInt(int(fd), unix.SOL_TCP, unix.TCP_REPAIR, 1)
	}); err != nil {
		return err
	}
	if failed != nil {
		return fmt.Errorf("begin repair of a connection: %w", failed)
	}
	return c.Close()
}

// ServeForgetting accepts connections on an address of the host until the test ends, and forgets each at once.
func (h *Host) ServeForgetting(address string) {
	h.tb.Helper()
	h.listenTCP(address, net.ListenConfig{}, func(c *net.TCPConn) {
		if err := forget(c); err != nil {
			h.tb.Errorf("%s: %v", h.Name, err)
		}
	})
}
