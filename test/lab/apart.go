// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"
)

// apartAddresses is the environment variable with the addresses on which a process of its own serves.
const apartAddresses = "HAIRPIN_LAB_SERVE"

// apartReady is what this process prints when it listens on all of them.
const apartReady = "ready"

// ServeTCPApart is ServeTCP in a process of its own. The number of descriptors of a process is limited, so a test can have twice as many
// connections if only one end of each is in its own process.
func (h *Host) ServeTCPApart(addresses ...string) {
	h.tb.Helper()
	p := h.StartWith([]string{apartAddresses + "=" + strings.Join(addresses, " ")}, "", "/proc/self/exe")
	Eventually(h.tb, Patience, func() error {
		if !strings.HasPrefix(p.Stdout.String(), apartReady) {
			return fmt.Errorf("%s: no server on %q: %s", h.Name, addresses, p.Stderr)
		}
		return nil
	})
}

// serveApart is the process that ServeTCPApart starts. It returns only if it cannot serve; a signal ends it.
func serveApart(addresses []string) error {
	for _, address := range addresses {
		listener, err := new(net.ListenConfig).Listen(context.Background(), family("tcp", address), address)
		if err != nil {
			return err
		}
		go acceptAll(listener, serveConn)
	}
	if _, err := fmt.Fprintln(os.Stdout, apartReady); err != nil {
		return err
	}
	select {}
}
