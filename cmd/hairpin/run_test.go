// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

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
