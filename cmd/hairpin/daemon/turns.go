// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"io"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/semaphore"
)

// turns lets a few scrapes run at a time; others wait in the order in which they came. A client that takes no data would keep its turn for
// as long as an answer may take. So it loses its connection, but only if others wait.
type turns struct {
	free        *semaphore.Weighted
	wait, stall time.Duration

	mu      sync.Mutex
	running []*turn
}

// turn is one scrape in progress.
type turn struct {
	of     *turns
	client *client // nil: unknown
	// writing is since when the client has to take data; zero: it does not have to. of.mu guards it.
	writing time.Time
}

func newTurns(limits serverLimits) *turns {
	return &turns{free: semaphore.NewWeighted(int64(limits.scrapes)), wait: limits.wait, stall: limits.stall}
}

// take waits for a turn. It fails if there is none for too long, or if ctx ends.
func (t *turns) take(ctx context.Context) (*turn, error) {
	if !t.free.TryAcquire(1) {
		waiting, cancel := context.WithTimeout(ctx, t.wait)
		defer cancel()
		go t.cutStalled(waiting)
		if err := t.free.Acquire(waiting, 1); err != nil {
			return nil, err
		}
	}
	taken := &turn{of: t}
	taken.client, _ = ctx.Value(clientKey{}).(*client)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.running = append(t.running, taken)
	return taken, nil
}

// cutStalled cuts off clients that stall, until ctx ends.
func (t *turns) cutStalled(ctx context.Context) {
	tick := time.NewTicker(t.stall / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t.mu.Lock()
		for _, one := range t.running {
			if one.client != nil && !one.writing.IsZero() && time.Since(one.writing) > t.stall {
				one.client.cut() // the write then fails
			}
		}
		t.mu.Unlock()
	}
}

// end gives the turn to the next scrape.
func (t *turn) end() {
	t.of.mu.Lock()
	t.of.running = slices.DeleteFunc(t.of.running, func(other *turn) bool { return other == t })
	t.of.mu.Unlock()
	t.of.free.Release(1)
}

// watch returns a writer to the client that notes how long each write takes.
func (t *turn) watch(to io.Writer) io.Writer { return turnWriter{t, to} }

type turnWriter struct {
	turn *turn
	to   io.Writer
}

// Write implements io.Writer.
func (w turnWriter) Write(p []byte) (int, error) {
	w.turn.set(time.Now())
	defer w.turn.set(time.Time{})
	return w.to.Write(p)
}

func (t *turn) set(writing time.Time) {
	t.of.mu.Lock()
	defer t.of.mu.Unlock()
	t.writing = writing
}
