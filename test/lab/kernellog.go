// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"errors"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// KernelLog reads the kernel's messages from when it was opened.
type KernelLog struct{ fd int }

// OpenKernelLog opens the log. The end of the test closes the log.
func OpenKernelLog(tb testing.TB) *KernelLog {
	tb.Helper()
	fd, err := unix.Open("/dev/kmsg", unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		tb.Fatalf("open the kernel's log: %v", err)
	}
	tb.Cleanup(func() { unix.Close(fd) })
	if _, err := unix.Seek(fd, 0, unix.SEEK_END); err != nil {
		tb.Fatalf("go to the end of the kernel's log: %v", err)
	}
	return &KernelLog{fd}
}

// kernelWarning is the highest level of a message that is a warning: linux/kern_levels.h, KERN_WARNING.
const kernelWarning = 4

// Complaints returns the new messages of level warning and worse. Lines of less weight are others': links that come and go. Left out are
// reports of a process that was killed for the limit of its own memory cgroup: tests do that on purpose, and several run at once.
func (l *KernelLog) Complaints(tb testing.TB) (complaints []string) {
	tb.Helper()
	var killing []string // a report of a kill, until its last line says whose memory was at its limit
	record := make([]byte, 8192)
	for {
		n, err := unix.Read(l.fd, record)
		switch {
		case errors.Is(err, unix.EAGAIN):
			return append(complaints, killing...)
		case errors.Is(err, unix.EPIPE):
			complaints = append(complaints, "messages were overwritten before they were read")
			continue
		case err != nil:
			tb.Fatalf("read the kernel's log: %v", err)
		}
		// Documentation/ABI/testing/dev-kmsg: PRIORITY,SEQUENCE,TIME,FLAGS;TEXT. The priority includes the facility.
		head, text, _ := strings.Cut(string(record[:n]), ";")
		priority, _, _ := strings.Cut(head, ",")
		level, err := strconv.Atoi(priority)
		text = strings.TrimSpace(text)
		switch {
		case err != nil:
			tb.Fatalf("the kernel's log: %q has no priority", record[:n])
		case strings.HasPrefix(text, "Memory cgroup out of memory: Killed"):
			killing = nil
		case level&7 > kernelWarning:
		case killing != nil || strings.Contains(text, "invoked oom-killer"):
			killing = append(killing, text)
		default:
			complaints = append(complaints, text)
		}
	}
}
