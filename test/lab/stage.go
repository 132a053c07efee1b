// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// Program is Main for a program that is no test: it runs fn in a mount namespace of its own.
func Program(fn func() error) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root for network namespaces and BPF")
	}
	if err := isolate(); err != nil {
		return fmt.Errorf("isolate: %w", err)
	}
	return errors.Join(fn(), os.RemoveAll(built.dir))
}

// Play runs fn as a test would be run: labs may be built on its testing.TB, Fatal ends it, and what was
// to be cleaned up then is. It returns what the test would have failed with.
func Play(ctx context.Context, fn func(tb testing.TB)) error {
	s := &stage{ctx: ctx}
	s.run(func() { fn(s) })
	for {
		s.mu.Lock()
		if len(s.cleanups) == 0 {
			s.mu.Unlock()
			return errors.Join(s.errs...)
		}
		last := s.cleanups[len(s.cleanups)-1]
		s.cleanups = s.cleanups[:len(s.cleanups)-1]
		s.mu.Unlock()
		s.run(last)
	}
}

// stage is a testing.TB as far as labs need one.
type stage struct {
	testing.TB // nil: only a test can have the rest

	ctx      context.Context
	mu       sync.Mutex
	cleanups []func()
	errs     []error
	failed   bool
}

// run waits for fn, which may end its goroutine.
func (s *stage) run(fn func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		fn()
	}()
	<-done
}

func (s *stage) Helper() {}

func (s *stage) Context() context.Context { return s.ctx }

func (s *stage) Cleanup(fn func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cleanups = append(s.cleanups, fn)
}

func (s *stage) Failed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.failed
}

// Logf is called for what explains a failure.
func (s *stage) Logf(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, fmt.Errorf(format, args...))
}

func (s *stage) Errorf(format string, args ...any) {
	s.Logf(format, args...)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed = true
}

func (s *stage) Fatalf(format string, args ...any) {
	s.Errorf(format, args...)
	runtime.Goexit()
}

func (s *stage) Fatal(args ...any) {
	s.Fatalf("%s", strings.TrimSuffix(fmt.Sprintln(args...), "\n"))
}
