// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"io"
	"runtime/debug"
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

	// calm fires when no scrape had to wait for a while. Then the memory that many scrapes needed goes back to the kernel.
	calm *time.Timer

	mu      sync.Mutex
	running []*turn
	cut     time.Time // when a client was cut off last
}

// calmAfter is the time after the last wait.
const calmAfter = 2 * time.Second

// turn is one scrape in progress.
type turn struct {
	of     *turns
	client *client // nil: unknown
	// writing is since when the client has to take data; zero: it does not have to. of.mu guards it.
	writing time.Time
}

func newTurns(limits serverLimits) *turns {
	t := &turns{free: semaphore.NewWeighted(int64(limits.scrapes)), wait: limits.wait, stall: limits.stall}
	t.calm = time.AfterFunc(calmAfter, giveBack)
	t.calm.Stop()
	return t
}

// giveBack gives memory back to the kernel. Objects of a sync.Pool, such as gzip writers, survive the first collection.
func giveBack() {
	debug.FreeOSMemory()
	debug.FreeOSMemory()
}

// take waits for a turn. It fails if there is none for too long, or if ctx ends.
func (t *turns) take(ctx context.Context) (*turn, error) {
	if !t.free.TryAcquire(1) {
		defer t.calm.Reset(calmAfter)
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

// cutStalled cuts off clients that stall, until ctx ends. It takes the one that has stalled longest, and then waits: an honest client may
// stall for a moment, too.
func (t *turns) cutStalled(ctx context.Context) {
	tick := time.NewTicker(t.stall / 4)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		t.cutOne()
	}
}

func (t *turns) cutOne() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if time.Since(t.cut) < t.stall/4 {
		return // another waiting scrape has done it
	}
	var longest *turn
	for _, one := range t.running {
		if one.client != nil && !one.writing.IsZero() && (longest == nil || one.writing.Before(longest.writing)) {
			longest = one
		}
	}
	if longest == nil || time.Since(longest.writing) <= t.stall {
		return
	}
	t.cut = time.Now()
	longest.client.cut() // the write then fails
	longest.client = nil
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
