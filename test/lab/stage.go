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

// Program is Main for a program that is not a test: it runs fn in a private mount namespace.
func Program(fn func() error) error {
	if os.Geteuid() != 0 {
		return errors.New("needs root for network namespaces and BPF")
	}
	if err := isolate(); err != nil {
		return fmt.Errorf("isolate: %w", err)
	}
	return errors.Join(fn(), os.RemoveAll(built.dir))
}

// Play runs fn like a test: fn may build labs with its testing.TB, Fatal ends fn, and cleanups run at the end. Play returns the
// errors of the test.
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

// stage implements the methods of testing.TB that labs use.
type stage struct {
	testing.TB // nil: the other methods panic

	ctx      context.Context
	mu       sync.Mutex
	cleanups []func()
	errs     []error
	failed   bool
}

// run runs fn in a goroutine and waits for it. Fatal ends only this goroutine.
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

// Logf stores the text as an error: labs log only to explain a failure.
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
