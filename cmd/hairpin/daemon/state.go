// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"hairpin/cmd/hairpin/router"
	"hairpin/maps/metrics"
)

// state is what the metrics server reads while the loop writes.
type state struct {
	ports  atomic.Pointer[[]router.Port]
	ready  atomic.Bool
	turned atomic.Int64 // unix time in ns at which the loop turned last
}

func (s *state) turn() { s.turned.Store(time.Now().UnixNano()) }

// load are the ports that the loop saw last.
func (s *state) load() []router.Port {
	if ports := s.ports.Load(); ports != nil {
		return *ports
	}
	return nil
}

// interfaces is what the collector needs of the ports.
func (s *state) interfaces() []metrics.Interface {
	var list []metrics.Interface
	for _, p := range s.load() {
		status := metrics.Interface{
			Name: p.Name, Role: p.Role, Mode: p.Mode(),
			Attached: p.Attachment != nil, Addresses: p.Addresses(),
		}
		if p.Link != nil {
			status.Index = p.Link.Index
		}
		list = append(list, status)
	}
	return list
}

// Healthy fails if the loop is stuck.
func (s *state) Healthy() error {
	if still := time.Since(time.Unix(0, s.turned.Load())); still > stalledAfter {
		return fmt.Errorf("the daemon's main loop has been stuck for %s", still.Round(time.Second))
	}
	return nil
}

// Ready fails until the configuration is applied.
func (s *state) Ready() error {
	if !s.ready.Load() {
		return errors.New("starting")
	}
	return nil
}

// failures are what failed last time, by what was tried, so that each is logged once.
type failures map[string]string

// report logs a failure when it is new, and its end. what completes "cannot".
func (f failures) report(log *slog.Logger, what string, err error) {
	if err == nil {
		if f[what] != "" {
			log.Info("works again", "what", what)
		}
		delete(f, what)
		return
	}
	if f[what] != err.Error() {
		log.Error("cannot "+what, "error", err)
	}
	f[what] = err.Error()
}
