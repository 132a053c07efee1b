// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"hairpin/cmd/hairpin/trace"
	"hairpin/maps/config"
)

// connectionTrace has the methods of *trace.Connections that the log uses.
type connectionTrace interface {
	Next(context.Context) (*trace.Event, error)
	Lost() uint64
	Close() error
}

// connectionLog writes what happens to connections. The reader of the log may be slow, or may not read at all: then events are lost
// and counted, and nothing waits. So the goroutine that writes is never waited for.
type connectionLog struct {
	open   func() (connectionTrace, error)
	out    io.Writer
	log    *slog.Logger
	format atomic.Value // string: one of config.LogText and config.LogJSON while a trace runs

	mu      sync.Mutex      // guards the fields below
	running connectionTrace // nil: there is none
	cancel  func()          // ends the trace that runs
	past    uint64          // events that earlier traces have lost
	told    uint64          // lost events that were logged
}

func newConnectionLog(dir string, out io.Writer, log *slog.Logger) *connectionLog {
	l := &connectionLog{out: out, log: log, open: func() (connectionTrace, error) { return trace.OpenConnections(dir) }}
	l.format.Store(config.LogOff)
	return l
}

// counter returns the metric of the log.
func (l *connectionLog) counter() prometheus.Collector {
	return prometheus.NewCounterFunc(prometheus.CounterOpts{
		Name: "hairpin_connection_events_lost_total",
		Help: "Events of connections that are missing in the log of connections, because they came faster than they were written.",
	}, func() float64 { return float64(l.lost()) })
}

// set starts the log, ends it, or changes its format. mode is a value of config.Config.LogConnections. When set returns nil, the
// next event is written in this mode.
func (l *connectionLog) set(mode string) error {
	l.format.Store(cmp.Or(mode, config.LogOff))
	if l.format.Load() == config.LogOff {
		l.end()
		return nil
	}
	return l.ensure()
}

// ensure starts the log if it should run and does not. It tells of events that were lost since its last call.
func (l *connectionLog) ensure() error {
	l.tellLost()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.format.Load() == config.LogOff || l.running != nil {
		return nil
	}
	running, err := l.open()
	if err != nil {
		return err
	}
	debug.FreeOSMemory() // loading the programs took much
	ctx, cancel := context.WithCancel(context.Background())
	l.running, l.cancel = running, cancel
	go l.serve(ctx, running)
	return nil
}

func (l *connectionLog) tellLost() {
	lost := l.lost()
	l.mu.Lock()
	defer l.mu.Unlock()
	if lost > l.told {
		l.log.Warn("events of connections are missing in the log: they came faster than they were written", "lost", lost-l.told)
		l.told = lost
	}
}

// lost returns how many events were lost since the daemon began.
func (l *connectionLog) lost() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.running == nil {
		return l.past
	}
	return l.past + l.running.Lost()
}

// end ends the trace that runs, and does not wait for it.
func (l *connectionLog) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.drop(l.running)
}

// drop ends a trace, unless another one runs. The caller holds mu.
func (l *connectionLog) drop(ended connectionTrace) {
	if l.running != nil && l.running == ended {
		l.cancel()
		l.past += l.running.Lost()
		l.running = nil
	}
}

// serve writes events until ctx ends or the trace fails.
func (l *connectionLog) serve(ctx context.Context, running connectionTrace) {
	failing := make(failures)
	for {
		event, err := running.Next(ctx)
		if err != nil {
			l.done(ctx, running, err)
			return
		}
		failing.report(l.log, "write the log of connections", l.write(event))
	}
}

// done closes a trace that has ended. If it has failed, ensure starts another one.
func (l *connectionLog) done(ctx context.Context, running connectionTrace, why error) {
	if ctx.Err() == nil {
		l.log.Error("the log of connections has ended; it is started again", "error", why)
		l.mu.Lock()
		l.drop(running)
		l.mu.Unlock()
	}
	if err := running.Close(); err != nil {
		l.log.Error("cannot end the log of connections", "error", err)
	}
}

// documentSchema is the version of the JSON documents, the same as on the command line.
const documentSchema = 1

func (l *connectionLog) write(event *trace.Event) error {
	switch l.format.Load() {
	case config.LogJSON:
		line, err := json.Marshal(struct {
			Schema int          `json:"schema"`
			Event  *trace.Event `json:"event"`
		}{documentSchema, event})
		if err == nil {
			_, err = l.out.Write(append(line, '\n'))
		}
		return err
	case config.LogText:
		_, err := fmt.Fprintln(l.out, event.Text())
		return err
	}
	return nil
}
