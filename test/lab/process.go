// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Patience is the time limit for events that should happen at once, on a busy machine.
var Patience = 20 * time.Second * Slowness

// Slowness is the factor for times on a slow machine: HAIRPIN_SLOWNESS, a whole number.
var Slowness = slowness()

func slowness() time.Duration {
	factor, err := strconv.Atoi(os.Getenv("HAIRPIN_SLOWNESS"))
	if err != nil {
		return 1
	}
	return max(1, time.Duration(factor))
}

// Process is a program that runs on a host. It is killed when the test ends.
type Process struct {
	Stdout, Stderr *Buffer

	host *Host
	name string
	cmd  *exec.Cmd
	done chan struct{}
	err  error
}

// Buffer collects output. It can be read while output is written.
type Buffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (b *Buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

// String returns the output so far.
func (b *Buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// Start runs a program on the host. Its output appears in the log of a failed test.
func (h *Host) Start(args ...string) *Process {
	h.tb.Helper()
	return h.StartWith(nil, "", args...)
}

// StartWith is Start with additional environment variables, and with text on the standard input.
func (h *Host) StartWith(env []string, stdin string, args ...string) *Process {
	h.tb.Helper()
	p, err := h.spawn(env, stdin, args)
	h.must("start "+args[0], err)
	h.tb.Cleanup(func() {
		p.Signal(unix.SIGKILL)
		<-p.done
		if h.tb.Failed() {
			h.tb.Logf("%s: %s\n%s%s", h.Name, p.name, p.Stdout, p.Stderr)
		}
	})
	return p
}

// spawn starts a process from a thread that lives as long as the process: Pdeathsig is sent when the parent thread ends, not
// when the parent process ends.
func (h *Host) spawn(env []string, stdin string, args []string) (*Process, error) {
	p := &Process{Stdout: new(Buffer), Stderr: new(Buffer), host: h, name: strings.Join(args, " "), done: make(chan struct{})}
	p.cmd = exec.Command(args[0], args[1:]...)
	p.cmd.Env = append(os.Environ(), env...)
	p.cmd.Stdin = strings.NewReader(stdin)
	p.cmd.Stdout, p.cmd.Stderr = p.Stdout, p.Stderr
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	p.cmd.WaitDelay = Patience

	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer close(p.done)
		err := unix.Setns(h.fd, unix.CLONE_NEWNET)
		if err == nil {
			err = p.cmd.Start()
		}
		started <- err
		if err == nil {
			p.err = p.cmd.Wait()
		}
	}()
	return p, <-started
}

// Signal sends a signal to the process, if the process still runs.
func (p *Process) Signal(signal syscall.Signal) {
	if err := p.cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.host.tb.Errorf("%s: signal %s: %v", p.host.Name, p.name, err)
	}
}

// Pid returns the process id.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits until the process ends and returns its exit code; -1: a signal ended the process.
func (p *Process) Wait() int {
	p.host.tb.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(Patience):
		p.host.tb.Fatalf("%s: %s still runs after %v", p.host.Name, p.name, Patience)
		return -1
	}
}

// Result has the output and the exit code of a finished command.
type Result struct {
	Stdout, Stderr string
	Code           int
}

// Try runs a command on the host and waits until it ends. Any goroutine may call it.
func (h *Host) Try(args ...string) (Result, error) {
	return h.TryInput("", args...)
}

// TryInput is Try with text on the standard input.
func (h *Host) TryInput(stdin string, args ...string) (Result, error) {
	p, err := h.spawn(nil, stdin, args)
	if err != nil {
		return Result{}, fmt.Errorf("%s: start %s: %w", h.Name, args[0], err)
	}
	select {
	case <-p.done:
	case <-time.After(3 * Patience):
		p.cmd.Process.Kill()
		<-p.done
		return Result{}, fmt.Errorf("%s: %s: no end after %v\n%s%s", h.Name, p.name, 3*Patience, p.Stdout, p.Stderr)
	}
	return Result{p.Stdout.String(), p.Stderr.String(), p.cmd.ProcessState.ExitCode()}, nil
}

// KillAfter runs a command on the host. If it has not ended after a time, it is killed by SIGKILL, and the exit code is -1. Any
// goroutine may call it.
func (h *Host) KillAfter(limit time.Duration, args ...string) (Result, error) {
	p, err := h.spawn(nil, "", args)
	if err != nil {
		return Result{}, fmt.Errorf("%s: start %s: %w", h.Name, args[0], err)
	}
	select {
	case <-p.done:
	case <-time.After(limit):
		p.cmd.Process.Kill()
		<-p.done
	}
	return Result{p.Stdout.String(), p.Stderr.String(), p.cmd.ProcessState.ExitCode()}, nil
}

// Run runs a command on the host and returns its standard output. The command must succeed.
func (h *Host) Run(args ...string) string {
	h.tb.Helper()
	return h.RunInput("", args...)
}

// RunInput is Run with text on the standard input.
func (h *Host) RunInput(stdin string, args ...string) string {
	h.tb.Helper()
	r, err := h.TryInput(stdin, args...)
	if err != nil {
		h.tb.Fatal(err)
	}
	if r.Code != 0 {
		h.tb.Fatalf("%s: %s: exit code %d\n%s%s", h.Name, strings.Join(args, " "), r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout
}

// Eventually calls ask until it returns nil. After the time limit it ends the test, with the last error.
func Eventually(tb interface {
	Helper()
	Fatalf(string, ...any)
}, within time.Duration, ask func() error) {
	tb.Helper()
	var err error
	if !Within(within, func() bool { err = ask(); return err == nil }) {
		tb.Fatalf("not within %v: %v", within, err)
	}
}

// Within asks again and again until the answer is true, for at most this time, but at least once. It returns the last answer.
func Within(within time.Duration, ask func() bool) bool {
	deadline := time.Now().Add(within)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ask() {
		if time.Now().After(deadline) {
			return false
		}
		<-tick.C
	}
	return true
}
