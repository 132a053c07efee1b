// SPDX-License-Identifier: Apache-2.0

package dirlock

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"
)

const patience = 20 * time.Second

func TestExclusiveAndShared(t *testing.T) {
	dir := t.TempDir()
	held := must(t)(Take(t.Context(), dir))
	if other := must(t)(Try(dir)); other != nil {
		t.Error("two have it")
	}
	if other := must(t)(TryShared(dir)); other != nil {
		t.Error("it is shared with whoever has it alone")
	}
	held.Close()
	first, second := must(t)(TryShared(dir)), must(t)(TryShared(dir))
	if first == nil || second == nil {
		t.Fatal("it cannot be shared")
	}
	if other := must(t)(Try(dir)); other != nil {
		t.Error("somebody has it alone that is shared")
	}
	first.Close()
	second.Close()
}

// TestContext: a free lock is taken even if the context has ended; the wait for a held lock ends with the
// context.
func TestContext(t *testing.T) {
	dir := t.TempDir()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	late, cancel := context.WithTimeout(t.Context(), 0)
	defer cancel()
	must(t)(Take(cancelled, dir)).Close()
	held := must(t)(Take(late, dir))
	defer held.Close()
	for want, ctx := range map[error]context.Context{context.Canceled: cancelled, context.DeadlineExceeded: late} {
		if _, err := Take(ctx, dir); !errors.Is(err, want) {
			t.Errorf("error %v, want %v", err, want)
		}
	}
}

// TestWaiterKeepsItsDirectory: a waiter gets the lock of the directory that it opened, not of a new
// directory at the path.
func TestWaiterKeepsItsDirectory(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "dir")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	before, err := os.Stat(dir)
	if err != nil {
		t.Fatal(err)
	}
	held := must(t)(Take(t.Context(), dir))
	waiting := waitsFor(t, dir)
	if err := errors.Join(os.Rename(dir, dir+".old"), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	held.Close()
	select {
	case file := <-waiting:
		after, err := file.Stat()
		if err != nil || !os.SameFile(before, after) {
			t.Errorf("another directory (%v)", err)
		}
		file.Close()
	case <-time.After(patience):
		t.Fatal("it still waits")
	}
}

// waitsFor starts Take in a goroutine and returns when Take waits for the lock.
func waitsFor(t *testing.T, dir string) <-chan *os.File {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	// When the wait first asks the context, the directory is open.
	waiting := make(chan *os.File, 1)
	ticked := make(chan struct{})
	go func() {
		file, err := Take(&tickContext{Context: ctx, ticked: ticked}, dir)
		if err != nil {
			t.Error(err)
		}
		waiting <- file
	}()
	select {
	case <-ticked:
	case <-time.After(patience):
		t.Fatal("nobody waits")
	}
	return waiting
}

// tickContext reports when Done is called for the first time.
type tickContext struct {
	context.Context
	ticked chan struct{}
	told   bool
}

func (c *tickContext) Done() <-chan struct{} {
	if !c.told {
		c.told = true
		close(c.ticked)
	}
	return c.Context.Done()
}

func TestWhatCannotBeLocked(t *testing.T) {
	dir := t.TempDir()
	if _, err := Try(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if _, err := Try(link); err == nil {
		t.Error("a link is followed")
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Try(file); err == nil {
		t.Error("a file is taken for a directory")
	}
}

func must(t *testing.T) func(*os.File, error) *os.File {
	return func(file *os.File, err error) *os.File {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return file
	}
}
