// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLogHasTime: log lines have a time, except in the journal, which adds its own. JOURNAL_STREAM also
// exists if the output was redirected to somewhere else.
func TestLogHasTime(t *testing.T) {
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	defer write.Close()
	var stat unix.Stat_t
	if err := unix.Fstat(int(write.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, stream string
		want         bool // whether lines have a time
	}{
		{"no journal", "", true},
		{"the journal", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino), false},
		{"another inode", fmt.Sprintf("%d:%d", stat.Dev, stat.Ino+1), true},
		{"another device", fmt.Sprintf("%d:%d", stat.Dev+1, stat.Ino), true},
		{"nonsense", "yes", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			a := newApp(env{stderr: write, getenv: func(key string) string { return map[string]string{"JOURNAL_STREAM": c.stream}[key] }})
			a.newLogger().Info("hello")
			line := make([]byte, 200)
			n, err := read.Read(line)
			if err != nil {
				t.Fatal(err)
			}
			if got := strings.HasPrefix(string(line[:n]), "time="); got != c.want {
				t.Errorf("a time: %v, want %v: %s", got, c.want, line[:n])
			}
		})
	}
	var elsewhere bytes.Buffer
	a := newApp(env{stderr: &elsewhere, getenv: func(string) string { return fmt.Sprintf("%d:%d", stat.Dev, stat.Ino) }})
	a.newLogger().Info("hello")
	if !strings.HasPrefix(elsewhere.String(), "time=") {
		t.Errorf("not a file, and no time: %s", &elsewhere)
	}
}

// TestJournalPriorities: each line begins with the priority of its level. The lines have no level of their own, and one line is one entry
// also with line breaks in a value.
func TestJournalPriorities(t *testing.T) {
	for _, c := range []struct {
		name  string
		json  bool
		lines string
	}{
		{"text", false, "<7>msg=debug\n<6>msg=info\n<4>msg=warn\n<3>msg=error error=\"a\\nb\" id=1\n"},
		{"JSON", true, "<7>{\"msg\":\"debug\"}\n<6>{\"msg\":\"info\"}\n<4>{\"msg\":\"warn\"}\n<3>{\"msg\":\"error\",\"error\":\"a\\nb\",\"id\":1}\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "journal")
			journal, err := os.Create(path)
			if err != nil {
				t.Fatal(err)
			}
			defer journal.Close()
			var stat unix.Stat_t
			if err := unix.Fstat(int(journal.Fd()), &stat); err != nil {
				t.Fatal(err)
			}
			a := newApp(env{stderr: journal, getenv: func(string) string { return fmt.Sprintf("%d:%d", stat.Dev, stat.Ino) }})
			a.json, a.verbose = c.json, true
			log := a.newLogger()
			log.Debug("debug")
			log.Info("info")
			log.Warn("warn")
			log.With("error", "a\nb").Error("error", "id", 1)
			if got, err := os.ReadFile(path); err != nil || string(got) != c.lines {
				t.Errorf("got\n%swant\n%s%v", got, c.lines, err)
			}
		})
	}
}

// TestJSONLog: with -j each line is a document with time and level.
func TestJSONLog(t *testing.T) {
	var out bytes.Buffer
	a := newApp(env{stderr: &out, getenv: func(string) string { return "" }})
	a.json = true
	a.newLogger().Warn("hello", "interface", "wan0")
	var line struct {
		Time                  time.Time
		Level, Msg, Interface string
	}
	decoder := json.NewDecoder(&out)
	if err := decoder.Decode(&line); err != nil || line.Level != "WARN" || line.Msg != "hello" || line.Interface != "wan0" || line.Time.IsZero() {
		t.Errorf("got %+v, %v", line, err)
	}
}

// TestLogIsCalm: of many lines with one message, as packets may cause them, only so many are written at once and in a second. The next
// line says how many are missing. Other messages are not affected.
func TestLogIsCalm(t *testing.T) {
	var out bytes.Buffer
	h := calmed(slog.NewTextHandler(&out, nil)).WithAttrs([]slog.Attr{slog.String("interface", "wan0")})
	write := func(at time.Time, message string, n int) (lines int) {
		t.Helper()
		out.Reset()
		for range n {
			if err := h.Handle(t.Context(), slog.NewRecord(at, slog.LevelInfo, message, 0)); err != nil {
				t.Fatal(err)
			}
		}
		return strings.Count(out.String(), "\n")
	}
	start := time.Unix(1700000000, 0)
	if got := write(start, "flood", 5*calmBurst); got != calmBurst {
		t.Errorf("%d lines at once, want %d", got, calmBurst)
	}
	if got := write(start, "another", 1); got != 1 || strings.Contains(out.String(), "suppressed") {
		t.Errorf("another message: %d lines\n%s", got, &out)
	}
	if got := write(start.Add(time.Second), "flood", 5*calmBurst); got != calmRate {
		t.Errorf("%d lines after a second, want %d", got, calmRate)
	}
	first, _, _ := strings.Cut(out.String(), "\n")
	if want := fmt.Sprintf("suppressed=%d", 4*calmBurst); !strings.Contains(first, want) || strings.Count(out.String(), "suppressed") != 1 {
		t.Errorf("the first line lacks %s, or it is not alone:\n%s", want, &out)
	}
	// The memory for messages is bounded.
	for i := range 3 * calmEntries {
		write(start, fmt.Sprint("message ", i), 1)
	}
	if got := len(h.(*calmHandler).lines.byMessage); got > calmEntries {
		t.Errorf("%d messages are remembered, want at most %d", got, calmEntries)
	}
}
