// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync/atomic"
	"time"

	"hairpin/cmd/hairpin/control"
	"hairpin/cmd/hairpin/router"
	"hairpin/maps/metrics"
)

// state is shared: the loop writes it, the metrics server reads it.
type state struct {
	ports  atomic.Pointer[[]router.Port]
	ready  atomic.Bool
	apart  atomic.Pointer[apart]
	turned atomic.Int64 // unix time in ns of the loop's last turn
}

func (s *state) turn() { s.turned.Store(time.Now().UnixNano()) }

// load returns the ports that the loop saw last.
func (s *state) load() []router.Port {
	if ports := s.ports.Load(); ports != nil {
		return *ports
	}
	return nil
}

// interfaces returns the ports in the form that the metrics collector needs.
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

// Ready fails until the configuration is applied, and while the forwards are not as in the files.
func (s *state) Ready() error {
	if !s.ready.Load() {
		return errors.New("starting")
	}
	if why := s.Status().Apart; why != "" {
		return errors.New(why)
	}
	return nil
}

// summary is the daemon's state in one line, for the service manager.
func (s *state) summary() string {
	names := make(map[string][]string)
	for _, p := range s.load() {
		names[p.State()] = append(names[p.State()], p.Name)
	}
	parts := []string{"no interface is attached"}
	if attached := names["attached"]; len(attached) > 0 {
		parts[0] = "attached: " + strings.Join(attached, ", ")
	}
	if detached := names["detached"]; len(detached) > 0 {
		parts = append(parts, "cannot attach: "+strings.Join(detached, ", "))
	}
	if pending := names["pending"]; len(pending) > 0 {
		parts = append(parts, "not there yet: "+strings.Join(pending, ", "))
	}
	if why := s.Status().Apart; why != "" {
		first, _, _ := strings.Cut(why, "\n")
		parts = append(parts, first)
	}
	return strings.Join(parts, "; ")
}

// apart is why the forwards are not as in the files.
type apart struct{ why string }

// Status returns what "hairpin status" asks for.
func (s *state) Status() control.Status {
	if why := s.apart.Load(); why != nil {
		return control.Status{Apart: why.why}
	}
	return control.Status{}
}

// failures holds the last error of each action, so that an error is logged only once.
type failures map[string]string

// report logs a new error, and the success after an error. what completes "cannot".
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
