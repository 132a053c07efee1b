// SPDX-License-Identifier: Apache-2.0

// Package measure measures the CPU time of work, on a machine that also does other work.
package measure

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Clock measures the CPU time of work on one CPU: the time of the thread that is pinned to this CPU, and of ksoftirqd, which
// handles the CPU's packets under load. Other work of the machine does not count.
type Clock struct {
	cpu      int
	softirqd string // path of ksoftirqd's schedstat
}

// Cost is the time of a piece of work.
type Cost struct {
	CPU  time.Duration
	Wall time.Duration
}

// NewClock returns the clock of a CPU. It is an error if the CPU does not exist.
func NewClock(cpu int) (*Clock, error) {
	names, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	want := fmt.Sprintf("ksoftirqd/%d\n", cpu)
	for _, entry := range names {
		comm, err := os.ReadFile("/proc/" + entry.Name() + "/comm")
		if err == nil && string(comm) == want {
			return &Clock{cpu, "/proc/" + entry.Name() + "/schedstat"}, nil
		}
	}
	return nil, fmt.Errorf("find the kernel's thread %q: is there a CPU %d?", want[:len(want)-1], cpu)
}

// Time runs fn on the clock's CPU, and returns the time that fn took.
func (c *Clock) Time(fn func() error) (Cost, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return Cost{}, fmt.Errorf("read affinity: %w", err)
	}
	var one unix.CPUSet
	one.Set(c.cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return Cost{}, fmt.Errorf("move to CPU %d: %w", c.cpu, err)
	}
	defer unix.SchedSetaffinity(0, &before)

	start, err := c.read()
	if err != nil {
		return Cost{}, err
	}
	wall := time.Now()
	if err := fn(); err != nil {
		return Cost{}, err
	}
	took := time.Since(wall)
	end, err := c.read()
	return Cost{CPU: end - start, Wall: took}, err
}

func (c *Clock) read() (time.Duration, error) {
	var thread unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &thread); err != nil {
		return 0, fmt.Errorf("read thread's CPU time: %w", err)
	}
	text, err := os.ReadFile(c.softirqd)
	if err != nil {
		return 0, fmt.Errorf("read the kernel's CPU time: %w", err)
	}
	field, _, _ := bytes.Cut(text, []byte(" "))
	kernel, err := strconv.ParseInt(string(field), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("read the kernel's CPU time: %w", err)
	}
	return time.Duration(thread.Nano() + kernel), nil
}
