// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"fmt"
	"sync"
	"time"
)

// Watch is a capture that stores the packets which match a condition.
type Watch struct {
	*Capture

	mu      sync.Mutex
	packets []*Packet
	taken   int
}

// Watch starts to store the packets that arrive at an interface and match; nil matches all.
func (h *Host) Watch(dev string, match func(*Packet) bool) *Watch {
	h.tb.Helper()
	w := new(Watch)
	w.Capture = h.Capture(dev, func(p *Packet) error {
		if match == nil || match(p) {
			w.keep(p)
		}
		return nil
	})
	return w
}

func (w *Watch) keep(p *Packet) {
	kept := *p
	kept.Data = bytes.Clone(p.Data)
	if p.ICMP != nil && p.ICMP.Quote != nil {
		message, quote := *p.ICMP, *p.ICMP.Quote
		quote.Data = kept.Payload()[8:]
		message.Quote = &quote
		kept.ICMP = &message
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packets = append(w.packets, &kept)
}

// Packets returns the stored packets so far.
func (w *Watch) Packets() []*Packet {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.packets[:len(w.packets):len(w.packets)]
}

// Next returns the next stored packet; it waits for a packet at most this time. Each call continues after the packet of the last call.
func (w *Watch) Next(within time.Duration) (*Packet, error) {
	for deadline := time.Now().Add(within); ; time.Sleep(time.Millisecond) {
		w.mu.Lock()
		if w.taken < len(w.packets) {
			w.taken++
			p := w.packets[w.taken-1]
			w.mu.Unlock()
			return p, nil
		}
		w.mu.Unlock()
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("%s: no packet at %s within %v", w.host.Name, w.dev, within)
		}
	}
}
