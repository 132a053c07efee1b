// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// KernelLog collects the kernel's messages, from the moment at which OpenKernelLog is called. The kernel overwrites old messages, so
// KernelLog reads each message soon after the kernel has written it.
type KernelLog struct {
	fd int

	mu         sync.Mutex
	complaints []string
	killing    []string // a report of a kill, until its last line says whose memory was at its limit
	err        error
}

// logPause is the time between two looks at the log. In this time the kernel must not write more than its buffer has room for.
const logPause = 200 * time.Millisecond

// OpenKernelLog opens the log. The end of the test closes the log.
func OpenKernelLog(tb testing.TB) *KernelLog {
	tb.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatalf("open the kernel's log: %v", err)
	}
	l, stop := &KernelLog{fd: fd}, make(chan struct{})
	var reading sync.WaitGroup
	tb.Cleanup(func() {
		close(stop)
		reading.Wait()
		unix.Close(fd)
	})
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		tb.Fatalf("go to the end of the kernel's log: %v", err)
	}
	reading.Go(func() {
		pause := time.NewTicker(logPause)
		defer pause.Stop()
		for {
			select {
			case <-stop:
				return
			case <-pause.C:
				l.read()
			}
		}
	})
	return l
}

// kernelWarning is the highest level of a message that is a warning: linux/kern_levels.h, KERN_WARNING.
const kernelWarning = 4

// cgroupMounted is the warning of cgroup1_root_to_use: a systemd, such as that of a test beside, has mounted a cgroup hierarchy. hairpin
// and the labs mount none.
const cgroupMounted = "new mount options do not match the existing superblock, will be ignored"

// Complaints returns the new messages of level warning and worse. Lines of less weight are others': links that come and go. Left out are
// cgroupMounted, reports of a process that was killed for the limit of its own memory cgroup: tests do that on purpose, and several run
// at once; and what the kernel says once about timers that were late: the processor of a virtual machine has to wait.
func (l *KernelLog) Complaints(tb testing.TB) (complaints []string) {
	tb.Helper()
	l.read()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.err != nil {
		tb.Fatalf("read the kernel's log: %v", l.err)
	}
	complaints = append(l.complaints, l.killing...)
	l.complaints, l.killing = nil, nil
	return complaints
}

// read reads the messages that are there.
func (l *KernelLog) read() {
	l.mu.Lock()
	defer l.mu.Unlock()
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(l.fd, record)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return
		case errors.Is(err, unix.EPIPE):
			l.complaints = append(l.complaints, "messages were overwritten before they were read")
			continue
		case err != nil:
			l.err = err
			return
		}
		l.add(string(record[:n]))
	}
}

// add adds a record. Documentation/ABI/testing/dev-kmsg: PRIORITY,SEQUENCE,TIME,FLAGS;TEXT. The priority includes the facility.
func (l *KernelLog) add(record string) {
	head, text, _ := strings.Cut(record, ";")
	priority, _, _ := strings.Cut(head, ",")
	level, err := strconv.Atoi(priority)
	text = strings.TrimSpace(text)
	switch {
	case err != nil:
		l.err = fmt.Errorf("%q has no priority", record)
	case strings.HasPrefix(text, "Memory cgroup out of memory: Killed"):
		l.killing = nil
	case level&7 > kernelWarning, text == cgroupMounted, strings.HasPrefix(text, "hrtimer: interrupt took"):
	case l.killing != nil || strings.Contains(text, "invoked oom-killer"):
		l.killing = append(l.killing, text)
	default:
		l.complaints = append(l.complaints, text)
	}
}
