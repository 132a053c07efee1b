// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"hairpin/cmd/hairpin/trace"
	"hairpin/maps/config"
	"hairpin/maps/rule"
)

// traceFake is a trace whose events a test sends.
type traceFake struct {
	events chan *trace.Event
	lost   atomic.Uint64
	closed chan struct{}
}

func newTraceFake() *traceFake {
	return &traceFake{events: make(chan *trace.Event), closed: make(chan struct{})}
}

var errTrace = errors.New("the ring buffer broke")

func (f *traceFake) Next(ctx context.Context) (*trace.Event, error) {
	select {
	case e := <-f.events:
		if e == nil {
			return nil, errTrace
		}
		return e, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (f *traceFake) Lost() uint64 { return f.lost.Load() }

func (f *traceFake) Close() error {
	close(f.closed)
	return nil
}

// logFake is a log of connections over traces of a test.
type logFake struct {
	*connectionLog
	said   bytes.Buffer
	traces []*traceFake // of each start
	fails  error        // of the next start
}

func newLogFake(out io.Writer) *logFake {
	l := new(logFake)
	l.connectionLog = newConnectionLog("", out, slog.New(slog.NewTextHandler(&l.said, nil)))
	l.open = func() (connectionTrace, error) {
		if l.fails != nil {
			return nil, l.fails
		}
		f := newTraceFake()
		l.traces = append(l.traces, f)
		return f, nil
	}
	return l
}

var opened = &trace.Event{Event: trace.EventOpen, Protocol: rule.TCP, Path: "wan", Forward: "web",
	Client: netip.MustParseAddrPort("198.51.100.7:4711"), External: netip.MustParseAddrPort("203.0.113.2:80")}

// within fails if a channel is not ready in time.
func within[T any](t *testing.T, what string, ready <-chan T) (value T) {
	t.Helper()
	select {
	case value = <-ready:
	case <-time.After(10 * time.Second):
		t.Fatalf("%s does not happen", what)
	}
	return value
}

// lines is a writer that hands each write to a test.
type lines chan string

func (l lines) Write(data []byte) (int, error) {
	l <- string(data)
	return len(data), nil
}

// TestLogOfConnectionsChangesWhileItRuns: text, json and off need no restart, and off ends the trace.
func TestLogOfConnectionsChangesWhileItRuns(t *testing.T) {
	out := make(lines)
	l := newLogFake(out)
	send := func(want string) {
		t.Helper()
		l.traces[0].events <- opened
		if got := within(t, "a line", out); !strings.Contains(got, want) || strings.Count(got, "\n") != 1 {
			t.Errorf("got %q, want one line with %q", got, want)
		}
	}
	if err := l.set(""); err != nil || len(l.traces) != 0 {
		t.Errorf("off by default: %v, %d traces", err, len(l.traces))
	}
	if err := l.set(config.LogText); err != nil {
		t.Fatal(err)
	}
	send("open tcp path=wan forward=web client=198.51.100.7:4711 external=203.0.113.2:80")
	if err := l.set(config.LogJSON); err != nil || len(l.traces) != 1 {
		t.Errorf("json: %v, %d traces, want the same one", err, len(l.traces))
	}
	send(`{"schema":1,"event":{"time":"0001-01-01T00:00:00Z","event":"open","protocol":"tcp","path":"wan","forward":"web","client":"198.51.100.7:4711"`)
	if err := l.set(config.LogOff); err != nil {
		t.Error(err)
	}
	within(t, "the end of the trace", l.traces[0].closed)
}

// TestLogOfConnectionsWaitsForNobody: while nobody reads the output, the daemon goes on, and tells what was lost once. The count
// does not begin again with another trace.
func TestLogOfConnectionsWaitsForNobody(t *testing.T) {
	out := make(lines) // nobody reads
	l := newLogFake(out)
	if err := l.set(config.LogText); err != nil {
		t.Fatal(err)
	}
	l.traces[0].events <- opened // its line waits for a reader
	l.traces[0].lost.Store(7)
	for range 2 {
		if err := l.ensure(); err != nil {
			t.Error(err)
		}
	}
	if said := l.said.String(); strings.Count(said, "lost=7") != 1 {
		t.Errorf("said %s", said)
	}
	if err := l.set(config.LogOff); err != nil {
		t.Error(err)
	}
	if err := l.set(config.LogJSON); err != nil || len(l.traces) != 2 {
		t.Errorf("on again: %v, %d traces", err, len(l.traces))
	}
	l.traces[1].lost.Store(3)
	if got := l.lost(); got != 10 {
		t.Errorf("%d events are lost, want 10", got)
	}
	within(t, "the line", out)
	within(t, "the end of the first trace", l.traces[0].closed)
	if err := l.set(config.LogOff); err != nil {
		t.Error(err)
	}
	within(t, "the end of the second trace", l.traces[1].closed)
}

// TestLogOfConnectionsStartsAgain: a trace that cannot start is an error of each beat; a trace that fails is replaced at the next.
func TestLogOfConnectionsStartsAgain(t *testing.T) {
	l := newLogFake(io.Discard)
	l.fails = trace.ErrUnsupported
	if err := l.set(config.LogText); !errors.Is(err, trace.ErrUnsupported) {
		t.Errorf("a kernel that cannot trace: %v", err)
	}
	if err := l.ensure(); !errors.Is(err, trace.ErrUnsupported) {
		t.Errorf("the next beat: %v", err)
	}
	l.fails = nil
	if err := l.ensure(); err != nil {
		t.Error(err)
	}
	l.traces[0].lost.Store(2)
	l.traces[0].events <- nil
	within(t, "the end of the failed trace", l.traces[0].closed)
	if err := l.ensure(); err != nil || len(l.traces) != 2 || l.lost() != 2 {
		t.Errorf("after a failure: %v, %d traces, %d lost", err, len(l.traces), l.lost())
	}
	if err := l.set(config.LogOff); err != nil {
		t.Error(err)
	}
	if said := l.said.String(); !strings.Contains(said, errTrace.Error()) {
		t.Errorf("said %s", said)
	}
}
