// SPDX-License-Identifier: Apache-2.0

package presence

import (
	"context"
	"errors"
	"os"
	"testing"
)

// TestPresence: a second daemon on one directory is refused; Running does not disturb the first daemon.
func TestPresence(t *testing.T) {
	dir, ctx := t.TempDir(), context.Background()
	runs := func(want bool) {
		t.Helper()
		if got, err := Running(dir); err != nil || got != want {
			t.Errorf("daemon runs: %v, %v, want %v", got, err, want)
		}
	}
	runs(false)
	first, err := Claim(ctx, dir)
	if err != nil {
		t.Fatal(err)
	}
	runs(true)
	if _, err := Claim(ctx, dir); !errors.Is(err, ErrRunning) {
		t.Errorf("second daemon: %v, want %v", err, ErrRunning)
	}
	runs(true)
	first.Close()
	runs(false)
	if err := errors.Join(Remove(dir), Remove(dir)); err != nil {
		t.Error(err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
