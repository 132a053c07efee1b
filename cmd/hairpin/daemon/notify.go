// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"net"
	"time"
)

// notifyPatience is the longest wait for a service manager that does not read its socket.
const notifyPatience = time.Second

// notifyManager sends a state of sd_notify(3) to the service manager's socket; "" means that there is no
// socket. The library's function would wait for ever if the queue of the socket is full.
func notifyManager(socket, state string) error {
	if socket == "" {
		return nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("reach the service manager: %w", err)
	}
	defer conn.Close()
	err = conn.SetWriteDeadline(time.Now().Add(notifyPatience))
	if err == nil {
		_, err = conn.Write([]byte(state))
	}
	if err != nil {
		return fmt.Errorf("notify the service manager: %w", err)
	}
	return nil
}
