// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync"
	"syscall"

	ratelimit "golang.org/x/time/rate"
)

// newLogger returns the daemon's log: JSON with -j; lines with priorities in the journal; text elsewhere.
func (a *app) newLogger() *slog.Logger {
	level := slog.LevelInfo
	switch {
	case a.quiet:
		level = slog.LevelWarn
	case a.verbose:
		level = slog.LevelDebug
	}
	format := func(out io.Writer, options *slog.HandlerOptions) slog.Handler {
		return slog.NewTextHandler(out, options)
	}
	if a.json {
		format = func(out io.Writer, options *slog.HandlerOptions) slog.Handler {
			return slog.NewJSONHandler(out, options)
		}
	}
	options := &slog.HandlerOptions{Level: level}
	if onJournal(a.getenv("JOURNAL_STREAM"), a.stderr) {
		return slog.New(calmed(newPriorityHandler(a.stderr, format, options)))
	}
	return slog.New(calmed(format(a.stderr, options)))
}

// onJournal reports whether out is the journal; stream is the value of JOURNAL_STREAM. A child process
// inherits the variable even if its output is redirected, so systemd.exec(5) asks to compare the device and
// inode with the descriptor. journal.StderrIsJournalStream of go-systemd always uses the process's
// environment and descriptor 2, which commands here do not use directly.
func onJournal(stream string, out io.Writer) bool {
	file, ok := out.(*os.File)
	if !ok || stream == "" {
		return false
	}
	info, err := file.Stat()
	if err != nil {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && stream == fmt.Sprintf("%d:%d", stat.Dev, stat.Ino)
}

// priorityHandler writes each line with its priority before it, as "<4>", which the journal takes off (sd-daemon(3)). The journal adds
// the time itself, and shows the priority, so the lines have neither time nor level.
type priorityHandler struct {
	slog.Handler
	line *priorityWriter
}

// priorityWriter writes the priority before each line. slog's handlers write a line by one call of Write.
type priorityWriter struct {
	mu       sync.Mutex // held while a handler writes a line
	priority int
	out      io.Writer
}

// Write implements io.Writer.
func (w *priorityWriter) Write(line []byte) (int, error) {
	_, err := w.out.Write(fmt.Appendf(nil, "<%d>%s", w.priority, line))
	return len(line), err
}

func newPriorityHandler(out io.Writer, format func(io.Writer, *slog.HandlerOptions) slog.Handler, options *slog.HandlerOptions) slog.Handler {
	line := &priorityWriter{out: out}
	bare := *options
	bare.ReplaceAttr = func(groups []string, attr slog.Attr) slog.Attr {
		if len(groups) == 0 && (attr.Key == slog.TimeKey || attr.Key == slog.LevelKey) {
			return slog.Attr{}
		}
		return attr
	}
	return &priorityHandler{format(line, &bare), line}
}

// Handle implements slog.Handler.
func (h *priorityHandler) Handle(ctx context.Context, record slog.Record) error {
	h.line.mu.Lock()
	defer h.line.mu.Unlock()
	h.line.priority = priorityOf(record.Level)
	return h.Handler.Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (h *priorityHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &priorityHandler{h.Handler.WithAttrs(attrs), h.line}
}

// WithGroup implements slog.Handler.
func (h *priorityHandler) WithGroup(name string) slog.Handler {
	return &priorityHandler{h.Handler.WithGroup(name), h.line}
}

// priorityOf returns the priority of syslog(3) for a level.
func priorityOf(level slog.Level) int {
	const err, warning, info, debug = 3, 4, 6, 7
	switch {
	case level >= slog.LevelError:
		return err
	case level >= slog.LevelWarn:
		return warning
	case level >= slog.LevelInfo:
		return info
	}
	return debug
}

// Limits of a calmHandler. A start with many interfaces fits in the burst.
const (
	calmRate    = 5    // lines with one message in a second
	calmBurst   = 200  // such lines at once
	calmEntries = 1000 // different messages that are remembered
)

// calmHandler limits the rate of lines with the same message. Packets and other users can cause lines: an interface that goes up and down,
// bans of fail2ban, requests to the metrics. A line after lines that were left out says how many.
type calmHandler struct {
	slog.Handler
	lines *calmLines
}

type calmLines struct {
	mu        sync.Mutex
	byMessage map[string]*calmLine
}

type calmLine struct {
	limit      *ratelimit.Limiter
	suppressed int
}

func calmed(h slog.Handler) slog.Handler {
	return &calmHandler{h, &calmLines{byMessage: make(map[string]*calmLine)}}
}

// Handle implements slog.Handler.
func (h *calmHandler) Handle(ctx context.Context, record slog.Record) error {
	suppressed, write := h.lines.take(record)
	if !write {
		return nil
	}
	if suppressed > 0 {
		record = record.Clone()
		record.AddAttrs(slog.Int("suppressed", suppressed))
	}
	return h.Handler.Handle(ctx, record)
}

// take reports whether to write a line, and how many lines with its message were left out before.
func (c *calmLines) take(record slog.Record) (suppressed int, write bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	line := c.byMessage[record.Message]
	if line == nil {
		if len(c.byMessage) >= calmEntries {
			clear(c.byMessage)
		}
		line = &calmLine{limit: ratelimit.NewLimiter(calmRate, calmBurst)}
		c.byMessage[record.Message] = line
	}
	if !line.limit.AllowN(record.Time, 1) {
		line.suppressed++
		return 0, false
	}
	suppressed, line.suppressed = line.suppressed, 0
	return suppressed, true
}

// WithAttrs implements slog.Handler.
func (h *calmHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &calmHandler{h.Handler.WithAttrs(attrs), h.lines}
}

// WithGroup implements slog.Handler.
func (h *calmHandler) WithGroup(name string) slog.Handler {
	return &calmHandler{h.Handler.WithGroup(name), h.lines}
}
