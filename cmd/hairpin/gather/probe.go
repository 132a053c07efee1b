// SPDX-License-Identifier: Apache-2.0

package gather

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"hairpin/cmd/hairpin/diagnose"
)

// maxConnects is the number of connects at one time.
const maxConnects = 512

// Probe connects to each of these ports by TCP, and closes the connections at once. All connects together take at most
// diagnose.ProbeTime.
func Probe(list []netip.AddrPort) map[netip.AddrPort]diagnose.Answer {
	ctx, cancel := context.WithTimeout(context.Background(), diagnose.ProbeTime)
	defer cancel()
	var (
		mu      sync.Mutex
		answers = make(map[netip.AddrPort]diagnose.Answer, len(list))
		working sync.WaitGroup
		next    = make(chan netip.AddrPort)
	)
	for range min(maxConnects, len(list)) {
		working.Go(func() {
			for to := range next {
				answer := connect(ctx, to)
				mu.Lock()
				answers[to] = answer
				mu.Unlock()
			}
		})
	}
	for _, to := range list {
		select {
		case next <- to:
		case <-ctx.Done(): // not asked
		}
	}
	close(next)
	working.Wait()
	return answers
}

func connect(ctx context.Context, to netip.AddrPort) diagnose.Answer {
	// A connect ends at the deadline, perhaps a moment before ctx does: what comes then was not asked.
	if deadline, _ := ctx.Deadline(); ctx.Err() != nil || !time.Now().Before(deadline) {
		return diagnose.NotAsked
	}
	c, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	switch {
	case err == nil:
		c.Close()
		return diagnose.Connected
	case errors.Is(err, unix.ECONNREFUSED):
		return diagnose.Refused
	case errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return diagnose.Unreachable
	}
	return diagnose.Silent
}
